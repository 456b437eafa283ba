"""The rollout servers: a request's answer depends on the request alone; weights arrive whole or not at all."""

import asyncio
import shutil
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
import ranks

from maskgrpo_plugin.diffusion.samplers.record import FIELDS
from maskgrpo_plugin.workers.rollout.model_weights import allocate_parameters, release_parameters
from maskgrpo_plugin.workers.rollout.server import DiffusionServer
from maskgrpo_plugin.workers.rollout.transformers_server import TransformersServer
from maskgrpo_plugin.workers.rollout.weight_transfer import send_weights
from maskgrpo_plugin.workers.scoring import Canvases

PROMPTS = [[1, 10, 11, 19, 12, 13, 21], [1, 10, 19, 12, 21], [1, 14, 15, 16, 19, 12, 13, 17, 21], [1, 10, 11, 19, 12]]


def make_server(folder, cls=DiffusionServer, *overrides):
    name = "quickstart" if cls is DiffusionServer else "quickstart_ar"
    config = ranks.compose_config(folder, "actor_rollout_ref.rollout.load_format=auto", *overrides, name=name)
    return cls(config.actor_rollout_ref.rollout, config.actor_rollout_ref.model, 0)


def run(coroutine):
    return asyncio.run(asyncio.wait_for(coroutine, 240))


async def ask(server, numbers, temperature):
    requests = [server.generate(f"r{n}", PROMPTS[n], {"temperature": temperature, "seed": 100 + n}) for n in numbers]
    return [output.token_ids for output in await asyncio.gather(*requests)]


@pytest.mark.parametrize("cls", [DiffusionServer, TransformersServer])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_an_answer_does_not_depend_on_what_it_is_batched_with(tiny_run, cls, temperature):
    server = make_server(tiny_run, cls)

    async def go():
        alone = [(await ask(server, [n], temperature))[0] for n in range(4)]
        assert (await server.pop_metrics())["batch_fill"] == pytest.approx(1 / server.config.max_num_seqs)
        together = await ask(server, [3, 1, 0, 2], temperature)
        return alone, together, await server.pop_metrics()

    alone, together, metrics = run(go())
    assert together == [alone[n] for n in (3, 1, 0, 2)]
    assert metrics["requests"] == 4
    assert all(1 <= len(answer) <= 8 for answer in alone)
    if cls is DiffusionServer:
        assert all(len(answer) == 8 for answer in alone)
        assert server.model.config.mask_token_id not in {token for answer in alone for token in answer}


def test_waiting_requests_take_the_places_of_rows_that_ended(tiny_run):
    server = make_server(tiny_run)
    narrow = make_server(tiny_run, DiffusionServer, "actor_rollout_ref.rollout.max_num_seqs=2")
    numbers = [2, 0, 1, 3, 0, 1, 2]

    async def go():
        server.stop_token_ids = []
        first_blocks = [answer[:4] for answer in await ask(server, range(4), 1.0)]
        some = [token for block in first_blocks for token in block if not all(token in b for b in first_blocks)]
        server.stop_token_ids = narrow.stop_token_ids = some[:1]
        alone = [(await ask(server, [n], 1.0))[0] for n in range(4)]
        return alone, await ask(narrow, numbers, 1.0), narrow.queue.metrics

    alone, together, metrics = run(go())
    assert together == [alone[n] for n in numbers]
    assert metrics.requests == len(numbers) and metrics.batches < 4
    assert metrics.summary(2)["batch_fill"] > 0.8


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on the CPU")
def test_compiled_layers_give_the_same_answers(tiny_run):
    plain = make_server(tiny_run)
    compiled = make_server(tiny_run, DiffusionServer, "actor_rollout_ref.rollout.compile=true")
    graphs = torch._dynamo.utils.counters["stats"]
    before = graphs["unique_graphs"]
    assert run(ask(compiled, [0, 1], 0.0)) == run(ask(plain, [0, 1], 0.0))
    assert graphs["unique_graphs"] > before


def test_another_seed_gives_another_answer(tiny_run):
    server = make_server(tiny_run)

    async def go():
        return [
            (await server.generate("r", PROMPTS[0], {"temperature": 1.0, "seed": seed})).token_ids for seed in range(4)
        ]

    assert len({tuple(answer) for answer in run(go())}) > 1


def test_answers_tell_the_reveal_step_of_each_token(tiny_run):
    server = make_server(tiny_run)
    output = run(server.generate("r", PROMPTS[0], {"temperature": 1.0, "seed": 1}))
    reveal = output.extra_fields["reveal_step"]
    assert len(reveal) == len(output.token_ids) == 8
    assert all(step < 4 for step in reveal[:4])
    assert output.extra_fields["model_calls"] <= 8


def test_answers_carry_the_samplers_record_where_it_is_asked_for(tiny_run):
    options = "actor_rollout_ref.rollout.sampler.options={steps: 8, block_length: 4, top_k: 3}"
    plain = make_server(tiny_run, DiffusionServer, options)
    recording = make_server(tiny_run, DiffusionServer, options, "actor_rollout_ref.rollout.calculate_log_probs=true")

    def answer(server, temperature):
        return run(server.generate("r", PROMPTS[0], {"temperature": temperature, "seed": 1}))

    without, output = answer(plain, 0.7), answer(recording, 0.7)
    assert without.token_ids == output.token_ids
    fields = {name: output.extra_fields[name] for name in FIELDS}
    assert not set(FIELDS) & {*without.extra_fields} and not set(FIELDS) & {*answer(recording, 0.0).extra_fields}
    log_prob, entropy, allowed = fields.values()
    assert log_prob.shape == entropy.shape == (8,) and allowed.shape == (8, 3)
    for n, token in enumerate(output.token_ids):
        revealed = output.extra_fields["reveal_step"][n] >= 0
        assert (token in allowed[n]) == revealed == (log_prob[n] < 0)


