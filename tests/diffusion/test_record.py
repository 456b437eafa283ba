"""What a sampler records of its draws, against what the model says of the same canvases."""

import pytest
import torch
from family_models import MASK, VOCABULARY, make_model
from test_block_causal import RESPONSE, left_padded, prompts, rows_of, seeded

from maskgrpo_plugin.diffusion.estimators import build_estimator
from maskgrpo_plugin.diffusion.likelihood import SamplingDistribution
from maskgrpo_plugin.diffusion.samplers import build_sampler
from maskgrpo_plugin.diffusion.samplers.choice import truncate
from maskgrpo_plugin.diffusion.samplers.record import TokenRecord
from maskgrpo_plugin.errors import OptionError

FORBIDDEN = (3, 4)
STOP = 7
SAMPLERS = {
    "bidirectional": ("a2d_qwen3", "semi_autoregressive", {"steps": 11, "response_length": RESPONSE}),
    "blocks": ("sdar", "block_causal", {"steps_per_block": 2, "response_length": RESPONSE}),
    "shifted blocks": ("fast_dllm_v2", "block_causal", {"response_length": RESPONSE}),
}
DRAWS = {
    "plain": {},
    "cooler": {"temperature": 0.6},
    "few": {"temperature": 0.6, "top_k": 5, "top_p": 0.9, "forbidden_token_ids": FORBIDDEN, "ordering": "random"},
    "hotter": {"temperature": 1.7, "top_k": 9, "cfg_scale": 0.5},
    "parallel": {"temperature": 0.8, "parallel": "threshold", "threshold": 0.2},
}


@pytest.fixture(scope="module")
def models():
    return {name: make_model(name) for name, _, _ in SAMPLERS.values()}


def sample(models, kind, draws, **changes):
    family, name, options = SAMPLERS[kind]
    sampler = build_sampler(name, **{"temperature": 1.0, "record": True} | options | DRAWS[draws] | changes)
    batch, mask = left_padded(prompts())
    output = sampler.generate(models[family], batch, mask, mask_token_id=MASK, generator=seeded(len(batch)))
    return sampler, output, mask


