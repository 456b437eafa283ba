"""Weight syncs under LoRA: the adapter beside its base serves what merged weights serve, and little is sent for it."""

import asyncio
import itertools
import sys
from pathlib import Path

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM

sys.path.insert(0, str(Path(__file__).parent))
import ranks

from maskgrpo_plugin.workers.rollout.server import DiffusionServer
from maskgrpo_plugin.workers.rollout.transformers_server import TransformersServer
from maskgrpo_plugin.workers.rollout.weight_transfer import packed_bytes, send_weights

LORA = [
    "actor_rollout_ref.model.lora_rank=4",
    "actor_rollout_ref.model.lora_alpha=8",
    "actor_rollout_ref.model.lora.merge=false",
]
TRAINING = [
    "actor_rollout_ref.rollout.n=2",
    "actor_rollout_ref.actor.ppo_mini_batch_size=4",
    "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=4",
    "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=4",
    "actor_rollout_ref.actor.optim.lr=0.05",
]
LAYERED = ["actor_rollout_ref.rollout.load_format=auto", "actor_rollout_ref.rollout.layered_summon=true"]
MODELS = {DiffusionServer: ("quickstart", "model"), TransformersServer: ("quickstart_ar", "model_ar")}
both_servers = pytest.mark.parametrize("cls", MODELS)


@pytest.fixture(scope="module")
def batch():
    return ranks.make_batch(8, vocabulary=23)


@pytest.fixture(scope="module")
def syncs(tiny_run, batch, tmp_path_factory):
    """By the number of ranks: for each rank the syncs with a base that is sent, and with one that is loaded."""
    jobs = [[*TRAINING, *LORA], [*TRAINING, *LORA, *LAYERED]]
    return {
        world: ranks.run_ranks(world, tiny_run, jobs, batch, tmp_path_factory.mktemp("syncs"), ranks.lora_syncs)
        for world in (1, 2)
    }


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("job", [0, 1])
def test_after_training_the_adapter_serves_what_merged_weights_serve(syncs, world, job):
    for rank in range(world):
        steps = syncs[world][rank][job]
        for step in steps:
            torch.testing.assert_close(step["adapter"]["logits"], step["merged"]["logits"], atol=1e-5, rtol=0)
            assert step["adapter"]["answers"] == step["merged"]["answers"]
        for earlier, later in itertools.pairwise(steps):
            moved = [b - a for a, b in zip(earlier["adapter"]["logits"], later["adapter"]["logits"], strict=True)]
            assert max(change.abs().max() for change in moved) > 0.05


@pytest.mark.parametrize("world", [1, 2])
def test_the_base_is_sent_once_and_then_the_adapter_alone(tiny_run, syncs, world):
    model = AutoModelForCausalLM.from_pretrained(tiny_run / "model")
    layers = [m for name, m in model.named_modules() if name.endswith(("_proj", "attn_out"))]
    adapter_bytes = 4 * sum(4 * (layer.in_features + layer.out_features) for layer in layers)
    for rank in range(world):
        sent, loaded = syncs[world][rank]
        base, *_ = sent[0]["arrived"]
        assert {name.replace(".base_layer", "") for name in base["names"]} == set(model.state_dict())
        assert [len(step["arrived"]) for step in sent] == [2, 1, 1]
        assert [len(step["arrived"]) for step in loaded] == [1, 1, 1]
        for step in [*sent, *loaded]:
            adapter = step["arrived"][-1]
            assert len(adapter["names"]) == 2 * len(layers)
            assert all(".lora_A." in name or ".lora_B." in name for name in adapter["names"])
            assert adapter["bytes"] == adapter_bytes


def make_server(folder, cls, *overrides, load_format="auto"):
    options = [f"actor_rollout_ref.rollout.load_format={load_format}", *LORA, *overrides]
    config = ranks.compose_config(folder, *options, name=MODELS[cls][0])
    return cls(config.actor_rollout_ref.rollout, config.actor_rollout_ref.model, 0)


def make_adapter(folder, cls, seed=0):
    """The server's model under an adapter with random weights, as the training process holds it."""
    torch.manual_seed(seed)
    targets = ["q_proj", "v_proj", "attn_out", "o_proj", "up_proj"]
    model = AutoModelForCausalLM.from_pretrained(folder / MODELS[cls][1])
    settings = peft.LoraConfig(
        r=2, lora_alpha=6, target_modules=targets, init_lora_weights=False, task_type="CAUSAL_LM"
    )
    return peft.get_peft_model(model, settings).eval()


def adapter_tensors(model):
    return peft.get_peft_model_state_dict(model)


async def send(server, tensors, model=None, base_sync_done=True):
    settings = (
        {"peft_config": model.peft_config["default"].to_dict(), "base_sync_done": base_sync_done} if model else {}
    )

    async def deliver(bucket):
        await server.receive_bucket(bucket, **settings)

    await send_weights(tensors.items(), deliver, bucket_bytes=512, device=torch.device("cpu"))


def run(coroutine):
    return asyncio.run(asyncio.wait_for(coroutine, 60))


def assert_serves(server, model):
    tokens = torch.tensor([[1, 10, 11, 19, 12, 13, 21]])
    with torch.inference_mode():
        torch.testing.assert_close(server.model(tokens).logits, model(tokens).logits, atol=1e-5, rtol=0)


@both_servers
def test_each_sync_replaces_the_adapter_before_it(tiny_run, cls):
    server = make_server(tiny_run, cls)
    for seed in (1, 2):
        model = make_adapter(tiny_run, cls, seed)
        run(send(server, adapter_tensors(model), model))
        assert_serves(server, model)
    assert server.has_weights and not any(p.requires_grad for p in server.model.parameters())


