"""The policy loss `spg`: a lower bound of the log-likelihood is pushed up, an upper bound down."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from maskgrpo_plugin.errors import check_choice, check_number
from maskgrpo_plugin.trainer.losses.reinforce import Reinforce
from maskgrpo_plugin.trainer.losses.sequence import register_sequence_loss

BOUNDS = ("mix", "upper", "lower", "zero")


@register_sequence_loss("spg")
@dataclass(frozen=True)
class SPGLoss(Reinforce):
    """SPG (arXiv 2510.09541): −A·S/d, where S is the lower bound for A > 0, and what `bound` says elsewhere.

    With `divisor=counted` and `loss_agg_mode=token-mean` it is the published mean, weighted by the answers' lengths.
    There is no ratio, no clip and no KL.

    Attributes:
        divisor, length: see `SequenceLoss`.
        bound: `upper` (published: eubo), `lower` (elbo), `mix` (mix_weight·upper + (1 − mix_weight)·lower), or `zero`,
            which learns nothing from A ≤ 0.
        mix_weight: in [0, 1]; published 0.5.
    """

    scores: ClassVar[tuple[str, ...]] = ("bounds",)

    bound: str = "mix"
    mix_weight: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("bound", self.bound, BOUNDS)
        check_number("mix_weight", self.mix_weight, 0, 1)

    def chosen(self, estimates: Tensor, advantages: Tensor) -> Tensor:
        """See `SequenceLoss.chosen`: of the lower and the upper bound, by the sign of the advantage."""
        lower, upper = estimates.unbind(-1)
        weight = {"mix": self.mix_weight, "upper": 1.0, "lower": 0.0, "zero": 0.0}[self.bound]
        below = torch.zeros_like(lower) if self.bound == "zero" else weight * upper + (1 - weight) * lower
        return torch.where(advantages > 0, lower, below)
