"""Block-causal decoding, and estimators on block-causal models: what one says of the other."""

import pytest
import torch
from family_models import MASK, VOCABULARY, make_model

from maskgrpo_plugin.diffusion.estimators import Rows, build_estimator
from maskgrpo_plugin.diffusion.monte_carlo import conditional_log_likelihood
from maskgrpo_plugin.diffusion.samplers import build_sampler
from maskgrpo_plugin.diffusion.samplers.choice import truncate
from maskgrpo_plugin.errors import OptionError

FAMILIES = ["sdar", "a2d_qwen3_blocks", "llada2_moe", "fast_dllm_v2"]
LENGTHS = [5, 8, 3, 1]
RESPONSE = 11


@pytest.fixture(scope="module")
def models():
    return {name: make_model(name) for name in FAMILIES}


def prompts(seed=0):
    g = torch.Generator().manual_seed(seed)
    return [torch.randint(0, VOCABULARY - 1, (length,), generator=g) for length in LENGTHS]


def left_padded(rows):
    longest = max(map(len, rows))
    batch = torch.stack([torch.cat([torch.zeros(longest - len(row), dtype=torch.int64), row]) for row in rows])
    mask = torch.stack([torch.arange(longest) >= longest - len(row) for row in rows]).long()
    return batch, mask


def rows_of(output, mask, block_length):
    """A sampler's output after left-padded prompts with this attention mask, as estimators are given it."""
    attended = torch.cat([mask, torch.ones(len(mask), RESPONSE, dtype=torch.int64)], 1).bool()
    response = torch.zeros_like(attended)
    response[:, -RESPONSE:] = True
    return Rows(
        tokens=output.sequences,
        response=response,
        prompt=attended & ~response,
        attended=attended,
        keys=torch.arange(len(mask)),
        mask_token_id=MASK,
        reveal_step=output.reveal_step,
        block_length=block_length,
    )


def seeded(count):
    return [torch.Generator().manual_seed(100 + n) for n in range(count)]


def sampler_of(**options):
    return build_sampler("block_causal", **({"response_length": RESPONSE, "temperature": 1.0} | options))


STYLES = {
    "static": {"steps_per_block": 2},
    "one": {},
    "dynamic": {"parallel": "threshold", "threshold": 0.3},
    "sequential": {"ordering": "sequential"},
    "parts": {"sub_block_length": 2, "parallel": "threshold", "threshold": 0.5},
    "random": {"ordering": "random", "steps_per_block": 3},
    "entropy": {"ordering": "entropy", "top_k": 5, "top_p": 0.9},
    "guided": {"cfg_scale": 0.7},
    "response": {"blocks_from": "response", "steps_per_block": 2},
    "response_guided": {"blocks_from": "response", "cfg_scale": 0.7},
}


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_cache_changes_no_token_and_rows_do_not_depend_on_each_other(models, family, style):
    rows = prompts()
    batch, mask = left_padded(rows)
    outputs = [
        sampler_of(**STYLES[style], cache=cache).generate(
            models[family], batch, mask, mask_token_id=MASK, generator=seeded(len(rows))
        )
        for cache in ("exact", "none")
    ]
    assert torch.equal(outputs[0].sequences, outputs[1].sequences)
    assert torch.equal(outputs[0].reveal_step, outputs[1].reveal_step)
    assert torch.equal(outputs[0].sequences[:, : batch.shape[1]], batch)
    assert not (outputs[0].sequences == MASK).any()
    for n, row in enumerate(rows):
        alone = sampler_of(**STYLES[style]).generate(
            models[family], row[None], mask_token_id=MASK, generator=[seeded(len(rows))[n]]
        )
        assert torch.equal(alone.sequences[0, -RESPONSE:], outputs[0].sequences[n, -RESPONSE:])
        assert torch.equal(alone.row_model_calls, outputs[0].row_model_calls[n : n + 1])


