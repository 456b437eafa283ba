"""Masks and coefficients of the evidence bounds, SPG's bounds and sampled positions, without a model."""

import math
from dataclasses import replace

import pytest
import torch
from test_estimators import END, MASK, PROMPT, make_rows, passes_of

from maskgrpo_plugin.diffusion.estimators import build_estimator
from maskgrpo_plugin.diffusion.estimators.elbo import QUADRATURES
from maskgrpo_plugin.errors import OptionError

LENGTH = END + 1 - PROMPT  # of the answer


def test_a_draw_masks_a_uniform_number_of_tokens():
    rows = make_rows(4000)
    for complement, lowest in ((False, 1), (True, 0)):
        masks = build_estimator("elbo", draws=1, complement=complement).masks(rows, 5)
        counts = torch.bincount(masks[0].sum(-1), minlength=LENGTH + 1)
        values = LENGTH + 1 - lowest
        assert not counts[:lowest].any()
        deviation = math.sqrt(4000 * (1 / values) * (1 - 1 / values))
        assert (counts[lowest:] - 4000 / values).abs().max() <= 4 * deviation


def test_counts_are_stratified_over_a_rows_own_draws():
    rows = make_rows(50)
    masks = build_estimator("elbo", draws=LENGTH).masks(rows, 5)
    counts = torch.stack([mask.sum(-1) for mask in masks], dim=1).sort(-1).values
    assert torch.equal(counts, torch.arange(1, LENGTH + 1).expand(50, -1))


def test_each_token_is_masked_equally_often():
    rows = make_rows(4000)
    [mask] = build_estimator("elbo", draws=1).masks(rows, 9)
    share = mask[:, PROMPT : END + 1].double().mean(0)
    expected = (LENGTH + 1) / (2 * LENGTH)
    assert (share - expected).abs().max() <= 4 * math.sqrt(expected * (1 - expected) / 4000)


def test_weights_of_a_draw_and_its_complement():
    rows = make_rows(40)
    for n in range(0, 4, 2):
        first, second = passes_of("elbo", rows, complement=True, draws=2)[n : n + 2]
        assert torch.equal(first.scored ^ second.scored, rows.response & ~rows.tail)
        for row in range(40):
            size = first.scored[row].sum().item()
            for one, count in ((first, size), (second, LENGTH - size)):
                expected = 0.25 * (LENGTH + 1) / count if count else 0.0
                assert one.weight[row].unique().tolist() in ([0.0], pytest.approx([0.0, expected]))
                assert one.weight[row].sum().item() == pytest.approx(0.25 * (LENGTH + 1) * (count > 0))


