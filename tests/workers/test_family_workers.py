"""Training worker and rollout server with models made of transformers' decoders: one step, a weight sync, answers."""

import asyncio
import sys
from pathlib import Path

import pytest
import torch
from family_models import save_checkpoint

sys.path.insert(0, str(Path(__file__).parent))
import ranks
from transformers import AutoModelForCausalLM, AutoTokenizer

BIDIRECTIONAL = ["dream", "a2d_qwen3", "lladamoe"]
BLOCKS = ["sdar", "sdar_moe", "llada2_moe", "fast_dllm_v2"]
NAMES = [*BIDIRECTIONAL, *BLOCKS]
SAMPLER = "actor_rollout_ref.rollout.sampler"
BLOCK_CAUSAL = [f"{SAMPLER}.name=block_causal", f"~{SAMPLER}.options.steps", f"~{SAMPLER}.options.block_length"]
STEP = [
    "actor_rollout_ref.rollout.n=2",
    "actor_rollout_ref.actor.ppo_mini_batch_size=4",
    "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=4",
    "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=4",
    "actor_rollout_ref.actor.optim.lr=0.01",
    "actor_rollout_ref.actor.optim.lr_warmup_steps=0",
]
BFLOAT16 = [
    "actor_rollout_ref.actor.fsdp_config.mixed_precision={param_dtype: bf16, reduce_dtype: fp32, buffer_dtype: fp32}",
    "actor_rollout_ref.rollout.dtype=bfloat16",
]
LORA = [f"actor_rollout_ref.model.{key}" for key in ("lora_rank=4", "lora_alpha=16", "target_modules=all-linear")]
CHECKPOINTING = ["actor_rollout_ref.model.enable_gradient_checkpointing=true"]


def step_and_serve(folder, overrides, batch, **job):
    """Log-probabilities of the actor before a step, and of actor and server after a step and a weight sync."""
    from maskgrpo_plugin.workers.rollout.server import DiffusionServer
    from maskgrpo_plugin.workers.scoring import Canvases

    config = ranks.compose_config(folder, *overrides, **job)
    worker = ranks.start_worker(config, "actor_rollout")
    server = DiffusionServer(config.actor_rollout_ref.rollout, config.actor_rollout_ref.model, 0)
    worker.rollout._server = ranks.InProcess(server)
    rows = [prompt + response for prompt, response in zip(batch["prompts"], batch["responses"], strict=True)]
    ids, places, targets = [], [], []
    for prompt, row in zip(batch["prompts"], rows, strict=True):
        hidden = range(len(prompt) + 1, len(row), 2)
        places += [len(ids) + n for n in hidden]
        targets += [row[n] for n in hidden]
        ids += [server.family.mask_token_id if n in hidden else token for n, token in enumerate(row)]
    clean = [token for row in rows for token in row] if server.model.block_length else None
    canvases = Canvases(ids, [len(row) for row in rows], places, targets, clean)
    before = worker.score(canvases)
    ranks.train(worker, config, batch)

    async def serve():
        await worker.update_weights(global_steps=1, mode="naive")
        asked = [
            server.generate("r", prompt, {"temperature": 1.0, "seed": row})
            for row, prompt in enumerate(batch["prompts"])
        ]
        answers = [output.token_ids for output in await asyncio.gather(*asked)]
        return await server.score(canvases), answers

    served, answers = asyncio.run(serve())
    after = worker.score(canvases)
    return {
        "canvases": {"ids": ids, "lengths": canvases.lengths, "places": places, "targets": targets, "clean": clean},
        "before": before.log_probs,
        "after": after.log_probs,
        "served": served.log_probs,
        "drift": [after.routing_difference(served), after.routing_difference(before)],
        "answers": answers,
        "mask": server.family.mask_token_id,
        "vocabulary": server.family.vocabulary,
    }


@pytest.fixture(scope="module")
def run_folder(tiny_run, tmp_path_factory):
    """The data of the tiny run, and a checkpoint of each family."""
    folder = tmp_path_factory.mktemp("family_run")
    (folder / "data").symlink_to(tiny_run / "data")
    (folder / "model").symlink_to(tiny_run / "model")
    tokenizer = AutoTokenizer.from_pretrained(tiny_run / "model")
    for name in NAMES:
        save_checkpoint(name, folder / name, tokenizer, initializer_range=0.15)
    return folder