@pytest.mark.parametrize("draws", DRAWS)
@pytest.mark.parametrize("kind", SAMPLERS)
def test_the_record_is_what_the_model_says_at_each_step(models, kind, draws):
    """Every step is scored by its pass, as in training: log-probability and entropy are the record's."""
    sampler, output, mask = sample(models, kind, draws)
    model, record = models[SAMPLERS[kind][0]], output.record
    rows = rows_of(output, mask, model.block_length)
    in_response = lambda x: x[:, -RESPONSE:]  # noqa: E731
    found = {"log_prob": torch.zeros(record.log_prob.shape), "entropy": torch.zeros(record.log_prob.shape)}
    blind = rows.tokens.masked_fill(rows.prompt, MASK)
    for one in build_estimator("trajectory", shrink=1, canvas="full").passes(rows, seed=0, step=0, update=0):
        if not one.scored.any():
            continue
        allowed = record.allowed[in_response(one.scored)]
        drawn_from = SamplingDistribution(sampler.temperature, (MASK, *sampler.forbidden_token_ids), allowed)
        noisy, scored, clean = one.noisy, one.scored, rows.tokens
        if sampler.cfg_scale > 0:
            noisy = torch.cat([noisy, noisy.masked_fill(rows.prompt, MASK)])
            scored, clean = torch.cat([scored, scored]), torch.cat([clean, blind])
        twice = {"attention_mask": rows.attended.repeat(len(noisy) // len(mask), 1)}
        if model.block_length is not None:
            twice["clean_ids"] = clean
        with torch.no_grad():
            said = model(
                noisy,
                **twice,
                logits_positions=scored,
                target_ids=rows.tokens[one.scored],
                with_entropy=True,
                guidance_scale=sampler.cfg_scale,
                sampling=drawn_from,
                chunk_size=3,
            )
        at = in_response(one.scored)
        found["log_prob"][at], found["entropy"][at] = said.log_probs, said.entropy
    torch.testing.assert_close(found["log_prob"], record.log_prob, atol=3e-5, rtol=0)
    torch.testing.assert_close(found["entropy"], record.entropy, atol=3e-5, rtol=0)
    truncates = sampler.top_k > 0 or sampler.top_p < 1
    sizes = (record.allowed >= 0).sum(-1)
    assert bool((sizes > 0).all()) == truncates and (not truncates or sizes.max() <= sampler.top_k)
    if truncates:
        chosen = in_response(output.sequences).unsqueeze(-1)
        assert (record.allowed == chosen).any(-1).all()
        assert not torch.isin(record.allowed, torch.tensor([MASK, *sampler.forbidden_token_ids])).any()


@pytest.mark.parametrize("kind", SAMPLERS)
def test_a_record_changes_no_token_and_greedy_sampling_keeps_none(models, kind):
    _, output, _ = sample(models, kind, "few")
    _, without, _ = sample(models, kind, "few", record=False)
    assert torch.equal(output.sequences, without.sequences) and torch.equal(output.reveal_step, without.reveal_step)
    assert without.record is None
    assert sample(models, kind, "plain", temperature=0.0)[1].record is None


@pytest.mark.parametrize("kind", ["bidirectional", "blocks"])
def test_rows_that_leave_take_their_record_along(models, kind):
    """Rows that join a running batch, end early and leave have the record that they have alone."""
    family, name, options = SAMPLERS[kind]
    if kind == "bidirectional":
        options = options | {"block_length": 4, "response_length": 12, "steps": 12}
    length = options["response_length"]
    stops = tuple(range(5, 12))
    sampler = build_sampler(
        name, **options, temperature=0.9, top_k=4, record=True, stop_token_ids=stops, fill_token_id=STOP
    )
    rows = [torch.cat([row, torch.full((length,), MASK)]) for row in prompts()]
    generators = seeded(len(rows))
    decoder = sampler.decoder(models[family], mask_token_id=MASK)
    left, order = {}, {}
    joining = list(range(len(rows)))
    while joining or decoder.running:
        if joining:
            n = joining.pop(0)
            (number,) = decoder.join(rows[n][None].clone(), None, [generators[n]])
            order[number] = n
        decoder.decode_block()
        for row in decoder.leave():
            left[order[row.number]] = row
    assert any((row.reveal_step < 0).any() for row in left.values())
    for n, row in left.items():
        alone = sampler.generate(
            models[family],
            rows[n][None].clone(),
            mask_token_id=MASK,
            generator=[torch.Generator().manual_seed(100 + n)],
        )
        assert torch.equal(alone.sequences[0, -length:], row.response)
        torch.testing.assert_close(row.record.log_prob, alone.record.log_prob[0], atol=1e-5, rtol=0)
        torch.testing.assert_close(row.record.entropy, alone.record.entropy[0], atol=1e-5, rtol=0)
        for one, two in zip(row.record.allowed.tolist(), alone.record.allowed[0].tolist(), strict=True):
            assert {*one} - {-1} == {*two} - {-1}
        hidden = row.reveal_step < 0
        assert not row.record.log_prob[hidden].any() and (row.record.allowed[hidden] == -1).all()


def test_a_worked_example():
    logits = torch.tensor([[0.5, 0.3, 0.2]]).log().repeat(2, 1)
    record = TokenRecord.of_draws(logits, torch.tensor([1, 0]), temperature=1.0, top_k=2, top_p=1.0)
    torch.testing.assert_close(record.log_prob.exp(), torch.tensor([0.375, 0.625]))
    torch.testing.assert_close(record.entropy, torch.full((2,), 0.6616), atol=1e-4, rtol=0)
    assert record.allowed.tolist() == [[0, 1], [0, 1]]
    squared = TokenRecord.of_draws(logits, torch.tensor([2, 2]), temperature=0.5, top_k=0, top_p=1.0)
    torch.testing.assert_close(squared.log_prob.exp(), torch.full((2,), 0.04 / 0.38))
    assert squared.allowed.tolist() == [[-1], [-1]]


def test_ties_are_all_allowed():
    logits = torch.tensor([[2.0, 1.0, 1.0, 0.0]])
    record = TokenRecord.of_draws(logits, torch.tensor([2]), temperature=1.0, top_k=2, top_p=1.0)
    assert sorted(record.allowed[0].tolist()) == [0, 1, 2]


def test_a_sampling_distribution_is_the_truncated_softmax():
    logits = torch.randn(6, VOCABULARY, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    logits[:, MASK] = float("-inf")
    expected = truncate(logits / 0.7, 4, 0.8).log_softmax(-1)
    drawn = TokenRecord.of_draws(logits, expected.argmax(-1), temperature=0.7, top_k=4, top_p=0.8)
    raw = logits.clone()
    raw[:, MASK] = 9.0  # the mask token is what the sampler bans, whatever the model says
    found = SamplingDistribution(0.7, (MASK,), drawn.allowed).logits(raw).log_softmax(-1)
    torch.testing.assert_close(found, expected)
    whole = SamplingDistribution(0.7, (MASK,), torch.full((6, 2), -1)).logits(raw)
    torch.testing.assert_close(whole.log_softmax(-1), (logits / 0.7).log_softmax(-1))


@pytest.mark.parametrize(("options", "message"), [
    ({"top_p": 0.9}, "top_k=0 .* with top_p=0.9: 1 or more"),
    ({"cache": "prefix"}, "cache='prefix' .* these caches are approximate"),
    ({"parallel": "credit"}, "parallel='credit' .* other logits than the model's"),
])  # fmt: skip
def test_what_cannot_be_recorded_is_refused(options, message):
    with pytest.raises(OptionError, match=message):
        build_sampler("semi_autoregressive", steps=8, response_length=8, temperature=1.0, record=True, **options)
