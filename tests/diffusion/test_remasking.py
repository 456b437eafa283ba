"""Masks have the paper's distribution, depend on their named stream alone, and never touch the prompt."""

import math

import pytest
import torch

from maskgrpo_plugin.diffusion.random import combine_seed, uniform_noise
from maskgrpo_plugin.diffusion.remasking import (
    REMASKING_MODES,
    ar_like_keep_probability,
    mask_prompt,
    remask,
    response_noise,
)

MASK = 999
RANDOM_MODES = list(REMASKING_MODES)


def make_row(response, left, right):
    """Tokens and maskable, (1, left + response + right), with the response in the middle."""
    length = left + response + right
    tokens = torch.arange(length).unsqueeze(0)
    maskable = torch.zeros(1, length, dtype=torch.bool)
    maskable[:, left : left + response] = True
    return tokens, maskable


def make_batch(rows=6, length=40, prompt=7):
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, 100, (rows, length), generator=generator)
    maskable = torch.arange(length).expand(rows, -1) >= prompt
    maskable = maskable & (torch.arange(length) < torch.arange(length - rows, length).unsqueeze(1))
    return tokens, maskable, torch.arange(rows) * 3


# --- the distribution


@pytest.mark.parametrize("length", [1, 2, 3, 5, 17, 64, 257, 1024])
@pytest.mark.parametrize("ratio", [0.0, 0.05, 0.1, 0.25, 0.4, 0.5, 0.6, 0.75, 0.9, 0.999, 1.0])
def test_ar_like_expected_share_is_the_ratio(length, ratio):
    keep = ar_like_keep_probability(length, ratio)
    assert keep.shape == (length,)
    assert keep.min() >= 0
    assert keep.max() <= 1
    assert bool((keep.diff() <= 1e-12).all())
    assert 1 - keep.mean().item() == pytest.approx(ratio, abs=1e-9)


@pytest.mark.parametrize("length", [1, 2, 3, 17, 256])
@pytest.mark.parametrize("ratio", [0.5, 0.6, 0.7, 0.8, 0.999])
def test_ar_like_is_the_paper_curve_from_one_half(length, ratio):
    d = torch.linspace(1, 0, length, dtype=torch.float64)
    torch.testing.assert_close(
        ar_like_keep_probability(length, ratio), (d * (1 - ratio) * length / d.sum()).clamp(max=1)
    )


@pytest.mark.parametrize("length", [12, 100])
@pytest.mark.parametrize("ratio", [0.1, 0.3, 0.45])
def test_ar_like_below_one_half_is_a_rescaled_and_clamped_line(length, ratio):
    d = torch.linspace(1, 0, length, dtype=torch.float64)
    low, high = 0.0, 1e6
    for _ in range(200):
        scale = (low + high) / 2
        low, high = (scale, high) if (scale * d).clamp(max=1).sum() < (1 - ratio) * length else (low, scale)
    torch.testing.assert_close(ar_like_keep_probability(length, ratio), (low * d).clamp(max=1), atol=1e-9, rtol=0)


@pytest.mark.parametrize("mode", ["ar_like", "random"])
@pytest.mark.parametrize("ratio", [0.2, 0.6, 0.9])
@pytest.mark.parametrize("vary", ["keys", "seed"])
def test_position_wise_keep_frequency(mode, ratio, vary):
    response, draws = 24, 4000
    if vary == "keys":
        tokens, maskable = (x.expand(draws, -1) for x in make_row(response, 5, 2))
        out = remask(tokens, maskable, ratio, mode, seed=1, keys=torch.arange(draws), mask_token_id=MASK)
        masked = out.masked
    else:
        tokens, maskable = make_row(response, 5, 2)
        options = [{"seed": combine_seed(1, i)} for i in range(draws)]
        masked = torch.cat(
            [
                remask(tokens, maskable, ratio, mode, keys=torch.zeros(1).long(), mask_token_id=MASK, **o).masked
                for o in options
            ]
        )
    kept = (~masked[:, 5:-2]).double().mean(dim=0)
    expected = ar_like_keep_probability(response, ratio) if mode == "ar_like" else torch.full((response,), 1 - ratio)
    sigma = (expected * (1 - expected) / draws).sqrt()
    assert bool(((kept - expected).abs() <= 4 * sigma + 1e-12).all())


