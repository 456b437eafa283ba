"""What can be evaluated: published folders, verl's shards of one and several ranks, LoRA in both forms."""

import json
import shutil

import peft
import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard
from torch.testing._internal.distributed.fake_pg import FakeStore
from transformers import AutoModelForCausalLM

from maskgrpo_plugin.errors import OptionError
from maskgrpo_plugin.evaluation.checkpoints import merge_shards, resolve_checkpoint


def weights(path):
    return AutoModelForCausalLM.from_pretrained(path, dtype="auto").state_dict()


def assert_same(got, expected, **tolerance):
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value, **(tolerance or {"atol": 0, "rtol": 0}))


def write_shards(state, folder, world):
    """Each rank's file of a verl FSDP checkpoint, as its own process group would have written it."""
    folder.mkdir(parents=True, exist_ok=True)
    for rank in range(world):
        dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=world)
        try:
            mesh = init_device_mesh("cpu", (world,), mesh_dim_names=("fsdp",))
            shards = {}
            for name, value in state.items():
                parts = value.chunk(world)
                local = parts[rank] if rank < len(parts) else value[:0]
                shards[name] = DTensor.from_local(
                    local.clone(), mesh, [Shard(0)], run_check=False, shape=value.shape, stride=value.stride()
                )
            torch.save(shards, folder / f"model_world_size_{world}_rank_{rank}.pt")
        finally:
            dist.destroy_process_group()


@pytest.fixture
def actor(tiny_run, tmp_path):
    """The folder that verl writes beside the shards, and the weights of the model."""
    folder = tmp_path / "run" / "global_step_7" / "actor"
    shutil.copytree(tiny_run / "model", folder / "huggingface", ignore=shutil.ignore_patterns("*.safetensors"))
    (tmp_path / "run" / "latest_checkpointed_iteration.txt").write_text("7")
    return folder


def test_a_published_folder_and_a_hub_name_are_taken_as_they_are(tiny_run, tmp_path):
    folder = str(tiny_run / "model")
    assert resolve_checkpoint(folder, tmp_path / "merged") == folder
    assert resolve_checkpoint("GSAI-ML/LLaDA-8B-Instruct", tmp_path / "merged") == "GSAI-ML/LLaDA-8B-Instruct"
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("named", ["run", "run/global_step_7", "run/global_step_7/actor"])
def test_shards_become_the_model_in_its_own_precision(tiny_run, actor, tmp_path, world, named):
    expected = weights(tiny_run / "model")
    write_shards(expected, actor, world)
    merged = resolve_checkpoint(str(tmp_path / named), tmp_path / "merged")
    assert_same(weights(merged), expected)


def test_a_merged_model_is_used_again_until_the_checkpoint_changes(tiny_run, actor, tmp_path):
    state = weights(tiny_run / "model")
    write_shards(state, actor, 1)
    merged = tmp_path / "merged"
    resolve_checkpoint(str(actor), merged)
    written = (merged / "model.safetensors").stat().st_mtime_ns
    resolve_checkpoint(str(actor), merged)
    assert (merged / "model.safetensors").stat().st_mtime_ns == written
    changed = {name: value + 1 for name, value in state.items()}
    write_shards(changed, actor, 1)
    assert_same(weights(resolve_checkpoint(str(actor), merged)), changed)


def test_shards_of_missing_ranks_or_several_runs_are_refused(tiny_run, actor):
    state = weights(tiny_run / "model")
    write_shards(state, actor, 2)
    write_shards(state, actor, 1)
    with pytest.raises(OptionError, match="one file for each rank of one run"):
        merge_shards(actor)
    (actor / "model_world_size_1_rank_0.pt").unlink()
    assert_same(merge_shards(actor), state)
    (actor / "model_world_size_2_rank_1.pt").unlink()
    with pytest.raises(OptionError, match="one file for each rank"):
        merge_shards(actor)


@pytest.fixture
def adapted(tiny_run):
    """The tiny model under a LoRA adapter with random weights, and its output with them merged."""
    model = AutoModelForCausalLM.from_pretrained(tiny_run / "model")
    settings = peft.LoraConfig(r=2, lora_alpha=6, target_modules=["q_proj", "ff_proj"], task_type="CAUSAL_LM")
    model = peft.get_peft_model(model, settings)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    model.peft_config["default"].base_model_name_or_path = str(tiny_run / "model")
    return model, state


def test_a_lora_adapter_is_merged_onto_its_base(tiny_run, adapted, tmp_path):
    model, _ = adapted
    model.save_pretrained(tmp_path / "adapter")
    merged = weights(resolve_checkpoint(str(tmp_path / "adapter"), tmp_path / "merged"))
    assert_same(merged, model.merge_and_unload().state_dict(), atol=1e-6, rtol=1e-6)
    base = weights(tiny_run / "model")
    assert max((merged[name] - base[name]).abs().max() for name in base) > 0.1


def test_an_adapter_without_a_base_is_refused(adapted, tmp_path):
    model, _ = adapted
    model.save_pretrained(tmp_path / "adapter")
    settings = tmp_path / "adapter" / "adapter_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"base_model_name_or_path": None}))
    with pytest.raises(OptionError, match="--base-model"):
        resolve_checkpoint(str(tmp_path / "adapter"), tmp_path / "merged")


@pytest.mark.parametrize("adapter_only", [False, True])
def test_shards_of_a_lora_run_are_merged(tiny_run, adapted, actor, tmp_path, adapter_only):
    model, state = adapted
    kept = {name: value for name, value in state.items() if "lora_" in name or not adapter_only}
    write_shards(kept, actor, 2)
    (actor / "lora_train_meta.json").write_text(json.dumps({"r": 2, "lora_alpha": 6, "task_type": "CAUSAL_LM"}))
    base = str(tiny_run / "model") if adapter_only else None
    merged = weights(resolve_checkpoint(str(actor), tmp_path / "merged", base))
    assert_same(merged, model.merge_and_unload().state_dict(), atol=1e-6, rtol=1e-6)


def test_a_folder_that_is_no_checkpoint_is_refused(tmp_path):
    with pytest.raises(OptionError, match=r"neither config\.json"):
        resolve_checkpoint(str(tmp_path), tmp_path / "merged")
