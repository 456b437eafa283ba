"""LoRA at the shipped learning rate: a base in bfloat16 of the width of the 8B model, and the shipped settings.

The actor computes in float32, since most CPUs take minutes in bfloat16; what is held in which type is as shipped.
"""

import asyncio
import shutil
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

sys.path.insert(0, str(Path(__file__).parent))
import ranks

STEPS = 3


@pytest.fixture(scope="module")
def wide_model(tiny_run, tmp_path_factory):
    """A checkpoint with the 8B model's widths, one layer, and the tiny model's vocabulary."""
    folder = tmp_path_factory.mktemp("wide") / "model"
    shutil.copytree(tiny_run / "model", folder, ignore=shutil.ignore_patterns("*.safetensors"))
    config = AutoConfig.from_pretrained(
        folder, d_model=4096, n_heads=32, n_kv_heads=32, n_layers=1, mlp_hidden_size=4096, max_sequence_length=4096
    )
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    return folder


def adapter_of(module):
    found = {}
    for name, parameter in module.named_parameters():
        if "lora_" in name:
            whole = parameter.full_tensor() if hasattr(parameter, "full_tensor") else parameter
            found[name.removeprefix("base_model.model.")] = whole.detach().clone()
    return found


def same_tensors(model, under_adapter):
    """Whether a model under an adapter has the other's parameters to the bit."""
    own = {n.replace(".base_layer", ""): p for n, p in under_adapter.state_dict().items() if "lora_" not in n}
    expected = model.state_dict()
    return sorted(own) == sorted(expected) and all(torch.equal(own[name], p) for name, p in expected.items())


def learn_and_sync(folder, overrides, batch, **job):
    """Training steps of a LoRA actor and a weight sync; the adapter before and after, and the server's."""
    config = ranks.compose_config(folder, *overrides, **job)
    worker = ranks.start_worker(config, "actor_rollout")
    from maskgrpo_plugin.workers.rollout.server import DiffusionServer

    server = DiffusionServer(config.actor_rollout_ref.rollout, config.actor_rollout_ref.model, 0)
    worker.rollout._server = ranks.InProcess(server)
    module = worker.actor.engine.module
    base = {name: p.dtype for name, p in module.named_parameters() if "lora_" not in name}
    before = adapter_of(module)
    for _ in range(STEPS):
        ranks.train(worker, config, batch)
    asyncio.run(worker.update_weights(global_steps=STEPS, mode="naive"))
    moments = {
        v.dtype for state in worker.actor.engine.optimizer.state.values() for k, v in state.items() if k != "step"
    }
    return {
        "base": [str(dtype) for dtype in set(base.values())],
        "moments": [str(dtype) for dtype in moments],
        "before": before,
        "after": adapter_of(module),
        "served": adapter_of(server.model),
        "base_kept": same_tensors(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16), server.model),
    }


@pytest.fixture(scope="module")
def learned(tiny_run, wide_model, tmp_path_factory):
    batch = ranks.make_batch(2, vocabulary=23)
    overrides = [
        f"data.train_files={tiny_run}/data/train.parquet",
        f"data.val_files={tiny_run}/data/validation.parquet",
        "data.train_batch_size=1",
        "trainer.device=cpu",
        "trainer.n_gpus_per_node=1",
        "ray_kwargs.ray_init.num_cpus=64",
        "+ray_kwargs.ray_init.num_gpus=1",
        "actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu=2",
        "actor_rollout_ref.rollout.n=2",
        "actor_rollout_ref.actor.ppo_mini_batch_size=1",
        "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=2",
        "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=2",
        "algorithm.estimation.mu=1",
        "+actor_rollout_ref.actor.fsdp_config.mixed_precision={param_dtype: fp32, reduce_dtype: fp32}",
    ]
    job = {"name": "llada_8b_gsm8k", "folder_key": "actor_rollout_ref.model.path"}
    out = tmp_path_factory.mktemp("learned")
    return ranks.run_ranks(1, wide_model, [overrides], batch, out, learn_and_sync, **job)[0][0]


def test_the_base_is_in_bfloat16_and_the_adapter_with_its_moments_in_float32(learned):
    assert learned["base"] == ["torch.bfloat16"] and learned["moments"] == ["torch.float32"]
    assert {p.dtype for p in learned["after"].values()} == {torch.float32}


def test_nearly_every_entry_of_the_adapter_moves(learned):
    moved = [(learned["after"][name] != start).float().mean().item() for name, start in learned["before"].items()]
    assert len(moved) == 12 and min(moved) >= 0.99


def test_the_server_computes_with_the_actors_update(learned):
    """scale·B·A of the server against the actor's; the base is the checkpoint's to the bit."""
    assert learned["base_kept"]
    names = [name for name in learned["after"] if "lora_A" in name]
    assert len(names) == 6
    for name in names:
        own, served = (
            side[name.replace("lora_A", "lora_B")].double() @ side[name].double()
            for side in (learned["after"], learned["served"])
        )
        assert own.norm() > 0
        assert (served - own).norm() < 0.01 * own.norm()