def test_the_share_does_not_depend_on_the_prompt():
    draws = 2000
    for prompt in (0, 300):
        tokens, maskable = (x.expand(draws, -1) for x in make_row(64, prompt, 0))
        out = remask(tokens, maskable, 0.6, "ar_like", seed=1, keys=torch.arange(draws), mask_token_id=MASK)
        assert out.masked.sum().item() / (64 * draws) == pytest.approx(0.6, rel=0.01)


def test_ratio_per_row():
    tokens, maskable, keys = make_batch()
    ratio = torch.linspace(0.1, 0.9, 6, dtype=torch.float64)
    out = remask(tokens, maskable, ratio, "ar_like", seed=2, keys=keys, mask_token_id=MASK)
    for i, t in enumerate(ratio.tolist()):
        one = remask(
            tokens[i : i + 1], maskable[i : i + 1], t, "ar_like", seed=2, keys=keys[i : i + 1], mask_token_id=MASK
        )
        assert torch.equal(out.masked[i : i + 1], one.masked)


@pytest.mark.parametrize("mode", RANDOM_MODES)
def test_extreme_ratios(mode):
    tokens, maskable, keys = make_batch()
    assert not remask(tokens, maskable, 0.0, mode, seed=2, keys=keys, mask_token_id=MASK).masked.any()
    assert torch.equal(remask(tokens, maskable, 1.0, mode, seed=2, keys=keys, mask_token_id=MASK).masked, maskable)


# --- what a mask depends on


@pytest.mark.parametrize("mode", REMASKING_MODES)
def test_prompt_never_masked_and_noisy_agrees(mode):
    tokens, maskable, keys = make_batch()
    before = tokens.clone()
    for level in range(20):
        out = remask(tokens, maskable, 0.7, mode, seed=combine_seed(2, level), keys=keys, mask_token_id=MASK)
        assert not (out.masked & ~maskable).any()
        assert torch.equal(out.noisy, torch.where(out.masked, MASK, tokens))
    assert torch.equal(tokens, before)
    assert out.noisy.dtype == tokens.dtype
    assert out.masked.dtype == torch.bool


@pytest.mark.parametrize("mode", REMASKING_MODES)
def test_order_of_rows_and_micro_batches(mode):
    tokens, maskable, keys = make_batch()

    def masked(rows):
        return remask(tokens[rows], maskable[rows], 0.7, mode, seed=2, keys=keys[rows], mask_token_id=MASK).masked

    whole = masked(torch.arange(6))
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    assert torch.equal(masked(order), whole[order])
    assert torch.equal(torch.cat([masked(torch.arange(i, i + 2)) for i in (0, 2, 4)]), whole)
    assert torch.equal(masked(torch.tensor([4])), whole[4:5])


@pytest.mark.parametrize("mode", RANDOM_MODES)
@pytest.mark.parametrize(("left", "right"), [(0, 0), (9, 0), (0, 9), (4, 13)])
def test_padding_does_not_matter(mode, left, right):
    reference_tokens, reference_maskable = make_row(30, 0, 0)
    reference = remask(
        reference_tokens, reference_maskable, 0.7, mode, seed=5, keys=torch.tensor([8]), mask_token_id=MASK
    )
    tokens, maskable = make_row(30, left, right)
    out = remask(tokens, maskable, 0.7, mode, seed=5, keys=torch.tensor([8]), mask_token_id=MASK)
    assert torch.equal(out.masked[maskable], reference.masked[reference_maskable])


def test_gaps_in_the_region_do_not_matter():
    tokens, maskable = torch.arange(8).unsqueeze(0), torch.tensor([[0, 1, 0, 1, 1, 0, 0, 1]])
    out = remask(tokens, maskable, 0.5, "ar_like", seed=5, keys=torch.tensor([8]), mask_token_id=MASK)
    dense = remask(tokens[:, :4], torch.ones(1, 4), 0.5, "ar_like", seed=5, keys=torch.tensor([8]), mask_token_id=MASK)
    assert torch.equal(out.masked[maskable.bool()], dense.masked[0])


@pytest.mark.parametrize("mode", RANDOM_MODES)
def test_seed_and_key_name_different_masks(mode):
    tokens, maskable = make_row(64, 3, 0)

    def masked(seed, key, level):
        out = remask(
            tokens, maskable, 0.6, mode, seed=combine_seed(seed, level), keys=torch.tensor([key]), mask_token_id=MASK
        )
        return tuple(out.masked[0].tolist())

    names = [(s, k, j) for s in (0, 1, -7) for k in (0, 1, 2**40) for j in (0, 1)]
    assert len({masked(*name) for name in names}) == len(names)
    assert masked(1, 2, 1) == masked(1, 2, 1)


