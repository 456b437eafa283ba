"""Whole runs of verl's entry point on the CPU: training, resume after a stop, the autoregressive baseline."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from maskgrpo_plugin.evaluation.checkpoints import merge_shards
from maskgrpo_plugin.run_report.find import find_runs
from maskgrpo_plugin.run_report.metrics import read_metrics

ROOT = Path(__file__).parents[2]
SMALL = [
    "data.train_batch_size=4",
    "actor_rollout_ref.actor.ppo_mini_batch_size=4",
    "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=8",
    "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=8",
    "actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu=8",
    "actor_rollout_ref.rollout.n=4",
    "trainer.test_freq=-1",
    "trainer.val_before_train=false",
]

pytestmark = pytest.mark.slow


def train(folder, run, config, *overrides, timeout=600, clean=True, entry=("verl.trainer.main_ppo", "--config-name")):
    """Run the entry point; returns the logged metrics by step. `clean`: its output, which is kept, may hold no
    traceback.
    """
    run.mkdir(parents=True, exist_ok=True)
    log = run / "log.jsonl"
    command = [sys.executable, "-m", *entry, config]
    environment = os.environ | {"VERL_FILE_LOGGER_PATH": str(log), "HYDRA_FULL_ERROR": "1"}
    result = subprocess.run(
        [*command, f"hydra.run.dir={run}/hydra", *overrides],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    output = result.stdout + result.stderr
    (run / "output.txt").write_text(output)
    assert result.returncode == 0, output[-6000:]
    assert not clean or "Traceback" not in output, output[-6000:]
    return {row["step"]: row["data"] for row in map(json.loads, log.read_text().splitlines())}


def actor_weights(checkpoint):
    """The actor's parameters in a verl FSDP checkpoint of one rank."""
    state = torch.load(checkpoint / "actor" / "model_world_size_1_rank_0.pt", weights_only=False)
    return {name: value.to_local() if hasattr(value, "to_local") else value for name, value in state.items()}


def test_a_resumed_run_equals_one_that_was_not_stopped(tiny_run, tmp_path):
    common = [
        f"quickstart_dir={tiny_run}",
        *SMALL,
        "trainer.save_freq=1",
        "actor_rollout_ref.actor.optim.lr=1e-3",
        "algorithm.estimation.reference_sync_steps=2",
        f"reward.custom_reward_function.path={ROOT}/tests/e2e/varied_reward.py",
    ]
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    metrics = train(
        tiny_run, whole, "quickstart", *common, "trainer.total_training_steps=3", f"trainer.default_local_dir={whole}"
    )
    resumed_options = [f"trainer.default_local_dir={stopped}", "trainer.resume_mode=auto"]
    train(tiny_run, stopped, "quickstart", *common, *resumed_options, "trainer.total_training_steps=2")
    resumed = train(tiny_run, stopped, "quickstart", *common, *resumed_options, "trainer.total_training_steps=3")
    assert sorted(resumed) == [3]
    assert resumed[3]["critic/score/mean"] == metrics[3]["critic/score/mean"]
    assert resumed[3]["actor/kl_loss"] == pytest.approx(metrics[3]["actor/kl_loss"], abs=1e-6)
    merged = merge_shards(whole / "global_step_3" / "actor")
    expected, got = actor_weights(whole / "global_step_3"), actor_weights(stopped / "global_step_3")
    assert sorted(expected) == sorted(got)
    for name in expected:
        torch.testing.assert_close(got[name], expected[name], atol=1e-6, rtol=0)
        assert torch.equal(merged[name], expected[name])
    first_step = actor_weights(whole / "global_step_1")
    assert max((expected[name] - first_step[name]).abs().max() for name in expected) > 1e-4

    assert metrics[2]["actor/level_1/kl_loss"] > 0.0
    assert metrics[3]["actor/level_1/kl_loss"] == pytest.approx(0.0, abs=1e-9)  # the reference was synchronised

    first = metrics[1]
    assert first["actor/level_1/log_ratio_abs_max"] == 0.0
    assert first["actor/level_1/ratio_mean"] == pytest.approx(1.0, abs=1e-6)
    assert first["actor/level_1/mask_ratio"] == pytest.approx(0.8)
    assert first["actor/level_2/mask_ratio"] == pytest.approx(0.999)
    assert first["rollout/requests"] == 16
    assert first["reward/score"] == pytest.approx(first["critic/score/mean"]) and first["critic/score/mean"] > 0
    assert first["reward/reward_failed"] == 0.0
    assert first["actor/level_1/masked_share"] > 0.5
    assert {"rollout/tokens_per_s", "rollout/model_calls_per_token", "rollout/batch_fill"} <= set(first)
    check_what_the_run_left(stopped, resumed[3])


