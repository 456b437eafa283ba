"""The policy loss `maskgrpo_gmpo`: the geometric mean of a sequence's ratios.

By hand, since verl's `geo_mean` averages per micro-batch.
"""

from typing import Any

import torch
from verl.trainer.ppo.core_algos import register_policy_loss

from maskgrpo_plugin.trainer.losses.base import MAX_LOG_RATIO, clip_range, ratio_metrics


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
    low, high = clip_range(config)
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
    return loss, ratio_metrics(log_prob.detach(), log_ratio.detach(), was_clipped, response_mask)
