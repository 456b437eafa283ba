"""Group-relative advantages of MaskGRPO, with the optional rank reward of Pref-GRPO, in verl's registry."""

from typing import Any

import numpy as np
import torch
from verl.trainer.ppo.core_algos import ADV_ESTIMATOR_REGISTRY, register_adv_est

from maskgrpo_plugin.registry import Registered

STD_EPSILON = 1e-5
REWARD_TRANSFORMS = ("none", "rank")


def rank_rewards(rewards: torch.Tensor) -> torch.Tensor:
    """Replace rewards by their win rate in the group (Pref-GRPO); equal rewards get equal rates.

    Args:
        rewards: (G,) rewards of one group, any floats.

    Returns:
        (G,) values in [0, 1]: the share of the other members that are beaten, a tie counting one half; 0.5 for G = 1.
    """
    group = rewards.numel()
    if group == 1:
        return torch.full_like(rewards, 0.5)
    wins = (rewards[:, None] > rewards[None, :]).sum(-1).to(rewards.dtype)
    ties = (rewards[:, None] == rewards[None, :]).sum(-1).to(rewards.dtype) - 1
    return (wins + 0.5 * ties) / (group - 1)


def group_advantages(
    rewards: torch.Tensor, groups: np.ndarray, *, normalize_by_std: bool = True, reward_transform: str = "none"
) -> torch.Tensor:
    """A_i = (r_i − mean)/(std + 1e-5) over the group, std with ddof 1 (DESIGN, "The algorithm").

    Args:
        rewards: (B,) one scalar reward a completion.
        groups: (B,) group names; members need not be adjacent.
        normalize_by_std: False leaves out the division (Dr. GRPO).
        reward_transform: `none`, or `rank` for the rank reward.

    Returns:
        (B,) advantages; a group of equal rewards, or of one member, has advantage 0.

    Raises:
        ValueError: an unknown `reward_transform`.
    """
    if reward_transform not in REWARD_TRANSFORMS:
        raise ValueError(f"algorithm.reward_transform={reward_transform!r} is unknown; allowed: {REWARD_TRANSFORMS}")
    advantages = torch.zeros_like(rewards)
    for name in dict.fromkeys(groups.tolist()):
        members = torch.as_tensor(np.flatnonzero(groups == name), device=rewards.device)
        values = rewards[members]
        if values.numel() < 2 or bool((values == values[0]).all()):
            continue
        if reward_transform == "rank":
            values = rank_rewards(values)
        centred = values - values.mean()
        advantages[members] = centred / (values.std() + STD_EPSILON) if normalize_by_std else centred
    return advantages


@register_adv_est("maskgrpo")
def maskgrpo_advantage(
    token_level_rewards: torch.Tensor,
    response_mask: torch.Tensor,
    index: np.ndarray,
    config: Any = None,
    **_: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """verl's advantage estimator `maskgrpo`: the outcome reward's group advantage on every response token.

    Args:
        token_level_rewards: (B, L) rewards; their sum over L is the outcome.
        response_mask: (B, L) response tokens.
        index: (B,) group names (verl's `uid`).
        config: the `algorithm` section; reads `norm_adv_by_std_in_grpo` and `reward_transform`.

    Returns:
        (B, L) advantages and the same tensor as returns.
    """
    get = config.get if config is not None else (lambda _key, default: default)
    with torch.no_grad():
        advantages = group_advantages(
            token_level_rewards.sum(-1),
            np.asarray(index),
            normalize_by_std=get("norm_adv_by_std_in_grpo", True),
            reward_transform=get("reward_transform", "none"),
        )
        advantages = advantages.unsqueeze(-1) * response_mask
    return advantages, advantages


REGISTERS = (Registered("advantage maskgrpo", lambda: "maskgrpo" in ADV_ESTIMATOR_REGISTRY),)