def check_what_the_run_left(folder, last):
    """Record, metrics before the resume, and the samples of the last step with their order of revealing."""
    starts = json.loads((folder / "run.json").read_text())["starts"]
    assert [(start["step"], Path(start["metrics"]).name) for start in starts] == [
        (0, "log.part1.jsonl"),
        (2, "log.jsonl"),
    ]
    assert len((folder / "log.part1.jsonl").read_text().splitlines()) == 2
    assert sorted(file.name for file in (folder / "rollouts").iterdir()) == ["1.jsonl", "2.jsonl", "3.jsonl"]
    rows = [json.loads(line) for line in (folder / "rollouts" / "3.jsonl").read_text().splitlines()]
    assert len(rows) == 16 and len({row["group"] for row in rows}) == 4
    assert sum(row["score"] for row in rows) / 16 == pytest.approx(last["critic/score/mean"])
    for row in rows:
        assert len(row["pieces"]) == len(row["reveal_step"]) and min(row["reveal_step"]) >= 0
        assert row["rewards"]["score"] == pytest.approx(row["score"]) and row["input"].endswith("=")
    (run,) = find_runs([folder])
    assert list(read_metrics(run.metrics).rows) == [1, 2, 3]


def test_the_autoregressive_baseline_trains_on_the_same_data(tiny_run, tmp_path):
    metrics = train(
        tiny_run, tmp_path, "quickstart_ar", f"quickstart_dir={tiny_run}", *SMALL, "trainer.total_training_steps=1"
    )
    assert {"actor/pg_loss", "actor/kl_loss", "critic/score/mean", "rollout/tokens_per_s"} <= set(metrics[1])
    assert metrics[1]["rollout/requests"] == 16


def test_two_steps_of_the_gsm8k_config_with_lora_on_a_tiny_model_under_the_screen(tiny_run, tmp_path):
    metrics = train(
        tiny_run,
        tmp_path,
        "llada_8b_gsm8k_cpu",
        f"trainer.default_local_dir={tmp_path}/run",
        f"actor_rollout_ref.model.path={tiny_run}/model",
        f"data.train_files={tiny_run}/data/train.parquet",
        f"data.val_files={tiny_run}/data/validation.parquet",
        "data.train_batch_size=2",
        "actor_rollout_ref.actor.ppo_mini_batch_size=2",
        "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=6",
        "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=6",  # the first ratio is exact in equal batches
        "data.max_prompt_length=64",
        "data.max_response_length=64",
        "actor_rollout_ref.rollout.sampler.options.steps=32",
        "trainer.total_training_steps=2",
        "trainer.test_freq=-1",
        "trainer.save_freq=-1",
        "trainer.val_before_train=false",
        "trainer.logger=[console]",
        entry=("maskgrpo_plugin", "train"),
    )
    for step in (1, 2):
        assert len([key for key in metrics[step] if key.endswith("/mask_ratio")]) == 12
        assert metrics[step]["actor/level_1/log_ratio_abs_max"] == 0.0
    lines = (tmp_path / "output.txt").read_text().splitlines()
    assert len(lines) <= 60 and "added    trainer.logger=[console,file]" in lines
    assert {"starting Ray", "loading model and data", "training begins"} <= set(lines)
    assert [line.split()[1] for line in lines if line.startswith("step ")][-1] == "2/2"
    log = (tmp_path / "run" / "train.log").read_text()
    assert "step:2 - " in log and "engine is not available" not in log and "target_num_threads" not in log


