"""Failed rewards: what each policy makes of a batch."""

import pytest
import torch

from maskgrpo_plugin.rewards.failures import RewardFailure, resolve_failed_rewards

NAN = float("nan")
GROUPS = ["a", "a", "a", "b", "b", "c"]


def resolve(rewards, failed, policy, groups=GROUPS):
    resolved, keep = resolve_failed_rewards(
        torch.tensor(rewards), torch.tensor(failed, dtype=torch.bool), groups, policy
    )
    return resolved.tolist(), keep.tolist()


@pytest.mark.parametrize("policy", ["raise", "drop_sample", "mean_of_group"])
def test_a_batch_without_failures_is_left_alone(policy):
    rewards = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    assert resolve(rewards, [0] * 6, policy) == (rewards, [True] * 6)


def test_raise_tells_how_many_and_where_to_look():
    with pytest.raises(RewardFailure, match=r"2 of 6.*on_failure"):
        resolve([1.0, 0.0, 3.0, 4.0, 0.0, 6.0], [0, 1, 0, 0, 1, 0], "raise")


def test_drop_sample_takes_out_failed_samples_only():
    resolved, keep = resolve([1.0, 9.0, 3.0, 4.0, 5.0, 6.0], [0, 1, 0, 0, 0, 1], "drop_sample")
    assert keep == [True, False, True, True, True, False]
    assert resolved == [1.0, 0.0, 3.0, 4.0, 5.0, 0.0]


def test_mean_of_group_does_not_move_the_group_and_takes_out_groups_without_a_good_sample():
    resolved, keep = resolve([1.0, 9.0, 4.0, 0.0, 0.0, 6.0], [0, 1, 0, 1, 1, 0], "mean_of_group")
    assert resolved == [1.0, 2.5, 4.0, 0.0, 0.0, 6.0]
    assert keep == [True, True, True, False, False, True]
    assert resolved[1] - sum(resolved[:3]) / 3 == 0  # no advantage


@pytest.mark.parametrize("bad", [NAN, float("inf"), -float("inf")])
def test_a_reward_that_is_not_finite_counts_as_failed(bad):
    assert resolve([1.0, bad, 3.0, 4.0, 5.0, 6.0], [0] * 6, "mean_of_group")[0][1] == 2.0
    assert resolve([1.0, bad, 3.0, 4.0, 5.0, 6.0], [0] * 6, "drop_sample")[1][1] is False
    with pytest.raises(RewardFailure):
        resolve([1.0, bad, 3.0, 4.0, 5.0, 6.0], [0] * 6, "raise")


def test_all_failed():
    assert resolve([0.0] * 6, [1] * 6, "mean_of_group") == ([0.0] * 6, [False] * 6)


def test_wrong_arguments():
    with pytest.raises(ValueError, match=r"'ignore'.*drop_sample"):
        resolve([1.0], [0], "ignore", ["a"])
    with pytest.raises(ValueError, match="length"):
        resolve([1.0, 2.0], [0, 0], "raise", ["a"])
