"""Policy losses against formulas written out token by token, and their invariances."""

import math
from types import SimpleNamespace

import pytest
import torch

from maskgrpo_plugin.trainer.losses.gmpo import maskgrpo_gmpo_loss
from maskgrpo_plugin.trainer.losses.maskgrpo import maskgrpo_loss


def actor(tokens, rows, low=0.2, high=0.2):
    info = {"dp_size": 1, "batch_num_tokens": tokens, "global_batch_size": rows, "loss_scale_factor": None}
    return SimpleNamespace(clip_ratio=0.2, clip_ratio_low=low, clip_ratio_high=high, global_batch_info=info)


@pytest.fixture
def batch():
    g = torch.Generator().manual_seed(0)
    old = -torch.rand(5, 7, generator=g)
    new = (old + 0.5 * torch.randn(5, 7, generator=g)).requires_grad_()
    advantages = torch.tensor([1.0, -1.0, 0.3, 0.0, -2.0])[:, None].expand(5, 7)
    mask = torch.rand(5, 7, generator=g) < 0.5
    mask[3] = False
    return old, new, advantages, mask


def slow_token_loss(old, new, advantages, mask, low, high):
    total, count = 0.0, 0
    for row in range(old.shape[0]):
        for column in range(old.shape[1]):
            if mask[row, column]:
                ratio = math.exp(new[row, column] - old[row, column])
                a = float(advantages[row, column])
                total += -min(ratio * a, min(max(ratio, 1 - low), 1 + high) * a)
                count += 1
    return total / count


def test_token_loss_is_the_clipped_objective_over_masked_tokens_only(batch):
    old, new, advantages, mask = batch
    loss, metrics = maskgrpo_loss(old, new, advantages, mask, config=actor(int(mask.sum()), 5))
    assert loss.item() == pytest.approx(slow_token_loss(old, new.detach(), advantages, mask, 0.2, 0.2), abs=1e-6)
    loss.backward()
    assert (new.grad[~mask] == 0).all()
    ratio = (new.detach() - old).exp()
    outside = ((advantages > 0) & (ratio > 1.2)) | ((advantages < 0) & (ratio < 0.8))
    expected = torch.where(outside | ~mask, 0.0, -advantages * ratio / mask.sum())
    torch.testing.assert_close(new.grad, expected, atol=1e-6, rtol=0)
    assert metrics["actor/pg_clipfrac"] == pytest.approx((outside & mask).sum().item() / mask.sum().item())


def test_token_loss_does_not_depend_on_micro_batches(batch):
    old, new, advantages, mask = batch
    config = actor(int(mask.sum()), 5)
    whole, _ = maskgrpo_loss(old, new, advantages, mask, config=config)
    parts = [
        maskgrpo_loss(old[rows], new[rows], advantages[rows], mask[rows], config=config)[0]
        for rows in (slice(0, 1), slice(1, 3), slice(3, 5))
    ]
    torch.testing.assert_close(sum(parts), whole)


def test_ratio_one_gives_minus_the_mean_advantage(batch):
    old, _, advantages, mask = batch
    loss, metrics = maskgrpo_loss(old, old.clone(), advantages, mask, config=actor(int(mask.sum()), 5))
    assert loss.item() == pytest.approx(-advantages[mask].mean().item(), abs=1e-6)
    assert metrics["actor/ratio_mean"] == 1.0
    assert metrics["actor/log_ratio_abs_max"] == 0.0


def test_gmpo_is_the_geometric_mean_of_clipped_ratios(batch):
    old, new, advantages, mask = batch
    loss, _ = maskgrpo_gmpo_loss(old, new, advantages, mask, config=actor(int(mask.sum()), 5, 0.3, 0.3))
    total = 0.0
    for row in range(5):
        logs, a = [], float(advantages[row, 0])
        sign = (a > 0) - (a < 0)
        for column in range(7):
            if mask[row, column]:
                r = float(new[row, column] - old[row, column])
                logs.append(sign * min(sign * r, sign * min(max(r, -0.3), 0.3)))
        if logs:
            total += -a * math.exp(sum(logs) / len(logs))
    assert loss.item() == pytest.approx(total / 5, abs=1e-6)


def test_gmpo_does_not_depend_on_micro_batches(batch):
    old, new, advantages, mask = batch
    config = actor(int(mask.sum()), 5)
    whole, _ = maskgrpo_gmpo_loss(old, new, advantages, mask, config=config)
    parts = [
        maskgrpo_gmpo_loss(old[r], new[r], advantages[r], mask[r], config=config)[0] for r in (slice(0, 2), slice(2, 5))
    ]
    torch.testing.assert_close(sum(parts), whole)
