"""Policy losses of MaskGRPO in verl's registry: clipped token ratios, and their geometric mean (GMPO)."""

from typing import Any

import torch
from verl.trainer.ppo.core_algos import POLICY_LOSS_REGISTRY, agg_loss, register_policy_loss
from verl.utils.torch_functional import masked_mean

from maskgrpo_plugin.registry import Registered

MAX_LOG_RATIO = 20.0


def _clip_range(config: Any) -> tuple[float, float]:
    low = config.clip_ratio if config.clip_ratio_low is None else config.clip_ratio_low
    high = config.clip_ratio if config.clip_ratio_high is None else config.clip_ratio_high
    return low, high


def _ratio_metrics(
    log_prob: torch.Tensor, log_ratio: torch.Tensor, clipped: torch.Tensor, mask: torch.Tensor
) -> dict[str, float]:
    """Over `mask`: mean log-probability and ratio, largest |log ratio|, clip fraction, k1 estimate of KL(old‖new)."""
    with torch.no_grad():
        masked = mask.bool()
        largest = log_ratio.abs().masked_fill(~masked, 0.0).max() if log_ratio.numel() else log_ratio.new_zeros(())
        return {
            "actor/log_prob_mean": masked_mean(log_prob, mask).item(),
            "actor/ratio_mean": masked_mean(log_ratio.exp(), mask).item(),
            "actor/log_ratio_abs_max": largest.item(),
            "actor/pg_clipfrac": masked_mean(clipped.float(), mask).item(),
            "actor/ppo_kl": masked_mean(-log_ratio, mask).item(),
        }


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
    """MaskGRPO's clipped objective over the tokens that one mask level hides (arXiv 2510.02880, importance ratios
    ρ̂ = exp(ℓ_θ − ℓ_old) token by token): loss = −min(ρ̂A, clip(ρ̂, 1−ε, 1+ε)A).

    Args:
        old_log_prob: (B, L) ℓ_old at the level, from before the first update.
        log_prob: (B, L) ℓ_θ at the same level and mask.
        advantages: (B, L) group-relative advantages.
        response_mask: (B, L) true exactly at the level's masked tokens.
        loss_agg_mode: verl's aggregation; `token-mean` is the mean over the masked tokens of the whole batch.
        config: actor config with `clip_ratio`, `clip_ratio_low`, `clip_ratio_high`, `global_batch_info`.
        rollout_is_weights: (B, L) optional weights of verl's rollout correction.

    Returns:
        The scalar loss and a dict of floats.
    """
    low, high = _clip_range(config)
    log_ratio = torch.clamp(log_prob - old_log_prob, -MAX_LOG_RATIO, MAX_LOG_RATIO)
    ratio = log_ratio.exp()
    unclipped = -advantages * ratio
    clipped = -advantages * ratio.clamp(1 - low, 1 + high)
    losses = torch.maximum(unclipped, clipped)
    if rollout_is_weights is not None:
        losses = losses * rollout_is_weights
    loss = agg_loss(losses, response_mask, loss_agg_mode, **config.global_batch_info)
    return loss, _ratio_metrics(
        log_prob.detach(), log_ratio.detach(), clipped.detach() > unclipped.detach(), response_mask
    )


@register_policy_loss("maskgrpo_gmpo")
def maskgrpo_gmpo_loss(
    old_log_prob: torch.Tensor,
    log_prob: torch.Tensor,
    advantages: torch.Tensor,
    response_mask: torch.Tensor,
    loss_agg_mode: str = "token-mean",
    config: Any = None,
    rollout_is_weights: torch.Tensor | None = None,
) -> tuple[torch.Tensor, dict[str, Any]]:
    """Geometric-mean policy optimisation (arXiv 2507.20673) over one level's masked tokens.

    For a sequence with masked tokens M: loss = −A·exp(1/|M| Σ_n s·min(s·r_n, s·clip(r_n, −ε, ε))) with r_n the log
    ratio and s the sign of A; the mean is over the sequences of the whole batch, whatever the micro-batching.
    Sequences without a masked token contribute nothing.

    Args, returns: as `maskgrpo_loss`; `loss_agg_mode` is not used, since the sequence is the unit.
    """
    low, high = _clip_range(config)
    mask = response_mask.float()
    tokens = mask.sum(-1)
    log_ratio = torch.clamp(log_prob - old_log_prob, -MAX_LOG_RATIO, MAX_LOG_RATIO)
    sign = advantages.sign()
    clamped = log_ratio.clamp(-low, high)
    pessimistic = sign * torch.minimum(sign * log_ratio, sign * clamped)
    divisor = tokens.clamp(min=1)
    if rollout_is_weights is not None:
        pessimistic = pessimistic + rollout_is_weights.clamp(min=1e-10).log()
    ratio = torch.exp((pessimistic * mask).sum(-1) / divisor)
    advantage = (advantages * mask).sum(-1) / divisor
    sequence_loss = -advantage * ratio * (tokens > 0)
    info = config.global_batch_info
    batch_size = info.get("global_batch_size") or sequence_loss.numel()
    loss = sequence_loss.sum() / batch_size * info.get("dp_size", 1)
    was_clipped = (sign * clamped.detach() < sign * log_ratio.detach()) & (sign != 0)
    return loss, _ratio_metrics(log_prob.detach(), log_ratio.detach(), was_clipped, response_mask)


REGISTERS = (
    Registered("loss maskgrpo", lambda: "maskgrpo" in POLICY_LOSS_REGISTRY),
    Registered("loss maskgrpo_gmpo", lambda: "maskgrpo_gmpo" in POLICY_LOSS_REGISTRY),
)
