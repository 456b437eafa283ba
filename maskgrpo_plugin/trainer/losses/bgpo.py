"""The policy loss `bgpo`: a linear or exponential bound of the ratio, so that each draw is a row of its own."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from maskgrpo_plugin.trainer.losses.base import MAX_LOG_RATIO, clip_range
from maskgrpo_plugin.trainer.losses.sequence import Scores, SequenceLoss, register_sequence_loss


@register_sequence_loss("bgpo")
@dataclass(frozen=True)
class BGPO(SequenceLoss):
    """BGPO (arXiv 2510.11683): with x = (S − S_old)/d the ratio is ρ = 1 + x where A > 0, and e^x elsewhere.

    The loss is −min(ρA, clip(ρ, 1−ε, 1+ε)A), for A < 0 at most −c·A (dual clip, c = `actor.clip_ratio_c`). Since
    1 + x ≤ e^x, and e^x is convex, the mean of ρA over a completion's draws is at most A times the ratio of their mean:
    each draw may be a row with a backward pass of its own, which is the estimator's `apart: true`. The published code
    takes 1 + x as exp(log(1 + x)), which is no number below x = −1; here it is 1 + x throughout.

    Attributes:
        divisor, length: see `SequenceLoss`.
    """

    def of_rows(self, scores: Scores, config: Any) -> tuple[Tensor, Tensor]:
        """See `SequenceLoss.of_rows`."""
        low, high = clip_range(config)
        advantage, x = scores.advantage, scores.log_ratio
        ratio = torch.where(advantage > 0, 1 + x, x.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp())
        unclipped = -advantage * ratio
        losses = torch.maximum(unclipped, -advantage * ratio.clamp(1 - low, 1 + high))
        bounded = torch.where(advantage < 0, torch.minimum(losses, -advantage * config.clip_ratio_c), losses)
        return bounded, (bounded != unclipped).detach()