@pytest.mark.parametrize("cls", [DiffusionServer, TransformersServer])
def test_weights_arrive_in_small_buckets(tiny_run, cls):
    source = make_server(tiny_run, cls)
    server = make_server(tiny_run, cls, "actor_rollout_ref.rollout.load_format=dummy")

    async def go():
        with pytest.raises(RuntimeError, match="before it had weights"):
            await server.generate("r", PROMPTS[0], {"temperature": 0.0, "seed": 1})
        weights = source.model.state_dict().items()
        await send_weights(weights, server.receive_bucket, bucket_bytes=2048, device=torch.device("cpu"))
        return await ask(server, range(4), 1.0), await ask(source, range(4), 1.0)

    got, expected = run(go())
    assert got == expected
    tokens = torch.tensor([PROMPTS[0]])
    torch.testing.assert_close(server.model(tokens).logits, source.model(tokens).logits, atol=0, rtol=0)


@pytest.mark.parametrize("cls", [DiffusionServer, TransformersServer])
def test_buffers_survive_while_the_parameters_are_given_back(tiny_run, cls):
    server = make_server(tiny_run, cls)
    weights = {name: value.clone() for name, value in server.model.state_dict().items()}
    tokens = torch.tensor([PROMPTS[0]])
    expected = server.model(tokens).logits
    release_parameters(server.model)
    assert all(parameter.is_meta for parameter in server.model.parameters())
    allocate_parameters(server.model, torch.device("cpu"))
    server.model.load_state_dict(weights)
    torch.testing.assert_close(server.model(tokens).logits, expected, atol=0, rtol=0)


def test_a_weight_sync_that_is_not_whole_is_an_error(tiny_run):
    server = make_server(tiny_run)
    weights = dict(server.model.state_dict())
    left_out = "model.transformer.blocks.0.q_proj.weight"
    partial = [(name, value) for name, value in weights.items() if name != left_out]

    async def send(items):
        await send_weights(items, server.receive_bucket, bucket_bytes=1 << 20, device=torch.device("cpu"))

    with pytest.raises(RuntimeError, match=r"blocks\.0\.q_proj"):
        run(send(partial))
    with pytest.raises(KeyError, match="other"):
        run(send([*weights.items(), ("other.weight", torch.ones(2))]))


def test_sleep_waits_for_the_running_batch_and_wake_up_serves_again(tiny_run):
    server = make_server(tiny_run)

    async def go():
        before = await ask(server, range(4), 1.0)
        pending = asyncio.create_task(ask(server, range(4), 1.0))
        await asyncio.sleep(0)
        await server.sleep()
        await server.wake_up()
        await server.resume_generation()
        return before, await pending

    before, after = run(go())
    assert before == after


def test_an_abort_answers_what_waits(tiny_run):
    server = make_server(tiny_run, DiffusionServer, "actor_rollout_ref.rollout.quiet_ms=5000")

    async def go():
        request = asyncio.create_task(server.generate("r", PROMPTS[0], {"temperature": 0.0, "seed": 1}))
        await asyncio.sleep(0.05)
        await server.abort_all_requests()
        aborted = await request
        await server.resume_generation()
        return aborted

    aborted = run(go())
    assert aborted.stop_reason == "aborted" and aborted.token_ids == []


@pytest.mark.parametrize(
    ("prompt", "seed", "message"),
    [([1, 10, 4000], 1, "token 4000 .* 0 to"), ([1, -1], 1, "token -1"), ([1, 10], 2**63, "seed=.*below 2")],
)
def test_a_request_that_no_model_could_serve_is_refused_before_it_meets_others(tiny_run, prompt, seed, message):
    server = make_server(tiny_run)

    async def go():
        bad = server.generate("bad", prompt, {"temperature": 0.0, "seed": seed})
        return await asyncio.gather(bad, ask(server, [0, 1], 0.0), return_exceptions=True)

    refused, answers = run(go())
    assert isinstance(refused, ValueError)
    with pytest.raises(ValueError, match=message):
        raise refused
    assert answers == run(ask(server, [0, 1], 0.0))


def test_weights_that_come_after_an_abort_wait_for_generation_to_be_resumed(tiny_run):
    server = make_server(tiny_run)

    async def go():
        await server.abort_all_requests()

        async def deliver(bucket):
            await server.receive_bucket(bucket)

        state = server.model.state_dict().items()
        await send_weights(state, deliver, bucket_bytes=1 << 20, device=torch.device("cpu"))
        waiting = asyncio.create_task(ask(server, [0], 0.0))
        await asyncio.sleep(0.3)
        early = waiting.done()
        await server.resume_generation()
        return early, await waiting

    early, answers = run(go())
    assert not early and len(answers) == 1


def test_a_server_scores_tokens_as_its_model_does(tiny_run):
    server = make_server(tiny_run)
    mask = server.family.mask_token_id
    rows = [[1, 10, 19, mask, mask], [1, 14, mask]]
    canvases = Canvases(ids=rows[0] + rows[1], lengths=[5, 3], places=[3, 4, 7], targets=[12, 13, 15])
    with torch.inference_mode():
        first, second = (server.model(torch.tensor([row])).logits[0].log_softmax(-1) for row in rows)
    expected = [first[3, 12], first[4, 13], second[2, 15]]
    assert run(server.score(canvases)).log_probs == pytest.approx([float(value) for value in expected], abs=1e-5)
    assert run(ask(server, [0], 0.0))
