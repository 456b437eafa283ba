"""The objective of supervised training: levels spread over a batch, weights by the formula, an unbiased bound."""

import math
from dataclasses import replace

import pytest
import torch

from maskgrpo_plugin.diffusion.estimators import Rows, build_estimator
from maskgrpo_plugin.errors import OptionError

MASK = 99


def make_rows(keys, lengths, images=None):
    """Prompts of two tokens and answers of the given lengths, right-padded."""
    width = 2 + max(lengths)
    column = torch.arange(width).expand(len(keys), -1)
    ends = torch.tensor(lengths).unsqueeze(1) + 2
    response = (column >= 2) & (column < ends)
    return Rows(
        tokens=torch.arange(10, 10 + width).expand(len(keys), -1).clone(),
        response=response,
        prompt=column < 2,
        attended=column < ends,
        keys=torch.tensor(keys),
        mask_token_id=MASK,
        image_tokens=None if images is None else response * torch.tensor(images).unsqueeze(1),
    )


def blockwise_passes(rows, block_length, steps):
    return [the_pass(rows, strata=len(rows.keys), block_length=block_length, step=n) for n in range(steps)]


def the_pass(rows, *, seed=1, step=1, **options):
    (one,) = build_estimator("denoising", **options).passes(rows, seed=seed, step=step, update=0)
    return one


@pytest.mark.parametrize(("first", "count"), [(0, 8), (0, 7), (64, 8), (3, 5)])
def test_the_levels_of_a_batch_lie_one_in_each_part_of_the_range(first, count):
    estimator = build_estimator("denoising", strata=count)
    for step in range(5):
        u = estimator.row_positions(torch.arange(first, first + count), seed=3, step=step, update=0)
        assert sorted((u * count).floor().long().tolist()) == list(range(count))


def test_a_rows_level_is_uniform_over_the_steps():
    estimator = build_estimator("denoising", strata=4)
    u = torch.cat([estimator.row_positions(torch.tensor([2]), seed=0, step=n, update=0) for n in range(4000)])
    for share in (0.1, 0.25, 0.5, 0.9):
        assert float((u < share).double().mean()) == pytest.approx(share, abs=4 * math.sqrt(share * (1 - share) / 4000))


def test_a_masked_token_of_a_text_weighs_one_over_level_and_length():
    lengths = [3, 9, 30]
    rows = make_rows([0, 1, 2], lengths)
    estimator = build_estimator("denoising", strata=3, least_level=0.01)
    u = estimator.row_positions(rows.keys, seed=1, step=1, update=0)
    one = the_pass(rows, strata=3, least_level=0.01)
    for row, length in enumerate(lengths):
        expected = 1 / ((0.01 + 0.99 * float(u[row])) * length)
        assert one.weight[row][one.scored[row]].tolist() == pytest.approx([expected] * int(one.scored[row].sum()))
    assert not one.weight[~one.scored].any() and not (one.scored & ~rows.response).any()
    assert torch.equal(one.noisy, rows.tokens.masked_fill(one.scored, MASK))


def test_the_weights_of_a_token_are_one_over_the_length_on_average():
    """E[1{masked}/(t·L)] = 1/L for each of the L tokens, so that Σ ℓ̂ is an unbiased mean over the answer."""
    rows = make_rows(list(range(16)), [5] * 16)
    draws = torch.stack([the_pass(rows, strata=16, least_level=0.05, step=n).weight for n in range(400)])
    mean = draws.mean((0, 1))[2:]
    error = draws.flatten(0, 1).std(0)[2:] / math.sqrt(400 * 16)
    assert ((mean - 1 / 5).abs() < 4 * error).all()


@pytest.mark.parametrize("least", [0.0, 0.3])
def test_an_image_has_exactly_the_share_of_the_cosine_masked_and_equal_weights(least):
    rows = make_rows(list(range(12)), [16] * 12, images=[1] * 12)
    estimator = build_estimator("denoising", strata=12, least_image_level=least)
    u = estimator.row_positions(rows.keys, seed=1, step=1, update=0).tolist()
    one = the_pass(rows, strata=12, least_image_level=least)
    counts = one.scored.sum(-1).tolist()
    assert counts == [max(round(max(math.cos(math.pi / 2 * each), least) * 16), 1) for each in u]
    assert len(set(counts)) > 5
    assert one.weight.sum(-1).tolist() == pytest.approx([1.0] * 12)
    shares = torch.stack([the_pass(rows, strata=12, step=n).scored.double().mean(0)[2:] for n in range(200)]).mean(0)
    assert float(shares.max() - shares.min()) < 0.1  # no place is preferred


