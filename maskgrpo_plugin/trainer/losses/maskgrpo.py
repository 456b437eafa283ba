"""The policy loss `maskgrpo`: clipped token ratios."""

from typing import Any

import torch
from verl.trainer.ppo.core_algos import agg_loss, register_policy_loss

from maskgrpo_plugin.trainer.losses.base import clipped_losses, ratio_metrics


@register_policy_loss("maskgrpo")
def maskgrpo_loss(
    old_log_prob: torch.Tensor,
    log_prob: torch.Tensor,
    advantages: torch.Tensor,
    response_mask: torch.Tensor,
    loss_agg_mode: str = "token-mean",
    config: Any = None,
    rollout_is_weights: torch.Tensor | None = None,
) -> tuple[torch.Tensor, dict[str, Any]]:
    """The clipped objective over the tokens that an update counts (arXiv 2510.02880, importance ratios
    ρ̂ = exp(ℓ̂_θ − ℓ̂_old) token by token): loss = −min(ρ̂A, clip(ρ̂, 1−ε, 1+ε)A).

    Args:
        old_log_prob: (B, L) estimates ℓ̂_old, from before the first update.
        log_prob: (B, L) ℓ̂_θ at the same masks.
        advantages: (B, L) group-relative advantages.
        response_mask: (B, L) true at the tokens that count, which the estimator says.
        loss_agg_mode: verl's aggregation; `token-mean` is the mean over the counted tokens of the whole batch.
        config: actor config with `clip_ratio`, `clip_ratio_low`, `clip_ratio_high`, `global_batch_info`.
        rollout_is_weights: (B, L) optional weights of verl's rollout correction.

    Returns:
        The scalar loss and a dict of floats.
    """
    losses, log_ratio, was_clipped = clipped_losses(old_log_prob, log_prob, advantages, config)
    if rollout_is_weights is not None:
        losses = losses * rollout_is_weights
    loss = agg_loss(losses, response_mask, loss_agg_mode, **config.global_batch_info)
    return loss, ratio_metrics(log_prob.detach(), log_ratio.detach(), was_clipped, response_mask)
