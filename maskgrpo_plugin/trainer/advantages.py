"""Group-relative advantages of MaskGRPO, with the optional rank reward of Pref-GRPO, in verl's registry."""

from collections.abc import Callable
from functools import partial
from operator import contains
from typing import Any

import numpy as np
import torch
from verl.trainer.ppo.core_algos import ADV_ESTIMATOR_REGISTRY, register_adv_est

from maskgrpo_plugin.errors import check_choice
from maskgrpo_plugin.registry import Registered

__all__ = [
    "ADVANTAGES",
    "NORMALISATIONS",
    "REWARD_TRANSFORMS",
    "STD_EPSILON",
    "contrast_weights",
    "group_advantages",
    "maskgrpo_advantage",
    "rank_rewards",
    "valid_weights",
]

STD_EPSILON = 1e-5
REWARD_TRANSFORMS = ("none", "rank")
NORMALISATIONS = ("std", "center", "leave_one_out", "zscore")


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
    rewards: torch.Tensor, groups: np.ndarray, *, normalisation: str = "std", reward_transform: str = "none"
) -> torch.Tensor:
    """Advantages of rewards r in their groups of G.

    With the rewards 1, 0, 0 of one group: `center` gives 0.667, −0.333, −0.333; `leave_one_out` 1, −0.5, −0.5.

    Args:
        rewards: (B,) one scalar reward per completion.
        groups: (B,) group names; members need not be adjacent.
        normalisation: `std`: (r − mean)/(std + 1e-5), std with ddof 1 (MaskGRPO); `center`: r − mean (d1, Dr. GRPO);
            `leave_one_out`: r − mean of the others = G/(G − 1)·center (DiffuCoder, RLOO); `zscore`: (r − mean)/std
            with ddof 0 and no epsilon (TraceRL).
        reward_transform: `none`, or `rank` for the rank reward.

    Returns:
        (B,) advantages; a group of equal rewards, or of one member, has advantage 0.

    Raises:
        OptionError: an unknown normalisation or transform.
    """
    check_choice("algorithm.reward_transform", reward_transform, REWARD_TRANSFORMS)
    check_choice("normalisation", normalisation, NORMALISATIONS)
    advantages = torch.zeros_like(rewards)
    for name in dict.fromkeys(groups.tolist()):
        members = torch.as_tensor(np.flatnonzero(groups == name), device=rewards.device)
        values = rewards[members]
        if values.numel() < 2 or bool((values == values[0]).all()):
            continue
        if reward_transform == "rank":
            values = rank_rewards(values)
        advantages[members] = _normalise(values - values.mean(), normalisation)
    return advantages


def _normalise(centred: torch.Tensor, normalisation: str) -> torch.Tensor:
    """(G,) rewards less their mean, G at least 2, divided as `group_advantages` says."""
    if normalisation == "std":
        return centred / (centred.std() + STD_EPSILON)
    if normalisation == "zscore":
        return centred / centred.std(correction=0)
    if normalisation == "leave_one_out":
        return centred * centred.numel() / (centred.numel() - 1)
    return centred


def contrast_weights(advantages: torch.Tensor, groups: np.ndarray) -> torch.Tensor:
    """wd1's weights (arXiv 2507.08838), G·(softmax(A) − softmax(−A)) over the G members of each group.

    Each softmax times G has the mean 1, so that the mean of −weight·S over a batch is the mean over groups of wd1's
    Σ (w⁻ − w⁺)·S. Of the advantages 0.5, −0.5 of one group: 0.924, −0.924. Equal rewards give exactly 0.

    Args:
        advantages: (B,) rewards less a number of their group's.
        groups: (B,) group names; members need not be adjacent.
    """
    return _by_group(advantages, groups, lambda a: len(a) * (a.softmax(0) - (-a).softmax(0)))


def valid_weights(advantages: torch.Tensor, groups: np.ndarray) -> torch.Tensor:
    """JustGRPO's advantages (arXiv 2601.15165), A·G/(v + 1e-5) with v the group's members whose A is not 0.

    The mean over a batch is then the mean over groups of Σ A/v, as if the others had not been sampled.

    Args:
        advantages: (B,).
        groups: (B,) group names; members need not be adjacent.
    """
    return _by_group(advantages, groups, lambda a: a * len(a) / ((a != 0).sum() + 1e-5))


def _by_group(
    values: torch.Tensor, groups: np.ndarray, function: Callable[[torch.Tensor], torch.Tensor]
) -> torch.Tensor:
    """(B,) what a function makes of the members of each group."""
    found = torch.empty_like(values)
    for name in dict.fromkeys(groups.tolist()):
        members = torch.as_tensor(np.flatnonzero(groups == name), device=values.device)
        found[members] = function(values[members])
    return found


def _outcome_advantage(
    normalisation: str | None, weigh: Callable[[torch.Tensor, np.ndarray], torch.Tensor] | None = None
) -> Callable[..., tuple[torch.Tensor, torch.Tensor]]:
    """An advantage estimator of verl: the outcome reward's group advantage on every response token.

    Args:
        normalisation: see `group_advantages`; None: `std`, or `center` under `norm_adv_by_std_in_grpo=false`.
        weigh: a function of advantages and groups that replaces them; None for none.
    """

    def estimate(
        token_level_rewards: torch.Tensor,
        response_mask: torch.Tensor,
        index: np.ndarray,
        config: Any = None,
        **_: Any,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        get = config.get if config is not None else (lambda _key, default: default)
        by_std = "std" if get("norm_adv_by_std_in_grpo", True) else "center"
        with torch.no_grad():
            advantages = group_advantages(
                token_level_rewards.sum(-1),
                np.asarray(index),
                normalisation=normalisation or by_std,
                reward_transform=get("reward_transform", "none"),
            )
            if weigh is not None:
                advantages = weigh(advantages, np.asarray(index))
            advantages = advantages.unsqueeze(-1) * response_mask
        return advantages, advantages

    estimate.__doc__ = f"""Outcome rewards to group advantages ({normalisation or "std or center"}) on every token.

        Args:
            token_level_rewards: (B, L) rewards; their sum over L is the outcome.
            response_mask: (B, L) response tokens.
            index: (B,) group names (verl's `uid`).
            config: the `algorithm` section; reads `norm_adv_by_std_in_grpo` and `reward_transform`.

        Returns:
            (B, L) advantages and the same tensor as returns.
        """
    return estimate


maskgrpo_advantage = _outcome_advantage(None)
ADVANTAGES = {
    "maskgrpo": maskgrpo_advantage,
    "leave_one_out": _outcome_advantage("leave_one_out"),
    "zscore": _outcome_advantage("zscore"),
    "wd1": _outcome_advantage("center", contrast_weights),
    "justgrpo": _outcome_advantage("std", valid_weights),
}


for _name, _estimate in ADVANTAGES.items():
    register_adv_est(_name)(_estimate)

REGISTERS = tuple(
    Registered(f"advantage {name}", partial(contains, ADV_ESTIMATOR_REGISTRY, name)) for name in ADVANTAGES
)
