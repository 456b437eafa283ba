"""What the policy losses share: the clip range, the bound of log ratios, and the numbers that each one logs."""

from typing import Any

import torch
from verl.utils.torch_functional import masked_mean

MAX_LOG_RATIO = 20.0  # of log ratios before they are exponentiated


def clip_range(config: Any) -> tuple[float, float]:
    """How far a ratio may go below and above 1: `clip_ratio_low` and `clip_ratio_high`, or `clip_ratio` for either."""
    low = config.clip_ratio if config.clip_ratio_low is None else config.clip_ratio_low
    high = config.clip_ratio if config.clip_ratio_high is None else config.clip_ratio_high
    return low, high


def clipped_losses(
    old_log_prob: torch.Tensor,
    log_prob: torch.Tensor,
    advantages: torch.Tensor,
    config: Any,
    most: float = MAX_LOG_RATIO,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """−min(ρA, clip(ρ, 1−ε, 1+ε)A) of every token, with ρ = exp(ℓ̂_θ − ℓ̂_old).

    Args:
        old_log_prob, log_prob: (B, L) estimates ℓ̂_old and ℓ̂_θ at the same masks.
        advantages: (B, L).
        config: actor config with `clip_ratio`, `clip_ratio_low`, `clip_ratio_high`.
        most: bound of |log ρ|.

    Returns:
        (B, L) losses, log ratios, and whether the clip acts.
    """
    low, high = clip_range(config)
    log_ratio = torch.clamp(log_prob - old_log_prob, -most, most)
    ratio = log_ratio.exp()
    unclipped = -advantages * ratio
    clipped = -advantages * ratio.clamp(1 - low, 1 + high)
    return torch.maximum(unclipped, clipped), log_ratio, (clipped > unclipped).detach()


def k3(log_ratio: torch.Tensor) -> torch.Tensor:
    """The k3 estimate of KL(π‖q) per token of π, from log π/q."""
    return torch.exp(-log_ratio) + log_ratio - 1


def ratio_metrics(
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
