"""The policy losses of TraceRL: rows are slices of a trajectory, and the KL is to the policy before the update."""

from typing import Any

import torch
from verl.trainer.ppo.core_algos import agg_loss, register_policy_loss

from maskgrpo_plugin.trainer.losses.base import clipped_losses, k3, ratio_metrics

MAX_LOG_RATIO_OF_BLOCKS = 10.0


@register_policy_loss("tracerl")
def tracerl_loss(
    old_log_prob: torch.Tensor,
    log_prob: torch.Tensor,
    advantages: torch.Tensor,
    response_mask: torch.Tensor,
    loss_agg_mode: str = "seq-mean-token-mean",
    config: Any = None,
    rollout_is_weights: torch.Tensor | None = None,
) -> tuple[torch.Tensor, dict[str, Any]]:
    """TraceRL's objective (arXiv 2509.06949; dLLM-RL, train/rl_llada.py): the mean over rows, one per slice, of

        mean over its tokens of −min(ρA, clip(ρ, 1−ε, 1+ε)A)  +  β · sum over its tokens of k3(ℓ, ℓ_old).

    The KL is a sum where the policy term is a mean, and its reference is the policy before the update: set
    `actor.use_kl_loss=false`, which would add another. Rows without a token do not count.

    Args:
        old_log_prob: (B, L) ℓ_old.
        log_prob: (B, L) ℓ_θ at the same canvases.
        advantages: (B, L) group-relative advantages.
        response_mask: (B, L) true at the slice's tokens that count.
        loss_agg_mode: not used: the row is the unit.
        config: actor config with `clip_ratio`, `clip_ratio_low`, `clip_ratio_high`, `kl_loss_coef` (β), and
            `global_batch_info`, whose `global_batch_size` is the number of rows over all ranks.
        rollout_is_weights: (B, L) optional weights of verl's rollout correction.

    Returns:
        The scalar loss and a dict of floats.
    """
    losses, log_ratio, was_clipped = clipped_losses(old_log_prob, log_prob, advantages, config)
    if rollout_is_weights is not None:
        losses = losses * rollout_is_weights
    policy = agg_loss(losses, response_mask, "seq-mean-token-mean", **config.global_batch_info)
    kl = agg_loss(k3(log_ratio), response_mask, "seq-mean-token-sum", **config.global_batch_info)
    metrics = ratio_metrics(log_prob.detach(), log_ratio.detach(), was_clipped, response_mask)
    return policy + config.kl_loss_coef * kl, metrics | {"actor/kl_to_old": kl.detach().item()}


@register_policy_loss("tracerl_block")
def tracerl_block_loss(
    old_log_prob: torch.Tensor,
    log_prob: torch.Tensor,
    advantages: torch.Tensor,
    response_mask: torch.Tensor,
    loss_agg_mode: str = "seq-mean-token-sum-norm",
    config: Any = None,
    rollout_is_weights: torch.Tensor | None = None,
) -> tuple[torch.Tensor, dict[str, Any]]:
    """TraceRL's objective for block diffusion (dLLM-RL, train/rl_sdar.py): the mean over rows, one per round, of

        1/R · sum over its tokens of −min(ρA, clip(ρ, 1−ε, 1+ε)A) + β k3(ℓ, ℓ_old).

    R is `actor.loss_scale_factor`, the length of the responses (None: that of the longest in the micro-batch), and
    |log ρ| is at most 10. For the arguments and what is returned see `tracerl_loss`.
    """
    losses, log_ratio, was_clipped = clipped_losses(old_log_prob, log_prob, advantages, config, MAX_LOG_RATIO_OF_BLOCKS)
    if rollout_is_weights is not None:
        losses = losses * rollout_is_weights
    policy, kl = (
        agg_loss(part, response_mask, "seq-mean-token-sum-norm", **config.global_batch_info)
        for part in (losses, k3(log_ratio))
    )
    metrics = ratio_metrics(log_prob.detach(), log_ratio.detach(), was_clipped, response_mask)
    return policy + config.kl_loss_coef * kl, metrics | {"actor/kl_to_old": kl.detach().item()}
