"""Losses of scores against formulas written out row by row, and what holds for all of them."""

import math
from types import SimpleNamespace

import pytest
import torch
from verl.trainer.ppo.core_algos import get_policy_loss_fn

from maskgrpo_plugin.errors import OptionError
from maskgrpo_plugin.trainer.losses import LOSSES, compares_with_old

NAMES = LOSSES.names()
ADVANTAGES = torch.tensor([1.0, -1.0, 0.3, 0.0, -2.0], dtype=torch.float64)


def actor(mask, low=0.2, high=0.3, reference=None):
    info = {
        "dp_size": 1,
        "batch_num_tokens": int(mask.sum()),
        "global_batch_size": int(mask.any(-1).sum()),
        "loss_scale_factor": None,
    }
    config = SimpleNamespace(
        clip_ratio=0.2,
        clip_ratio_low=low,
        clip_ratio_high=high,
        clip_ratio_c=3.0,
        kl_loss_coef=0.1,
        global_batch_info=info,
    )
    if reference is not None:
        config.ref_log_prob = reference
    return config


def make_batch(name="sequence_ppo", spread=0.4, dtype=torch.float64):
    """Old and new estimates, spread advantages, mask; the third row counts one token, the last none."""
    g = torch.Generator().manual_seed(0)
    shape = (6, 7, 2) if "bounds" in LOSSES[name].scores else (6, 7)
    old = -torch.rand(shape, generator=g, dtype=torch.float64)
    new = old + spread * torch.randn(shape, generator=g, dtype=torch.float64)
    mask = torch.rand(6, 7, generator=g) < 0.6
    mask[2], mask[5] = torch.arange(7) == 3, False
    advantages = torch.cat([ADVANTAGES, torch.ones(1, dtype=torch.float64)])[:, None].expand(6, 7)
    return old.to(dtype), new.to(dtype).requires_grad_(), (advantages * mask).to(dtype), mask


def by_row(name, old, new, advantages, mask, reference=None, divisor=None):
    """The mean over rows that count, with plain numbers."""
    total = 0.0
    for row in range(5):
        score, before = (float((x[row] * mask[row]).sum()) for x in (new.detach(), old))
        d = divisor or int(mask[row].sum())
        a, x = float(ADVANTAGES[row]), (score - before) / d
        kl = 0.0 if reference is None else (score - float((reference[row] * mask[row]).sum())) ** 2 / (2 * d)
        clip = lambda ratio: min(max(ratio, 0.8), 1.3)  # noqa: E731
        if name == "sequence_ppo":
            loss = -min(math.exp(x) * a, clip(math.exp(x)) * a) + 0.1 * kl
        elif name == "bgpo":
            ratio = 1 + x if a > 0 else math.exp(x)
            loss = -min(ratio * a, clip(ratio) * a)
            loss = min(loss, -3 * a) if a < 0 else loss
        elif name == "gdsd":
            clamped = min(max(score - before, math.log(0.8)), math.log(1.3))
            loss = (clamped / d - 10 * a) ** 2 + 0.1 * kl
        else:
            loss = -a * score / d
        total += loss
    return total / 5


@pytest.mark.parametrize("name", ["sequence_ppo", "bgpo", "gdsd", "reinforce"])
@pytest.mark.parametrize(("options", "divisor"), [
    ({}, None), ({"divisor": "none"}, 1), ({"divisor": "length", "length": 9}, 9),
])  # fmt: skip
@pytest.mark.parametrize("spread", [0.1, 1.5])
def test_a_loss_is_its_formula_row_by_row(name, options, divisor, spread):
    old, new, advantages, mask = make_batch(name, spread)
    reference = old - 0.3 if LOSSES[name].has_kl else None
    loss, _ = LOSSES.build(name, **options)(old, new, advantages, mask, config=actor(mask, reference=reference))
    expected = by_row(name, old, new, advantages, mask, reference, divisor)
    assert loss.item() == pytest.approx(expected, rel=1e-12)
    loss.backward()
    assert not new.grad[~mask].any()


def test_bgpos_ratio_below_minus_one_is_a_number():
    old, new, advantages, mask = make_batch("bgpo")
    with torch.no_grad():
        new[0] = old[0] - 3
    loss, _ = LOSSES.build("bgpo", divisor="none")(old, new, advantages, mask, config=actor(mask))
    loss.backward()
    assert loss.isfinite() and new.grad.isfinite().all() and new.grad[0][mask[0]].all()


