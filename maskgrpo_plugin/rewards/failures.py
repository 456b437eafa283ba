"""What becomes of samples whose reward could not be computed: a pure function that the trainer calls on a batch.

verl scores one sample at a time and catches what a reward manager raises, so a manager cannot end a run, drop a
sample or know its group. It marks the sample instead (`reward_failed` = 1 in `reward_extra_info`, reward 0), and the
policy is applied here, before the advantages, where the whole batch is at hand.
"""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

FAILURE_POLICIES = ("raise", "drop_sample", "mean_of_group")


class SandboxLost(RuntimeError):
    """A sandbox failed while it ran a program, so that the program was not judged."""


class RewardFailure(RuntimeError):
    """Rewards failed and the policy is `raise`."""


def resolve_failed_rewards(
    rewards: Tensor, failed: Tensor, groups: Sequence[Hashable], policy: str
) -> tuple[Tensor, Tensor]:
    """Apply a failure policy to a batch.

    Args:
        rewards: (B,) floats. One that is not finite counts as failed whatever `failed` says.
        failed: (B,) bool or 0/1, the samples whose reward could not be computed.
        groups: B names, equal for the samples of one prompt.
        policy: `raise`; `drop_sample` takes failed samples out of the batch; `mean_of_group` gives them the mean of
            their group's good rewards, which is an advantage of 0, and takes out a group without any.

    Returns:
        rewards (B,), finite, 0 where the sample is taken out; and keep_mask (B,) bool, False where it is.

    Raises:
        RewardFailure: the policy is `raise` and a sample failed.
        ValueError: an unknown policy, or shapes that do not fit.
    """
    if policy not in FAILURE_POLICIES:
        raise ValueError(f"policy={policy!r}; allowed: {', '.join(FAILURE_POLICIES)}")
    if rewards.ndim != 1 or failed.shape != rewards.shape or len(groups) != len(rewards):
        raise ValueError(
            f"rewards {tuple(rewards.shape)}, failed {tuple(failed.shape)}, {len(groups)} groups: not of one length"
        )
    bad = failed.bool().to(rewards.device) | ~rewards.isfinite()
    count = int(bad.sum())
    if count and policy == "raise":
        raise RewardFailure(
            f"the rewards of {count} of {len(rewards)} samples failed; the reward workers' log has the causes "
            f"(reward.image.on_failure=raise; allowed: {', '.join(FAILURE_POLICIES)})"
        )
    resolved, keep = rewards.masked_fill(bad, 0.0), ~bad
    if policy == "mean_of_group" and count:
        names: dict[Hashable, int] = {}
        group = torch.tensor([names.setdefault(name, len(names)) for name in groups], device=rewards.device)
        good = torch.zeros(len(names), device=rewards.device, dtype=rewards.dtype)
        good.index_add_(0, group, keep.to(rewards.dtype))
        total = torch.zeros_like(good).index_add_(0, group, resolved)
        mean = total / good.clamp_min(1)
        resolved = torch.where(bad, mean[group], resolved)
        keep = good[group] > 0
    return resolved, keep


def mean_reward_components(infos: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Mean over the samples of each number in their `reward_extra_info`, as `reward/<name>`. Samples without it do not
    count, nor do those whose `<name>_failed` or, where there is no such flag, whose whole reward failed.
    """
    values: dict[str, list[float]] = {}
    for info in infos:
        for name, value in info.items():
            if isinstance(value, int | float) and (_is_record(name) or not _failed(info, name)):
                values.setdefault(name, []).append(float(value))
    return {f"reward/{name}": sum(found) / len(found) for name, found in values.items()}


def _is_record(name: str) -> bool:
    """Whether a number tells how the scoring went, and is no score."""
    return name.startswith("reward_") or name.endswith(("_failed", "_latency_s", "_batch_size"))


def _failed(info: Mapping[str, Any], name: str) -> bool:
    return bool(info.get(f"{name}_failed", info.get("reward_failed", 0.0)))