@both_servers
def test_adapters_that_came_before_leave_no_trace_in_bfloat16(tiny_run, cls):
    bfloat16 = "actor_rollout_ref.rollout.dtype=bfloat16"
    used, new = (make_server(tiny_run, cls, bfloat16) for _ in range(2))
    layer = next(name for name, _ in new.model.named_modules() if name.endswith("up_proj"))
    base = new.model.get_parameter(f"{layer}.weight").clone()
    for seed in range(4):
        model = make_adapter(tiny_run, cls, seed)
        run(send(used, adapter_tensors(model), model))
    run(send(new, adapter_tensors(model), model))
    got, expected = used.model.state_dict(), new.model.state_dict()
    assert sorted(got) == sorted(expected)
    for name in expected:
        assert torch.equal(got[name], expected[name]), name
    assert torch.equal(got[f"{layer}.base_layer.weight"], base)


def test_block_caches_work_under_an_adapter(tiny_run):
    server = make_server(tiny_run, DiffusionServer, "actor_rollout_ref.rollout.sampler.options.cache=dual")
    merged = make_server(tiny_run, DiffusionServer, "actor_rollout_ref.rollout.sampler.options.cache=dual")
    model = make_adapter(tiny_run, DiffusionServer)

    async def answer(server, *sent):
        await send(server, *sent)
        output = await server.generate("r", [1, 10, 11, 19, 12], {"temperature": 0.0, "seed": 1})
        return output.token_ids, output.extra_fields["reveal_step"]

    expected = run(answer(merged, make_adapter(tiny_run, DiffusionServer).merge_and_unload().state_dict()))
    assert run(answer(server, adapter_tensors(model), model)) == expected


def test_an_adapter_before_its_base_is_an_error(tiny_run):
    server = make_server(tiny_run, DiffusionServer, load_format="dummy")
    model = make_adapter(tiny_run, DiffusionServer)
    with pytest.raises(RuntimeError, match="before its base"):
        run(send(server, adapter_tensors(model), model))
    run(send(server, AutoModelForCausalLM.from_pretrained(tiny_run / "model").state_dict(), model, False))
    assert not server.has_weights
    run(send(server, adapter_tensors(model), model))
    assert_serves(server, model)


def test_an_adapter_that_is_not_whole_or_not_the_models_is_an_error(tiny_run):
    server = make_server(tiny_run, DiffusionServer)
    model = make_adapter(tiny_run, DiffusionServer)
    tensors = adapter_tensors(model)
    name = "base_model.model.model.transformer.blocks.1.q_proj.lora_B.weight"
    faults = {
        "left out 1 LoRA tensors.*blocks.1.q_proj.lora_B": {key: t for key, t in tensors.items() if key != name},
        "ff_out.lora_A.*does not have": tensors | {name.replace("q_proj.lora_B", "ff_out.lora_A"): tensors[name]},
        r"lora_B.*of shape \(32, 1\)": tensors | {name: tensors[name][:, :1]},
    }
    for message, sent in faults.items():
        with pytest.raises((RuntimeError, KeyError, ValueError), match=message):
            run(send(server, sent, model))
        assert not server.has_weights
    with pytest.raises(RuntimeError, match="merged weights"):
        run(send(server, AutoModelForCausalLM.from_pretrained(tiny_run / "model").state_dict()))
    run(send(server, tensors, model))
    assert_serves(server, model)


@both_servers
@pytest.mark.parametrize("load_format", ["auto", "dummy"])
def test_base_and_adapter_survive_a_sleep_that_frees_their_memory(tiny_run, cls, load_format):
    server = make_server(tiny_run, cls, load_format=load_format)
    model, later = make_adapter(tiny_run, cls), make_adapter(tiny_run, cls, 1)
    base = AutoModelForCausalLM.from_pretrained(tiny_run / MODELS[cls][1])
    cpu = torch.device("cpu")
    server.weights.release()  # verl's trainer sends replicas to sleep before the first sync
    server.weights.restore(cpu)
    assert server.has_weights == (load_format == "auto")
    if load_format == "dummy":
        run(send(server, base.state_dict(), model, False))
    run(send(server, adapter_tensors(model), model))
    for current in (model, later):
        server.weights.release()
        assert all(parameter.is_meta for parameter in server.model.parameters())
        assert not server.has_weights
        with pytest.raises(RuntimeError, match="sleeps"):
            run(send(server, adapter_tensors(model), model))
        server.weights.restore(cpu)
        run(send(server, adapter_tensors(current), current))
        assert_serves(server, current)
    server.weights.release()
    server.weights.restore(cpu)
    assert server.has_weights
    assert_serves(server, later)


@pytest.mark.parametrize("frees", [True, False])
def test_a_sleep_beside_training_frees_memory_unless_told_not_to(tiny_run, frees):
    server = make_server(tiny_run, DiffusionServer, f"actor_rollout_ref.rollout.free_cache_engine={frees}")
    server.device = torch.device("cuda:0")  # only told to the server: on the CPU it frees nothing
    run(server.sleep())
    assert server.has_weights == (not frees)
    server.device = torch.device("cpu")
    run(server.wake_up())
    assert server.has_weights


def test_merged_weights_are_forgotten_in_a_sleep(tiny_run):
    server = make_server(tiny_run, DiffusionServer, "actor_rollout_ref.model.lora.merge=true")
    server.weights.release()
    server.weights.restore(torch.device("cpu"))
    assert not server.has_weights


def test_a_bucket_of_the_packed_size_holds_all_tensors():
    tensors = [torch.zeros(3), torch.zeros(5, dtype=torch.bfloat16), torch.zeros(0)]
    assert packed_bytes(tensors) == 16 + 16
    assert packed_bytes([]) > 0