def test_texts_and_images_in_one_batch_are_masked_as_each_alone():
    mixed = the_pass(make_rows([0, 1, 2, 3], [16, 5, 16, 5], images=[1, 0, 1, 0]), strata=4)
    texts = the_pass(make_rows([1, 3], [5, 5]), strata=4)
    images = the_pass(make_rows([0, 2], [16, 16], images=[1, 1]), strata=4)
    for found, alone in ((mixed.weight[[1, 3]][:, :7], texts.weight), (mixed.weight[[0, 2]], images.weight)):
        torch.testing.assert_close(found, alone, rtol=0, atol=0)


def test_a_block_is_learned_behind_what_is_visible_and_before_what_is_hidden():
    """Answers of eight tokens in blocks of three: each masked token lies in one block, with weights of one in all."""
    rows = make_rows(list(range(6)), [8, 8, 5, 8, 3, 1])
    chosen = []
    for one in blockwise_passes(rows, 3, 200):
        for row, length in enumerate([8, 8, 5, 8, 3, 1]):
            answer = one.noisy[row, 2 : 2 + length] == MASK
            scored = one.scored[row, 2 : 2 + length]
            if not scored.any():
                continue
            block = int(scored.nonzero()[0]) // 3
            assert torch.equal(answer[: 3 * block], torch.zeros(3 * block, dtype=torch.bool))
            assert torch.equal(answer[3 * block : 3 * block + 3], scored[3 * block : 3 * block + 3])
            assert answer[3 * block + 3 :].all() and not scored[3 * block + 3 :].any()
            assert one.weight[row][one.scored[row]].tolist() == pytest.approx(
                [1 / int(scored.sum())] * int(scored.sum())
            )
            assert torch.equal(one.noisy[row, :2], rows.tokens[row, :2]) and not one.weight[row][~one.scored[row]].any()
            chosen.append((row, block))
    for row, blocks in ((0, 3), (2, 2), (4, 1), (5, 1)):
        counts = [chosen.count((row, block)) for block in range(blocks)]
        assert len(counts) == len({block for r, block in chosen if r == row}) and min(counts) > 200 / blocks / 3


def test_blocks_behind_the_end_are_not_drawn_and_those_with_it_are_learned_whole():
    """The end token is the fifth of nine: of blocks of three, the second holds it and one token of the tail."""
    rows = replace(make_rows(list(range(4)), [9] * 4), stop_token_ids=(16,))
    scored = torch.stack([one.scored for one in blockwise_passes(rows, 3, 200)]).any(0).any(0)
    assert scored.tolist() == [False] * 2 + [True] * 6 + [False] * 3


def test_every_token_of_a_block_can_weigh_the_same_which_is_a_mean_over_tokens():
    """Over whole strata the weights of 6 blocks of 8 tokens add to about 6, whatever is masked of each."""
    rows = make_rows(list(range(6)), [16] * 6)
    options = {"strata": 6, "block_length": 8, "least_level": 0.2}
    totals = []
    for step in range(400):
        of_rows, of_tokens = (the_pass(rows, step=step, block_weights=kind, **options) for kind in ("row", "token"))
        assert torch.equal(of_rows.noisy, of_tokens.noisy) and torch.equal(of_rows.scored, of_tokens.scored)
        assert set(of_tokens.weight[of_tokens.scored].tolist()) == {1 / (8 * 0.6)}
        assert not of_tokens.weight[~of_tokens.scored].any()
        totals.append(float(of_tokens.weight.sum()))
    assert sum(totals) / 400 == pytest.approx(6, abs=0.15)
    with pytest.raises(OptionError, match="block_weights='rows' is not usable; allowed: row, token"):
        build_estimator("denoising", block_length=8, block_weights="rows")


def test_images_have_no_blocks():
    rows = make_rows([0, 1, 2, 3], [16, 5, 16, 5], images=[1, 0, 1, 0])
    whole, blocks = the_pass(rows, strata=4), the_pass(rows, strata=4, block_length=2)
    for name in ("noisy", "scored", "weight"):
        assert torch.equal(getattr(whole, name)[[0, 2]], getattr(blocks, name)[[0, 2]])
    assert not torch.equal(whole.noisy, blocks.noisy)
