"""Runs for the tests of the report, in the form in which the trainers and verl write them."""

import json
from types import SimpleNamespace

import numpy as np
from omegaconf import OmegaConf

HOSTILE = "</script><img src=x onerror=\"document.title='broken'\"><b>bold</b> \u2028 é 漢"
STEPS, GROUPS, SIZE = 4, 3, 4
WORDS = ["the", " sum", " is", " 12", " and", " carry", " one", "\n"]
END = 99


def write_run(folder, name="example", steps=STEPS, groups=GROUPS, seed=0, images=False, hostile=False, length=12):
    """A run's folder: `checkpoints` with record and samples, and `<name>.jsonl` beside it; returns the former."""
    from maskgrpo_plugin.trainer.image_log import log_contact_sheet
    from maskgrpo_plugin.trainer.run_record import record_run
    from maskgrpo_plugin.trainer.sample_dumps import sample_row, write_rows

    rng = np.random.default_rng(seed)
    checkpoints = folder / "checkpoints"
    log = folder / f"{name}.jsonl"
    trainer = {"default_local_dir": str(checkpoints), "logger": ["file"], "project_name": str(folder)}
    trainer |= {"experiment_name": name, "rollout_data_dir": f"{checkpoints}/rollouts"}
    config = {"trainer": trainer, "data": {"seed": seed}, "reward": {"weights": {}}}
    record_run(OmegaConf.create(config), 0)
    folder.mkdir(parents=True, exist_ok=True)
    log.write_text("".join(json.dumps(line) + "\n" for line in metric_lines(steps, rng)))
    for step in range(1, steps + 1):
        rows = [
            sample_row(
                f"group{group}-{step}_{session}_0",
                fields(rng, group, images, hostile, length),
                step,
                lambda ids: "".join("<end>" if n == END else WORDS[n] for n in ids),
                frozenset({END}),
            )
            for group in range(groups)
            for session in range(SIZE)
        ]
        write_rows(rows, checkpoints / "rollouts" / f"{step}.jsonl")
        if images:
            pixels = rng.integers(0, 256, (8, 8, 8, 3), dtype=np.uint8)
            sheet = [(n, f"a handwritten {n}", float(rng.random()), pixels[n]) for n in range(8)]
            log_contact_sheet(sheet, SimpleNamespace(logger={}), checkpoints / "images", step)
    return checkpoints


def fields(rng, group, images, hostile, length):
    """What TransferQueue has of a row."""
    end = int(rng.integers(length // 2, length))
    tokens = [int(rng.integers(0, len(WORDS))) for _ in range(end)] + [END] * (length - end)
    score = float(rng.integers(0, 2))
    return {
        "responses": tokens,
        "response_mask": [1] * length,
        "rm_scores": [0.0] * (length - 1) + [score],
        "advantages": [score - 0.5] * length,
        "extra_fields": {
            "reveal_step": [int(n) for n in rng.permutation(length)],
            "reward_extra_info": {"acc": score, "format": float(rng.random()), "reward_failed": 0.0},
        },
        "raw_prompt": [{"role": "user", "content": HOSTILE if hostile else f"question {group}: 5 + {group} ="}],
        "extra_info": {"modality": "t2i" if images else "text"},
        "reward_model": {"ground_truth": HOSTILE if hostile else str(5 + group)},
        "data_source": "arithmetic",
        "index": group,
    }


def metric_lines(steps, rng):
    """verl's file logger: a validation at step 0, then a line per step."""
    yield {"step": 0, "data": {"val-core/arithmetic/acc/mean@1": 0.25, "val-aux/lost_samples": 0.0}}
    for step in range(1, steps + 1):
        data = {
            "critic/score/mean": 0.5 + step / 100 + float(rng.normal() / 50),
            "critic/score/min": 0.0,
            "critic/score/max": 1.0,
            "reward/acc": 0.5,
            "reward/failed_samples": 0.0,
            "actor/kl_loss": 0.01 * step,
            "actor/level_1/kl_loss": 0.008 * step,
            "actor/level_2/kl_loss": 0.012 * step,
            "actor/pg_clipfrac": 0.01,
            "rollout/actor_log_prob_gap": 1e-4,
            "response_length/mean": 8.0,
            "perf/throughput": 900.0 + step,
            "timing_s/gen": 2.0,
            "timing_s/update_actor": 3.0,
            "timing_s/step": 6.0,
        }
        yield {"step": step, "data": data}