def test_equal_keys_share_the_mask():
    tokens, maskable = (x.expand(3, -1) for x in make_row(64, 3, 0))
    out = remask(tokens, maskable, 0.6, "random", seed=0, keys=torch.tensor([4, 4, 5]), mask_token_id=MASK)
    assert torch.equal(out.masked[0], out.masked[1])
    assert not torch.equal(out.masked[0], out.masked[2])


@pytest.mark.parametrize("mode", REMASKING_MODES)
def test_global_random_state_is_neither_read_nor_changed(mode):
    tokens, maskable, keys = make_batch()
    outs = []
    for global_seed in (0, 1):
        torch.manual_seed(global_seed)
        state = torch.get_rng_state()
        outs.append(remask(tokens, maskable, 0.7, mode, seed=2, keys=keys, mask_token_id=MASK))
        assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(outs[0].masked, outs[1].masked)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("mode", REMASKING_MODES)
def test_cpu_and_cuda_agree(mode):
    tokens, maskable, keys = make_batch(rows=30, length=500)
    for ratio in (0.1, 0.37, 0.6, 0.999):
        args = {"seed": 2, "keys": keys, "mask_token_id": MASK}
        cpu = remask(tokens, maskable, ratio, mode, **args)
        cuda = remask(tokens.cuda(), maskable.cuda(), ratio, mode, **args)
        assert torch.equal(cuda.masked.cpu(), cpu.masked)


@pytest.mark.parametrize("shape", [(0, 5), (3, 0)])
def test_empty_batches(shape):
    tokens = torch.zeros(shape, dtype=torch.long)
    for mode in REMASKING_MODES:
        out = remask(
            tokens,
            tokens.bool(),
            0.5,
            mode,
            seed=0,
            keys=torch.arange(shape[0]),
            mask_token_id=MASK,
        )
        assert out.masked.shape == shape


def test_row_without_response():
    tokens = torch.zeros(2, 5, dtype=torch.long)
    maskable = torch.tensor([[False] * 5, [True] * 5])
    for mode in REMASKING_MODES:
        out = remask(tokens, maskable, 1.0, mode, seed=0, keys=torch.arange(2), mask_token_id=MASK)
        assert torch.equal(out.masked, maskable)


# --- the uniforms


def reference_uniform(seed, key, column):
    """The hash in Python's unbounded integers."""
    word, golden = (1 << 64) - 1, 0x9E3779B97F4A7C15

    def mix(x):
        x &= word
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & word
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & word
        return x ^ (x >> 31)

    return (mix(mix((key + 1) * golden + mix(seed + golden)) + (column + 1) * golden) >> 11) * 2.0**-53


def test_uniforms_equal_the_integer_reference():
    seed, keys = combine_seed(7, 8), [0, 1, -1, 123456789, 2**62, -(2**63)]
    noise = uniform_noise(seed, torch.tensor(keys), 9)
    assert noise.dtype == torch.float64
    assert noise.tolist() == [[reference_uniform(seed, key, n) for n in range(9)] for key in keys]


@pytest.mark.parametrize("seeds", [[0], [combine_seed(3, 0)]])
def test_uniforms_are_uniform(seeds):
    noise = uniform_noise(seeds[0], torch.arange(1000), 1000)
    assert noise.min() >= 0
    assert noise.max() < 1
    assert abs(noise.mean().item() - 0.5) < 4 / math.sqrt(12e6)
    assert noise.var().item() == pytest.approx(1 / 12, rel=0.005)
    counts = torch.histc(noise.float(), bins=50, min=0, max=1)
    chi_square = ((counts - 20000) ** 2 / 20000).sum().item()
    assert chi_square < 49 + 5 * math.sqrt(2 * 49)


def correlation(a, b):
    return torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1].abs().item()


