"""The policy loss `gdsd`: scores drawn towards the advantage by squared differences."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from maskgrpo_plugin.errors import OptionError, check_number
from maskgrpo_plugin.trainer.losses.base import clip_range
from maskgrpo_plugin.trainer.losses.sequence import Scores, SequenceLoss, register_sequence_loss


@register_sequence_loss("gdsd")
@dataclass(frozen=True)
class GDSD(SequenceLoss):
    """GDSD (arXiv 2605.29398) with the score S of one draw, which is the estimator's `apart: true`:

        (clamp(S − S_old, log(1 − ε), log(1 + ε))/d − ψA)² + β·(S − S_ref)²/(2d).

    The clamp acts on the difference of whole scores: beyond it a row has no gradient but the KL's. The published code
    sums the first term over a completion's draws and averages the second; here both are means over rows, which is that
    loss divided by the number of draws where β is divided by it.

    Attributes:
        divisor, length: see `SequenceLoss`.
        psi: ψ > 0, the difference per token that an advantage of 1 asks for.
    """

    has_kl: ClassVar[bool] = True

    psi: float = 10.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("psi", self.psi, 0)
        if self.psi == 0:
            raise OptionError("psi", self.psi, "allowed: numbers above 0")

    def of_rows(self, scores: Scores, config: Any) -> tuple[Tensor, Tensor]:
        """See `SequenceLoss.of_rows`."""
        low, high = clip_range(config)
        difference = scores.new - scores.old
        lowest = math.log1p(-low) if low < 1 else -math.inf
        clamped = difference.clamp(lowest, math.log1p(high))
        losses = (clamped / scores.divisor - self.psi * scores.advantage).square() + config.kl_loss_coef * scores.kl()
        return losses, torch.ne(clamped, difference).detach()