@pytest.mark.parametrize("options", [
    {"draws": 3}, {"draws": 3, "complement": True}, {"draws": 3, "block_length": 4},
    {"nodes": "gauss-3", "node_weight": "share"}, {"draws": 3, "complement": True, "weighting": "none"},
])  # fmt: skip
def test_where_no_canvas_matters_the_bound_is_the_sum(options):
    """Log-probabilities that do not depend on the canvas: their sum over the answer, on average over draws."""
    rows = make_rows(3000, tokens=make_rows(1).tokens.expand(3000, -1), keys=torch.arange(3000))
    estimator = build_estimator("elbo", canvas="trimmed", **options)
    values = -torch.rand(20, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    passes = estimator.passes(rows, seed=0, step=0, update=0)
    scores = estimator.fold(passes, [values.expand(3000, -1)] * len(passes)).sum(-1)
    half = 0.5 if options.get("weighting") == "none" else 1.0
    expected = half * values[PROMPT : END + 1].sum()
    assert scores.mean().item() == pytest.approx(expected.item(), abs=4 * scores.std().item() / 3000**0.5 + 1e-9)


@pytest.mark.parametrize("rule", sorted(QUADRATURES))
def test_a_quadrature_is_exact_for_its_degree_and_biased_by_level_as_published(rule):
    degree = {"gauss-2": 3, "gauss-3": 5}.get(rule, 0)
    for power in range(degree + 1):
        assert sum(w * t**power for t, w in QUADRATURES[rule]) == pytest.approx(1 / (power + 1), abs=1e-12)
    rows = make_rows(2, stop_token_ids=())
    constant = [-torch.ones(2, 20, dtype=torch.float64)] * len(QUADRATURES[rule])
    length = rows.response.sum(-1).double()

    def bound(node_weight):
        estimator = build_estimator("elbo", nodes=rule, draws=1, node_weight=node_weight)
        return estimator.fold(estimator.passes(rows, seed=0, step=0, update=0), constant).sum(-1)

    torch.testing.assert_close(bound("share"), -length)
    published = sum(w / t * (t * length).floor().clamp(min=1) for t, w in QUADRATURES[rule])
    torch.testing.assert_close(bound("level"), -published)


def test_every_block_is_masked_at_once_with_its_own_number():
    rows = make_rows(300, stop_token_ids=())
    estimator = build_estimator("elbo", draws=2, block_length=6)
    for one in estimator.passes(rows, seed=1, step=0, update=0):
        for begin in (5, 11, 17):
            block = rows.response[:, begin : min(begin + 6, 20)]
            masked = one.scored[:, begin : begin + 6]
            size, count = block.sum(-1), masked.sum(-1)
            assert ((count >= 1) & (count <= size)).all() and count.unique().numel() == size.max()
            torch.testing.assert_close(one.weight[:, begin : begin + 6].sum(-1), size.double() / 2)
    apart = torch.stack([(one.scored[:, 5:11].sum(-1) != one.scored[:, 11:17].sum(-1)) for one in
                         estimator.passes(rows, seed=1, step=0, update=0)])  # fmt: skip
    assert apart.any()


def test_masks_are_redrawn_at_an_update_unless_it_is_off():
    rows = make_rows()
    for redraw in (True, False):
        estimator = build_estimator("elbo", mu=3, redraw=redraw)
        first, second = (estimator.passes(rows, seed=0, step=0, update=n)[0].noisy for n in (0, 1))
        assert torch.equal(first, second) != redraw == estimator.varies


def test_each_draw_stands_for_itself_where_it_is_said():
    rows = make_rows()
    together, apart = build_estimator("elbo", draws=4), build_estimator("elbo", draws=4, apart=True)
    assert (together.estimates, apart.estimates, together.parts(4), apart.parts(4)) == (1, 4, 1, 4)
    for one, other in zip(*(e.passes(rows, seed=0, step=0, update=0) for e in (together, apart)), strict=True):
        assert torch.equal(one.noisy, other.noisy)
        torch.testing.assert_close(4 * one.weight, other.weight)


@pytest.mark.parametrize("name", ["elbo", "spg"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_the_gradient_is_finite_where_a_pass_masks_nothing_or_everything(name, dtype):
    rows = make_rows(3)
    estimator = build_estimator(name, **({"complement": True} if name == "elbo" else {}))
    nothing, everything = torch.zeros_like(rows.response), rows.response & ~rows.tail
    for masks in ([nothing, nothing], [everything, nothing], [nothing, everything]):
        passes = estimator.passes_of(rows, masks) if name == "elbo" else estimator.passes_of(rows, rows.tokens, masks)
        values = [(-torch.rand(3, 20, dtype=torch.float64)).to(dtype).requires_grad_() for _ in passes]
        folded = estimator.fold(passes, values)
        assert folded.dtype == dtype and folded.isfinite().all()
        folded.sum().backward()
        assert all(value.grad.isfinite().all() for value in values)
        assert not any(value.grad[~one.scored].any() for one, value in zip(passes, values, strict=True))


# --- SPG


def test_spgs_bounds_enclose_the_mean_at_equal_masks():
    """By Jensen the upper bound is at least the lower one where every canvas masks everything."""
    rows = make_rows(5)
    estimator = build_estimator("spg", kind="all", draws=3, beta=1.5)
    passes = estimator.passes(rows, seed=0, step=0, update=0)
    values = [-torch.rand(5, 20, dtype=torch.float64) for _ in passes]
    lower, upper = estimator.fold(passes, values).unbind(-1)
    torch.testing.assert_close(lower.sum(-1), torch.stack(values)[:, :, PROMPT : END + 1].mean(0).sum(-1))
    assert (upper.sum(-1) >= lower.sum(-1)).all()
    equal = estimator.fold(passes, [values[0]] * 3)
    torch.testing.assert_close(equal[..., 0], equal[..., 1])


@pytest.mark.parametrize("kind", ["block_random", "block_all"])
def test_spg_masks_all_that_follows_a_block(kind):
    rows = make_rows(200)
    estimator = build_estimator("spg", kind=kind, draws=2, block_length=4, earlier_mask_ratio=0.0)
    first_blocks = []
    for one in estimator.passes(rows, seed=0, step=0, update=0):
        answer = one.scored[:, PROMPT : END + 1]
        block = torch.arange(LENGTH) // 4
        first = torch.where(answer, block, 9).amin(-1)
        first_blocks.append(first)
        assert (answer | (block <= first[:, None])).all()
        inside = (answer & (block == first[:, None])).sum(-1)
        size = (block == first[:, None]).sum(-1)
        assert ((inside >= 1) & (inside <= size)).all() and (kind == "block_random" or torch.equal(inside, size))
        assert (inside < size).any() == (kind == "block_random")
    assert (first_blocks[0] != first_blocks[1]).all()
    assert torch.stack(first_blocks).unique().tolist() == [0, 1, 2]


def test_spg_masks_earlier_tokens_and_the_prompt_by_their_shares():
    rows = make_rows(2000)
    options = {"kind": "block_all", "draws": 1, "block_length": 4, "prompt_mask_ratio": 0.3, "earlier_mask_ratio": 0.2}
    [one] = passes_of("spg", rows, **options)
    [none] = passes_of("spg", rows, **(options | {"earlier_mask_ratio": 0.0}))
    earlier = (rows.response & ~rows.tail) & ~none.scored
    share = one.scored[earlier].double().mean().item()
    assert share == pytest.approx(0.2, abs=4 * 0.4 / earlier.sum().item() ** 0.5)
    prompt = (one.noisy[rows.prompt] == MASK).double().mean().item()
    assert prompt == pytest.approx(0.3, abs=4 * 0.46 / rows.prompt.sum().item() ** 0.5)


def test_spg_masks_a_number_of_tokens_between_its_levels():
    rows = make_rows(500)
    [one] = passes_of("spg", rows, kind="random", draws=1, min_level=0.25, max_level=0.65)
    assert one.scored.sum(-1).unique().tolist() == [2, 3, 4, 5, 6]


# --- positions


def test_positions_are_all_of_them_where_as_many_are_sampled():
    rows = make_rows(4)
    passes = passes_of("positions", rows, sampled=LENGTH)
    for n, one in enumerate(passes):
        at = torch.arange(20) == PROMPT + n
        assert torch.equal(one.scored, at.expand(4, -1) & rows.response)
        assert torch.equal(one.noisy == MASK, (torch.arange(20) >= PROMPT + n) & rows.response)
        assert one.weight[one.scored].unique().tolist() == [LENGTH]


def test_short_answers_repeat_positions_evenly():
    rows = replace(make_rows(3000), stop_token_ids=(), response=(torch.arange(20) // 3 == 2).expand(3000, -1))
    scored = torch.stack([one.scored for one in passes_of("positions", rows, sampled=4)])
    assert (scored.sum((0, 2)) == 4).all()
    times = scored.sum(0)[:, 6:9].double()
    assert ((times >= 1) & (times <= 2)).all()
    assert (times.mean(0) - 4 / 3).abs().max() <= 4 * 0.5 / 3000**0.5


@pytest.mark.parametrize(("name", "options", "message"), [
    ("elbo", {"draws": 0}, "draws=0"),
    ("elbo", {"nodes": "gauss-4"}, "nodes='gauss-4' .* gauss-2, gauss-3, simpson"),
    ("elbo", {"nodes": "gauss-2", "complement": True}, "complement=True .* with nodes=gauss-2 use False"),
    ("elbo", {"nodes": "gauss-2", "apart": True}, "apart=True"),
    ("elbo", {"nodes": "gauss-2", "weighting": "none"}, "weighting='none'"),
    ("elbo", {"node_weight": "exact"}, "node_weight='exact'"),
    ("elbo", {"block_length": 0}, "block_length=0"),
    ("spg", {"kind": "blocks"}, "kind='blocks'"),
    ("spg", {"min_level": 0.5, "max_level": 0.2}, "max_level=0.2"),
    ("spg", {"beta": 0}, "beta=0"),
    ("positions", {"sampled": 0}, "sampled=0"),
])  # fmt: skip
def test_a_wrong_option_is_named(name, options, message):
    with pytest.raises(OptionError, match=message):
        build_estimator(name, **options)