def test_neighbouring_streams_are_uncorrelated():
    keys = torch.arange(1000)
    noise = uniform_noise(11, keys, 1000)
    bound = 5 / 1000
    assert correlation(noise[:-1], noise[1:]) < bound
    assert correlation(noise[:, :-1], noise[:, 1:]) < bound
    assert correlation(noise[:-1, 1:], noise[1:, :-1]) < bound
    assert correlation(noise, uniform_noise(12, keys, 1000)) < bound
    assert correlation(noise[1:], uniform_noise(12, keys, 1000)[:-1]) < bound
    assert correlation(
        uniform_noise(combine_seed(1, 0), keys, 1000), uniform_noise(combine_seed(1, 1), keys, 1000)
    ) < bound  # fmt: skip


def test_longer_rows_begin_with_the_shorter():
    assert torch.equal(uniform_noise(1, torch.arange(3), 20)[:, :5], uniform_noise(1, torch.arange(3), 5))


def test_combine_seed():
    # the value is part of the contract: a change would change every run's masks
    assert combine_seed(1, 2, 3) == 6661349921662528726
    seeds = [combine_seed(*parts) for parts in [(0,), (0, 0), (0, 0, 0), (1, 2), (2, 1), (1, 2, 0), (-1, 2), (12,)]]
    seeds += [combine_seed(i, j) for i in range(100) for j in range(100) if (i, j) not in {(0, 0), (1, 2), (2, 1)}]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)
    with pytest.raises(ValueError, match="at least one"):
        combine_seed()
    with pytest.raises(TypeError):
        combine_seed(0.5)


# --- the prompt


def test_the_prompt_is_masked_with_its_probability_and_nothing_else():
    draws, prompt = 4000, 10
    tokens, response = (x.expand(draws, -1) for x in make_row(6, prompt + 2, 0))
    prompt_mask = torch.zeros_like(response)
    prompt_mask[:, 2 : 2 + prompt] = True
    options = {"seed": 0, "keys": torch.arange(draws), "mask_token_id": MASK}
    hidden = mask_prompt(tokens, prompt_mask, 0.15, **options) == MASK
    assert not (hidden & ~prompt_mask).any()
    share = hidden[:, 2 : 2 + prompt].double().mean(dim=0)
    assert bool(((share - 0.15).abs() < 4 * math.sqrt(0.15 * 0.85 / draws)).all())
    # left padding does not change it, and its stream is not the response's
    assert torch.equal(mask_prompt(tokens[:, 2:], prompt_mask[:, 2:], 0.15, **options) == MASK, hidden[:, 2:])
    noise = response_noise(prompt_mask, seed=0, keys=torch.arange(draws))
    assert not torch.equal(hidden, prompt_mask & (noise < 0.15))
    assert mask_prompt(tokens, prompt_mask, 0.0, **options) is tokens


# --- errors


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mode": "block"}, "'block'; available: ar_like, random$"),
        ({"ratio": 1.2}, r"ratio must be in \[0, 1\], got 1.2"),
        ({"ratio": -0.1}, "got -0.1"),
        ({"ratio": math.nan}, "got nan"),
        ({"ratio": torch.tensor([0.5, 1.5])}, r"got \[1.5\]"),
        ({"ratio": torch.tensor([0.5])}, "ratio must be a number or have shape"),
        ({"tokens": torch.zeros(2, 4)}, "tokens must be"),
        ({"tokens": torch.zeros(4, dtype=torch.long)}, "tokens must be"),
        ({"maskable": torch.ones(2, 5)}, "maskable must have the shape of tokens"),
        ({"keys": torch.arange(3)}, "keys must have one entry per row"),
        ({"keys": torch.zeros(2)}, "keys must be"),
    ],
)
def test_errors_name_the_problem(change, message):
    arguments = {
        "tokens": torch.zeros(2, 4, dtype=torch.long),
        "maskable": torch.ones(2, 4, dtype=torch.bool),
        "ratio": 0.5,
        "mode": "random",
        "seed": 0,
        "keys": torch.arange(2),
        "mask_token_id": MASK,
    }
    with pytest.raises(ValueError, match=message):
        remask(**(arguments | change))


def test_errors_of_the_helpers():
    with pytest.raises(ValueError, match="length"):
        ar_like_keep_probability(0, 0.5)
    with pytest.raises(ValueError, match="ratio"):
        ar_like_keep_probability(3, 1.5)
    with pytest.raises(ValueError, match="length"):
        uniform_noise(0, torch.arange(2), -1)
    with pytest.raises(ValueError, match="keys"):
        uniform_noise(0, torch.zeros(2), 3)