@pytest.mark.parametrize(("bound", "weight"), [("lower", 0.0), ("upper", 1.0), ("mix", 0.25), ("zero", None)])
def test_spg_pushes_the_lower_bound_up_and_what_the_option_says_down(bound, weight):
    old, new, advantages, mask = make_batch("spg")
    spg = LOSSES.build("spg", bound=bound, mix_weight=0.25)
    loss, _ = spg(old, new, advantages, mask, "token-mean", actor(mask))
    expected = 0.0
    for row in range(5):
        lower, upper = (float((new.detach()[row, :, n] * mask[row]).sum()) for n in (0, 1))
        below = 0.0 if weight is None else weight * upper + (1 - weight) * lower
        expected -= float(ADVANTAGES[row]) * (lower if ADVANTAGES[row] > 0 else below) / int(mask.sum())
    assert loss.item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("mode", ["token-mean", "seq-mean-token-mean"])
def test_a_loss_does_not_depend_on_micro_batches(name, mode):
    old, new, advantages, mask = make_batch(name)
    config, loss = actor(mask), LOSSES.build(name)
    whole, _ = loss(old, new, advantages, mask, mode, config)
    parts = [
        loss(old[rows], new[rows], advantages[rows], mask[rows], mode, config)[0]
        for rows in (slice(0, 1), slice(1, 4), slice(4, 6))
    ]
    torch.testing.assert_close(sum(parts), whole, rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "gdsd"])
def test_no_advantage_no_gradient(name):
    old, new, advantages, mask = make_batch(name)
    loss, _ = LOSSES.build(name)(old, new, 0 * advantages, mask, config=actor(mask))
    loss.backward()
    assert not new.grad.any()


@pytest.mark.parametrize("name", NAMES)
def test_the_first_ratio_is_exactly_one(name):
    old, _, advantages, mask = make_batch(name, dtype=torch.float32)
    _, metrics = LOSSES.build(name)(old, old.clone(), advantages, mask, config=actor(mask))
    assert (metrics["actor/ratio_mean"], metrics["actor/log_ratio_abs_max"]) == (1.0, 0.0)
    assert metrics["actor/ppo_kl"] == 0.0


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.05)])
def test_lower_precision_gives_the_same_loss_and_sums_in_float32(name, dtype, tolerance):
    expected, _ = LOSSES.build(name)(*make_batch(name), config=actor(make_batch(name)[3]))
    old, new, advantages, mask = make_batch(name, dtype=dtype)
    loss, _ = LOSSES.build(name)(old, new, advantages, mask, config=actor(mask))
    loss.backward()
    assert (loss.dtype, new.grad.dtype) == (torch.float32, dtype) and new.grad.isfinite().all()
    assert loss.item() == pytest.approx(expected.item(), rel=tolerance, abs=tolerance)


def test_verl_finds_a_loss_with_its_options_and_its_kl_term():
    old, new, advantages, mask = make_batch()
    config = actor(mask, reference=old - 0.3)
    config.policy_loss = SimpleNamespace(options={"divisor": "none"})
    function = get_policy_loss_fn("sequence_ppo")
    got, metrics = function(
        old_log_prob=old,
        log_prob=new,
        advantages=advantages,
        response_mask=mask,
        config=config,
        loss_agg_mode="seq-mean",
    )
    assert got.item() == pytest.approx(by_row("sequence_ppo", old, new, advantages, mask, old - 0.3, 1), rel=1e-12)
    assert metrics["actor/kl_of_scores"] > 0 and function.has_kl
    assert not get_policy_loss_fn("bgpo").has_kl


def test_who_compares_with_the_old_policy():
    names = ("maskgrpo", "vanilla", "sequence_ppo", "bgpo", "gdsd", "reinforce", "spg")
    assert [compares_with_old(name) for name in names] == [True] * 5 + [False] * 2


@pytest.mark.parametrize(("name", "options", "message"), [
    ("sequence_ppo", {"divisor": "tokens"}, "divisor='tokens' .* counted, length, none"),
    ("sequence_ppo", {"divisor": "length"}, "length=None"),
    ("sequence_ppo", {"length": 4}, "length=4"),
    ("bgpo", {"divisor": "length", "length": 0}, "length=0"),
    ("gdsd", {"psi": 0}, "psi=0"),
    ("spg", {"bound": "eubo"}, "bound='eubo' .* mix, upper, lower, zero"),
    ("spg", {"mix_weight": 2}, "mix_weight=2"),
])  # fmt: skip
def test_a_wrong_option_is_named(name, options, message):
    with pytest.raises(OptionError, match=message):
        LOSSES.build(name, **options)
