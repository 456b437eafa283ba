"""The policy loss `reinforce`: log-likelihood weighted by the advantage, without a ratio (wd1, JustGRPO)."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from maskgrpo_plugin.trainer.losses.sequence import Scores, SequenceLoss, register_sequence_loss


@register_sequence_loss("reinforce")
@dataclass(frozen=True)
class Reinforce(SequenceLoss):
    """−A·S/d. Its gradient is that of a ratio to the policy itself, exp(S/d − detached), which JustGRPO writes.

    No old policy is asked, nothing is clipped, and with several updates over the same rollouts nothing holds the policy
    back but the learning rate.

    Attributes:
        divisor, length: see `SequenceLoss`.
    """

    scores: ClassVar[tuple[str, ...]] = ("token", "sequence", "samples")
    uses_old: ClassVar[bool] = False

    def of_rows(self, scores: Scores, config: Any) -> tuple[Tensor, Tensor]:
        """See `SequenceLoss.of_rows`."""
        losses = -scores.advantage * scores.new / scores.divisor
        return losses, torch.zeros_like(losses, dtype=torch.bool)