@pytest.mark.parametrize("family", ["sdar", "fast_dllm_v2"])
def test_rows_that_join_and_leave_get_what_they_get_alone(models, family):
    """Two rows begin; when the first has finished a block two more join, one of them with the same prompt."""
    rows = [prompts()[1], prompts()[2], prompts()[0], prompts()[1]]
    stop = 7
    options = {"stop_token_ids": (stop,), "parallel": "threshold", "threshold": 0.4}
    sampler = sampler_of(**options)
    expected = [
        sampler.generate(models[family], row[None], mask_token_id=MASK, generator=[own]).sequences[0, -RESPONSE:]
        for row, own in zip(rows, seeded(4), strict=True)
    ]
    decoder, own, found = sampler.decoder(models[family], mask_token_id=MASK), seeded(4), {}

    def join(numbers):
        batch, mask = left_padded([torch.cat([rows[n], torch.full((RESPONSE,), MASK)]) for n in numbers])
        assert decoder.join(batch, mask, [own[n] for n in numbers]) == numbers

    join([0, 1])
    while decoder.running:
        decoder.decode_block()
        found |= {row.number: row for row in decoder.leave()}
        if len(decoder.rows) and max(row.number for row in decoder.rows) < 2 and 2 not in found:
            join([2, 3])
    assert sorted(found) == [0, 1, 2, 3]
    for n, response in enumerate(expected):
        assert torch.equal(found[n].response, response)
        assert int(found[n].reveal_step.max()) < found[n].model_calls
    ended = [n for n in range(4) if stop in expected[n].tolist()]
    for n in ended:
        place = expected[n].tolist().index(stop)
        block_end = (len(rows[n]) + place) // 4 * 4 + 4 - len(rows[n])
        assert expected[n][block_end:].eq(stop).all()
        assert found[n].reveal_step[block_end:].eq(-1).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_blocks_from_the_response_leave_the_prompts_first_block_short(models, family):
    """A prompt of 6 tokens in blocks of 4: the first block holds 2, and the model is asked under that mask."""
    prompt, block = prompts()[1][:6], 4
    sampler = sampler_of(blocks_from="response", response_length=4, temperature=0.0, steps_per_block=1)
    output = sampler.generate(models[family], prompt[None], mask_token_id=MASK)
    canvas = torch.cat([prompt, torch.full((4,), MASK)])
    if family == "fast_dllm_v2":  # its block's first token is revealed before the others
        assert output.reveal_step[0, 6:].tolist() == [0, 1, 1, 1]
        canvas[6] = output.sequences[0, 6]
    number = (torch.arange(10) + 2) // block
    with torch.no_grad():
        logits = models[family](canvas[None], attention_mask=(number[:, None] >= number)[None, None]).logits[0]
    logits = logits.roll(1, 0) if family == "fast_dllm_v2" else logits
    logits[:, MASK] = float("-inf")
    hidden = canvas == MASK
    assert torch.equal(output.sequences[0][hidden], logits.argmax(-1)[hidden])


@pytest.mark.parametrize("family", FAMILIES)
def test_the_trajectory_estimator_gives_the_log_probabilities_that_the_sampler_drew_from(models, family):
    """Slice by slice: the probability of each token in the step that revealed it, at temperature 1."""
    model, rows = models[family], prompts(seed=1)
    batch, mask = left_padded(rows)
    drawn = torch.zeros(len(rows), batch.shape[1] + RESPONSE)
    told = []

    def on_step(step, tokens, probability):
        told.append(step)
        drawn.add_(probability)

    output = sampler_of(steps_per_block=2).generate(
        model, batch, mask, mask_token_id=MASK, generator=seeded(len(rows)), on_step=on_step
    )
    assert told == list(range(len(told)))
    given = rows_of(output, mask, model.block_length)
    estimator = build_estimator("trajectory", shrink=1)
    passes = estimator.passes(given, seed=0, step=0, update=0)
    assert len(passes) == (3 if family == "fast_dllm_v2" else 2)  # its blocks have a first token of their own
    log_probs = []
    for each in passes:
        with torch.no_grad():
            logits = model(
                each.noisy, attention_mask=given.attended, clean_ids=output.sequences, logits_positions=each.scored
            ).logits
        logits[:, MASK] = float("-inf")  # which the sampler never emits
        values = logits.log_softmax(-1).gather(-1, output.sequences[each.scored].unsqueeze(-1)).squeeze(-1)
        log_probs.append(torch.zeros(each.scored.shape).masked_scatter(each.scored, values))
    found = estimator.fold(passes, log_probs)
    torch.testing.assert_close(found[given.response], drawn.log()[given.response], atol=2e-5, rtol=0)


