"""Group advantages against the formula, and the rank reward's treatment of ties."""

import math

import numpy as np
import pytest
import torch
from verl.trainer.ppo.core_algos import get_adv_estimator_fn

from maskgrpo_plugin.trainer.advantages import group_advantages, maskgrpo_advantage, rank_rewards


def test_advantage_is_centred_and_scaled_by_the_sample_deviation():
    rewards = torch.tensor([1.0, 5.0, 0.0, 2.0, 0.0])
    groups = np.array(["a", "b", "a", "a", "b"], dtype=object)
    got = group_advantages(rewards, groups)
    for name in "ab":
        members = [i for i, group in enumerate(groups) if group == name]
        values = [float(rewards[i]) for i in members]
        mean = sum(values) / len(values)
        deviation = (sum((v - mean) ** 2 for v in values) / (len(values) - 1)) ** 0.5
        for i, value in zip(members, values, strict=True):
            assert got[i].item() == pytest.approx((value - mean) / (deviation + 1e-5), abs=1e-5)


@pytest.mark.parametrize("transform", ["none", "rank"])
def test_a_group_of_equal_rewards_has_no_advantage(transform):
    got = group_advantages(torch.full((4,), 0.1), np.array(["a"] * 4, dtype=object), reward_transform=transform)
    assert (got == 0).all()


def test_a_lone_completion_has_no_advantage():
    assert group_advantages(torch.tensor([3.0]), np.array(["a"], dtype=object)).item() == 0


def test_equal_rewards_have_equal_ranks():
    torch.testing.assert_close(rank_rewards(torch.tensor([2.0, 2.0, 1.0, 9.0])), torch.tensor([0.5, 0.5, 0.0, 1.0]))


def test_unknown_transform_is_named():
    with pytest.raises(ValueError, match="reward_transform"):
        group_advantages(torch.zeros(2), np.array(["a", "a"]), reward_transform="softmax")


def test_the_outcome_reaches_every_response_token():
    rewards = torch.zeros(2, 3)
    rewards[0, 2] = 1.0
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]])
    advantages, _ = maskgrpo_advantage(rewards, mask, np.array(["a", "a"], dtype=object))
    assert (advantages[0] > 0).all()
    assert (advantages[1, :2] < 0).all()
    assert advantages[1, 2] == 0


GROUPS = np.array(["a", "b", "a", "b", "a", "b", "c", "c"], dtype=object)
REWARDS = torch.tensor([1.0, 0.0, 0.0, 5.0, 0.5, 1.0, 2.0, 2.0], dtype=torch.float64)


def advantage_of(name, rewards, groups):
    mask = torch.ones(len(rewards), 2)
    token_rewards = torch.zeros(len(rewards), 2, dtype=torch.float64)
    token_rewards[:, 1] = rewards
    return get_adv_estimator_fn(name)(token_rewards, mask, groups)[0][:, 0]


def test_wd1_contrasts_within_each_group_wherever_its_members_lie():
    got = advantage_of("wd1", REWARDS, GROUPS)
    for name in "ab":
        members = np.flatnonzero(GROUPS == name)
        up = [math.exp(REWARDS[n]) for n in members]
        down = [math.exp(-REWARDS[n]) for n in members]
        expected = [3 * (u / sum(up) - d / sum(down)) for u, d in zip(up, down, strict=True)]
        assert got[members].tolist() == pytest.approx(expected, rel=1e-12)
    assert got[6:].tolist() == [0.0, 0.0]


def test_justgrpo_divides_by_the_members_that_have_an_advantage():
    plain = group_advantages(REWARDS, GROUPS)
    got = advantage_of("justgrpo", REWARDS, GROUPS)
    assert plain[4] == 0
    assert got[[0, 2, 4]].tolist() == pytest.approx((plain[[0, 2, 4]] * 3 / 2).tolist(), rel=1e-4)
    assert got[[1, 3, 5]].tolist() == pytest.approx(plain[[1, 3, 5]].tolist(), rel=1e-4)
    assert got[6:].tolist() == [0.0, 0.0]
