"""What the policy losses share: the clip range, the bound of log ratios, and the numbers that each one logs."""

from typing import Any

import torch
from verl.utils.torch_functional import masked_mean

MAX_LOG_RATIO = 20.0


def clip_range(config: Any) -> tuple[float, float]:
    low = config.clip_ratio if config.clip_ratio_low is None else config.clip_ratio_low
    high = config.clip_ratio if config.clip_ratio_high is None else config.clip_ratio_high
    return low, high


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