def test_blocks_of_one_token_give_left_to_right_likelihoods_in_one_pass():
    model = make_model("sdar", block_size=1)
    prompt, response = prompts()[0], prompts(seed=3)[1]
    tokens = torch.cat([prompt, response])
    with torch.no_grad():
        causal = model(torch.cat([tokens[:-1]])[None]).logits[0].log_softmax(-1)
        noisy = [torch.cat([tokens[:n], torch.tensor([MASK])]) for n in range(len(prompt), len(tokens))]
        expected = [float(model(row[None]).logits[0, -1].log_softmax(-1)[tokens[len(row) - 1]]) for row in noisy]
    assert causal.shape[0] == len(tokens) - 1
    found = conditional_log_likelihood(model, prompt, response, mask_token_id=MASK, samples=3)
    assert found == pytest.approx(sum(expected), abs=1e-4)
    rows = Rows(
        tokens=tokens[None],
        response=torch.arange(len(tokens))[None] >= len(prompt),
        prompt=torch.arange(len(tokens))[None] < len(prompt),
        attended=torch.ones(1, len(tokens), dtype=torch.bool),
        keys=torch.zeros(1, dtype=torch.int64),
        mask_token_id=MASK,
        reveal_step=torch.arange(len(tokens))[None] - len(prompt),
        block_length=1,
    )
    (only,) = build_estimator("trajectory").passes(rows, seed=0, step=0, update=0)
    assert only.scored.equal(rows.response) and only.noisy[rows.response].eq(MASK).all()


@pytest.mark.parametrize("sampled", [1, 2, 3])
def test_positions_of_every_block_lie_in_one_pass(sampled):
    """Against the canvas cut off behind each token's block: its mean over u is the sum from left to right, and with as
    many passes as a block has tokens so is every single estimate.
    """
    model = make_model("sdar", block_size=3)
    prompt, response = torch.tensor([9, 4, 11, 6]), torch.tensor([4, 9, 17, 5, 8])  # blocks of two and three tokens
    tokens = torch.cat([prompt, response])
    expected = []
    for n in range(len(prompt), len(tokens)):
        canvas = torch.cat([tokens[:n], torch.full((3 - n % 3,), MASK)])
        with torch.no_grad():
            expected.append(float(model(canvas[None]).logits[0, n].log_softmax(-1)[tokens[n]]))
    draws = 600 if sampled < 3 else 5
    places = torch.arange(len(tokens))
    rows = Rows(
        tokens=tokens.expand(draws, -1),
        response=(places >= len(prompt)).expand(draws, -1),
        prompt=(places < len(prompt)).expand(draws, -1),
        attended=torch.ones(draws, len(tokens), dtype=torch.bool),
        keys=torch.arange(draws),
        mask_token_id=MASK,
        block_length=3,
    )
    passes = build_estimator("positions", sampled=sampled, canvas="full").passes(rows, seed=0, step=0, update=0)
    assert len(passes) == sampled
    sums = []
    for each in passes:
        assert (each.scored.sum(-1) == 2).all()  # one of each block
        with torch.no_grad():
            logits = model(each.noisy, clean_ids=rows.tokens, logits_positions=each.scored).logits
        values = logits.log_softmax(-1).gather(-1, rows.tokens[each.scored].unsqueeze(-1)).view(draws, 2)
        sums.append((values * each.weight[each.scored].view(draws, 2)).sum(-1))
    estimate = torch.stack(sums).mean(0)
    if sampled == 3:
        weights = sum(each.weight for each in passes)[:, len(prompt) :] / 3
        assert (weights[:, 2:] == 1).all() and weights[:, :2].sum(-1).eq(2).all()
    error = 5 * float(estimate.std()) / draws**0.5 + 1e-4
    assert float(estimate.mean()) == pytest.approx(sum(expected), abs=error)


def test_the_likelihood_of_a_block_is_the_mean_over_orders_of_its_tokens():
    """Enumerated: block by block behind the clean ones, each token scored before those that come later in the order."""
    from itertools import permutations

    model = make_model("sdar", block_size=3)
    prompt, response = prompts()[2], torch.tensor([4, 9, 17])
    tokens, total = torch.cat([prompt, response]), 0.0
    orders = list(permutations(range(3)))
    for order in orders:
        canvas = torch.cat([prompt, torch.full((3,), MASK)])
        for place in order:
            with torch.no_grad():
                logits = model(canvas[None]).logits[0, len(prompt) + place]
            total += float(logits.log_softmax(-1)[response[place]]) / len(orders)
            canvas[len(prompt) + place] = tokens[len(prompt) + place]
    found = conditional_log_likelihood(
        model, prompt, response, mask_token_id=MASK, samples=1200, generator=torch.Generator().manual_seed(0)
    )
    assert found == pytest.approx(total, abs=0.15)