def test_rollouts_ahead_of_training_keep_the_order_of_revealing(tiny_run, tmp_path):
    metrics = train(
        tiny_run,
        tmp_path,
        "quickstart",
        f"quickstart_dir={tiny_run}",
        *SMALL,
        "trainer.v1.trainer_mode=maskgrpo_colocate_async",
        "method=tracerl",
        f"reward.custom_reward_function.path={ROOT}/tests/e2e/varied_reward.py",
        "trainer.total_training_steps=3",
    )
    assert sorted(metrics) == [1, 2, 3]
    assert sum(metrics[step]["rollout/requests"] for step in metrics) >= 48  # how many are ahead is a matter of timing
    for step in (1, 2, 3):
        assert metrics[step]["actor/level_1/log_ratio_abs_max"] == 0.0
        assert metrics[step]["critic/score/mean"] > 0
        assert metrics[step]["actor/grad_norm"] > 0


@pytest.mark.parametrize("method", ["espo", "spg"])
def test_a_step_of_a_method_whose_loss_is_of_scores(tiny_run, tmp_path, method):
    """ESPO asks old and reference policy and has a KL term of scores; SPG asks neither."""
    metrics = train(
        tiny_run,
        tmp_path,
        "quickstart",
        f"quickstart_dir={tiny_run}",
        *SMALL,
        f"method={method}",
        "algorithm.estimation.mu=2",
        f"reward.custom_reward_function.path={ROOT}/tests/e2e/varied_reward.py",
        "trainer.total_training_steps=1",
    )
    values = metrics[1]
    assert values["actor/level_1/log_ratio_abs_max"] == 0.0 and values["actor/grad_norm"] > 0
    assert ("timing_s/ref" in values) == ("actor/level_1/kl_of_scores" in values) == (method == "espo")


def test_texts_train_while_scorers_raise_hang_and_lose_their_sandbox(tiny_run, tmp_path):
    metrics = train(
        tiny_run,
        tmp_path,
        "quickstart",
        f"quickstart_dir={tiny_run}",
        *SMALL,
        f"reward.custom_reward_function.path={ROOT}/tests/e2e/faulty_reward.py",
        "reward.timeout_s=3",
        "algorithm.on_reward_failure=drop_sample",
        "algorithm.max_lost_share=1",
        "trainer.total_training_steps=2",
        clean=False,  # the scorers' failures are logged with theirs
    )
    assert sorted(metrics) == [1, 2]
    for step in metrics.values():
        assert step["rollout/requests"] == 16
        assert step["reward/failed_samples"] == step["reward/dropped_samples"] == 12
        assert step["reward/reward_failed"] == 12 / 16
        assert step["reward/reward_timed_out"] == step["reward/reward_sandbox_lost"] == 4 / 16
        assert step["actor/level_1/log_ratio_abs_max"] == 0.0


@pytest.mark.parametrize("mode", ["maskgrpo_sync", "maskgrpo_colocate_async"])
def test_images_train_while_a_scorer_fails_for_some_of_them(tiny_digits, tmp_path, mode):
    factory = f"{ROOT}/tests/e2e/brightness.py:Brightness"
    metrics = train(
        tiny_digits,
        tmp_path,
        "digits",
        f"digits_dir={tiny_digits}",
        *SMALL[:-2],
        "reward.image.scorers.digits=null",
        "reward.image.scorers.clip_folder=null",
        f"+reward.image.scorers.bright={{factory: '{factory}'}}",
        f"+reward.image.scorers.fragile={{factory: '{factory}', max_batch: 1, options: {{fail_below: 0.5}}}}",
        "actor_rollout_ref.rollout.sampler.options.cfg_scale=1.5",
        "algorithm.estimation.cfg_scale=1.5",
        "algorithm.max_lost_share=1",
        f"trainer.default_local_dir={tmp_path}",
        f"trainer.v1.trainer_mode={mode}",
        "trainer.total_training_steps=1",
        "trainer.test_freq=1",
        clean=False,  # the scorer's failures are logged with theirs
    )
    step = metrics[1]
    assert step["reward/failed_samples"] > 0 and step["reward/reward_failed"] > 0
    assert step["reward/bright"] > 0 and step["reward/bright_failed"] == 0.0
    assert step["reward/fragile_failed"] == pytest.approx(step["reward/failed_samples"] / 16)
    assert step["actor/level_1/mask_ratio"] == pytest.approx(0.9)
    assert step["actor/level_1/log_ratio_abs_max"] == 0.0
    assert step["response_length/mean"] == 17
    sheet = (tmp_path / "images" / "step_1.png").read_bytes()
    assert sheet.startswith(b"\x89PNG")
