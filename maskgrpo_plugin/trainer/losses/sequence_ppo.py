"""The policy loss `sequence_ppo`: one clipped ratio per sequence (ESPO, GDPO, EBPO)."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from maskgrpo_plugin.trainer.losses.base import MAX_LOG_RATIO, clip_range
from maskgrpo_plugin.trainer.losses.sequence import Scores, SequenceLoss, register_sequence_loss


@register_sequence_loss("sequence_ppo")
@dataclass(frozen=True)
class SequencePPO(SequenceLoss):
    """−min(ρA, clip(ρ, 1−ε, 1+ε)A) + β·(S − S_ref)²/(2d) with ρ = exp((S − S_old)/d) of a row's score S and divisor d.

    ESPO (arXiv 2512.03759) divides by the length of the response, GDPO (arXiv 2510.08554) by the tokens of the answer,
    EBPO (LLaDA2.1, arXiv 2602.08676) not at all: then a long answer's ratio leaves any clip range at once.

    Attributes:
        divisor, length: see `SequenceLoss`.
    """

    has_kl: ClassVar[bool] = True

    def of_rows(self, scores: Scores, config: Any) -> tuple[Tensor, Tensor]:
        """See `SequenceLoss.of_rows`."""
        low, high = clip_range(config)
        ratio = scores.log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
        unclipped = -scores.advantage * ratio
        clipped = -scores.advantage * ratio.clamp(1 - low, 1 + high)
        losses = torch.maximum(unclipped, clipped) + config.kl_loss_coef * scores.kl()
        return losses, (clipped > unclipped).detach()