def test_the_slices_of_a_trajectory_are_those_of_each_block():
    """A prompt of 2 tokens in blocks of 4: the blocks' steps are [2, 0], [5, 3, 3, 4] and [7, none]."""
    attended = torch.ones(1, 10, dtype=torch.bool)
    response = torch.arange(10)[None] >= 2
    rows = Rows(
        tokens=torch.arange(10)[None],
        response=response,
        prompt=~response,
        attended=attended,
        keys=torch.zeros(1, dtype=torch.int64),
        mask_token_id=MASK,
        reveal_step=torch.tensor([[-1, -1, 2, 0, 5, 3, 3, 4, 7, -1]]),
        block_length=4,
    )

    def slices(**options):
        passes = build_estimator("trajectory", **options).passes(rows, seed=0, step=0, update=0)
        return [each.scored[0].nonzero().flatten().tolist() for each in passes]

    assert slices() == [[3, 5, 6, 8], [2, 7, 9], [4]]
    assert slices(shrink=2) == [[2, 3, 5, 6, 7, 8, 9], [4]]
    assert slices(segments=2, steps=4) == [[3, 5, 6, 7, 8], [2, 4, 9]]
    first = build_estimator("trajectory").passes(rows, seed=0, step=0, update=0)[1].noisy[0]
    assert first.eq(MASK).nonzero().flatten().tolist() == [2, 4, 7, 9]


def test_drawn_tokens_are_among_the_most_probable():
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    kept = {
        (2, 1.0): [0, 1],
        (0, 0.5): [0],
        (0, 0.51): [0, 1],
        (0, 0.95): [0, 1, 2],
        (3, 0.9): [0, 1, 2],
        (0, 1.0): [0, 1, 2, 3],
    }
    for (top_k, top_p), expected in kept.items():
        found = truncate(logits[None], top_k, top_p)[0]
        assert found.isfinite().nonzero().flatten().tolist() == expected
        assert torch.equal(found[expected], logits[expected])


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"steps_per_block": 5}, "steps_per_block=5.*a block of 4 tokens has at most 4 steps"),
        ({"sub_block_length": 3}, "sub_block_length=3.*must divide the blocks of 4"),
        ({"ordering": "entropy", "parallel": "threshold"}, "parallel='threshold'.*needs ordering low_confidence"),
        ({"top_p": 0.0}, "top_p=0.0.*above 0"),
        ({"stop_token_ids": (MASK,)}, "the mask token is never emitted"),
    ],
)
def test_options_that_do_not_fit_are_refused(models, options, line):
    with pytest.raises(OptionError, match=line):
        sampler_of(**options).generate(models["sdar"], prompts()[0][None], mask_token_id=MASK)


def test_models_that_attend_in_both_directions_are_refused():
    with pytest.raises(OptionError, match="attends in both directions"):
        sampler_of().generate(make_model("dream"), prompts()[0][None], mask_token_id=MASK)


def test_visible_tokens_of_a_canvas_stay(models):
    canvas = torch.cat([prompts()[0], torch.tensor([MASK, 5, 6, MASK, 7, 8, 9, 10, 11, 12, MASK])])[None]
    output = sampler_of(temperature=0.0).generate(models["sdar"], canvas, mask_token_id=MASK)
    given = canvas != MASK
    assert torch.equal(output.sequences[given], canvas[given]) and not (output.sequences == MASK).any()
    assert torch.equal(output.reveal_step >= 0, ~given)


def test_the_caches_memory_is_that_of_the_keys_and_values():
    """Two layers, two heads of eight numbers, keys and values, of three rows with 19 + 1 columns, in float32."""
    model = make_model("sdar")
    decoder = sampler_of().decoder(model, mask_token_id=MASK)
    decoder.join(torch.cat([torch.stack([prompts()[1]] * 3), torch.full((3, RESPONSE), MASK)], 1), None, [None] * 3)
    (cache,) = decoder.passes.caches
    assert cache.bytes == 2 * 2 * 8 * 2 * 3 * (8 + RESPONSE + 1) * 4