def overrides_of(folder, name):
    return [*STEP, f"actor_rollout_ref.model.path={folder / name}", *(BLOCK_CAUSAL if name in BLOCKS else [])]


@pytest.fixture(scope="module")
def results(run_folder, tmp_path_factory):
    """By name of the family, and `dream_bfloat16`."""
    cases = {name: overrides_of(run_folder, name) for name in NAMES}
    cases["dream_bfloat16"] = [*cases["dream"], *BFLOAT16]
    cases["sdar_lora"] = [*cases["sdar"], *LORA]
    cases["dream_checkpointing"] = [*cases["dream"], *CHECKPOINTING]
    out = tmp_path_factory.mktemp("out")
    (found,) = ranks.run_ranks(1, run_folder, list(cases.values()), ranks.make_batch(8), out, step_and_serve)
    return dict(zip(cases, found, strict=True))


def test_two_ranks_hold_the_model_of_one(run_folder, results, tmp_path):
    overrides = [overrides_of(run_folder, name) for name in NAMES]
    found = ranks.run_ranks(2, run_folder, overrides, ranks.make_batch(8), tmp_path, step_and_serve)
    for rank in found:
        for name, result in zip(NAMES, rank, strict=True):
            one = {key: torch.tensor(results[name][key]) for key in ("before", "after")}
            torch.testing.assert_close(torch.tensor(result["before"]), one["before"], atol=1e-5, rtol=0)
            torch.testing.assert_close(torch.tensor(result["served"]), torch.tensor(result["after"]), atol=1e-5, rtol=0)
            assert (torch.tensor(result["after"]) - one["before"]).abs().max() > 0.01


def expected_log_probs(folder, canvases):
    """Row by row, all logits, the shift written out; of block-causal models block by block, behind the clean tokens."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    shift, found, start = getattr(model.config, "logits_shift", 0), [], 0
    targets = dict(zip(canvases["places"], canvases["targets"], strict=True))
    for length in canvases["lengths"]:
        ids = canvases["ids"][start : start + length]
        for first in range(0, length, model.block_length or length):
            last = min(first + (model.block_length or length), length)
            seen = ids if model.block_length is None else canvases["clean"][start : start + first] + ids[first:last]
            with torch.no_grad():
                log_softmax = model(torch.tensor([seen])).logits[0].log_softmax(-1)
            found += [log_softmax[n - shift, targets[start + n]] for n in range(first, last) if start + n in targets]
        start += length
    return torch.stack(found)


@pytest.mark.parametrize("name", NAMES)
def test_the_actor_gives_the_log_probabilities_of_the_checkpoint(run_folder, results, name):
    expected = expected_log_probs(run_folder / name, results[name]["canvases"])
    torch.testing.assert_close(torch.tensor(results[name]["before"]), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", [*NAMES, "dream_bfloat16", "sdar_lora"])
def test_after_a_step_the_server_gives_the_actors_log_probabilities(results, name):
    before, after, served = (torch.tensor(results[name][key]) for key in ("before", "after", "served"))
    assert (after - before).abs().max() > 0.01
    torch.testing.assert_close(served, after, atol=1e-3 if name.endswith("16") else 1e-5, rtol=0)


def test_checkpointing_changes_nothing(results):
    plain, checkpointed = (torch.tensor(results[name]["after"]) for name in ("dream", "dream_checkpointing"))
    torch.testing.assert_close(plain, checkpointed, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", NAMES)
def test_the_server_answers_with_tokens_of_the_vocabulary_and_no_mask(results, name):
    answers = results[name]["answers"]
    assert len(answers) == 8 and len({tuple(answer) for answer in answers}) > 1
    for answer in answers:
        assert answer and all(0 <= token < results[name]["vocabulary"] for token in answer)
        assert results[name]["mask"] not in answer


@pytest.mark.parametrize("name", NAMES)
def test_the_server_chooses_the_actors_experts(results, name):
    served, before = results[name]["drift"]
    assert (served, before) == (None, None) if "moe" not in name else served == 0 < before < 1
