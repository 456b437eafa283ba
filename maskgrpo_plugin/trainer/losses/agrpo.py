"""The policy loss `agrpo`: clipped token ratios, summed over the tokens of a row, with a KL term of its own."""

from typing import Any

import torch
from verl.trainer.ppo.core_algos import agg_loss, register_policy_loss

from maskgrpo_plugin.trainer.losses.base import clipped_losses, k3, ratio_metrics


@register_policy_loss("agrpo")
def agrpo_loss(
    old_log_prob: torch.Tensor,
    log_prob: torch.Tensor,
    advantages: torch.Tensor,
    response_mask: torch.Tensor,
    loss_agg_mode: str = "seq-mean-token-sum",
    config: Any = None,
    rollout_is_weights: torch.Tensor | None = None,
) -> tuple[torch.Tensor, dict[str, Any]]:
    """AGRPO's objective (arXiv 2510.04019; probablyabot/agrpo): the mean over rows, one per drawn step, of

        weight · sum over its tokens of −min(ρA, clip(ρ, 1−ε, 1+ε)A) + β·ρ·k3(ℓ, ℓ_ref).

    k3 is an estimate for tokens of the policy itself; the factor ρ makes it one for tokens of the policy that sampled.

    Args:
        old_log_prob: (B, L) ℓ_old, the sampler's record.
        log_prob: (B, L) ℓ_θ in the state that the sampler saw.
        advantages: (B, L) group-relative advantages.
        response_mask: (B, L) true at the step's tokens.
        loss_agg_mode: not used: the row is the unit.
        config: actor config with `clip_ratio`, `clip_ratio_low`, `clip_ratio_high`, `kl_loss_coef` (β), and
            `global_batch_info`, whose `global_batch_size` is the number of rows over all ranks; `ref_log_prob` (B, L)
            where there is a KL term.
        rollout_is_weights: (B, L) the weight of the row's step; None: 1.

    Returns:
        The scalar loss and a dict of floats.
    """
    losses, log_ratio, was_clipped = clipped_losses(old_log_prob, log_prob, advantages, config)
    metrics = ratio_metrics(log_prob.detach(), log_ratio.detach(), was_clipped, response_mask)
    reference = getattr(config, "ref_log_prob", None)
    if reference is not None:
        kl = log_ratio.exp() * k3((log_prob - reference).masked_fill(~response_mask.bool(), 0.0))
        losses = losses + config.kl_loss_coef * kl
        summed = agg_loss(kl.detach(), response_mask, "seq-mean-token-sum", **config.global_batch_info)
        metrics["actor/kl_loss"] = summed.item()
    if rollout_is_weights is not None:
        losses = losses * rollout_is_weights
    return agg_loss(losses, response_mask, "seq-mean-token-sum", **config.global_batch_info), metrics


agrpo_loss.has_kl = True  # type: ignore[attr-defined]  # for the workers, which know no losses
