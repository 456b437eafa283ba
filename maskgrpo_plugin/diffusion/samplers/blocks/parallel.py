"""Parallel decoding: rules by which a step reveals more tokens where the model is certain; an approximation.

A rule is a class in `RULES`, by the name that `parallel` gives; it may remember earlier steps of its block.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from maskgrpo_plugin.diffusion.samplers.blocks.credit import TraceCredit


class Certainty(Protocol):
    """The options that rules read; see `BlockSampler`."""

    @property
    def threshold(self) -> float:
        """A probability in (0, 1]."""

    @property
    def low_threshold(self) -> float | None:
        """A probability in [0, 1], or None."""

    @property
    def factor(self) -> float:
        """Above 0."""


class RevealRule(ABC):
    """A rule of one block.

    Args:
        options: the sampler.
        rows: number of rows N.
        width: columns per block.
        device: where the logits live.
    """

    def __init__(self, options: Certainty, rows: int, width: int, device: torch.device):
        self.options = options

    def keep(self, rows: Tensor) -> None:  # noqa: B027  (most rules remember nothing)
        """Go on with these rows (M,) of the N."""

    def refine(self, logits: Tensor, places: Tensor, valid: Tensor) -> Tensor:
        """Logits (N, K, V), which may be overwritten, as tokens are to be drawn from; `places` (N, K) are their places
        in the block where `valid`.
        """
        return logits

    @abstractmethod
    def reveal(self, confidence: Tensor, places: Tensor, valid: Tensor) -> Tensor:
        """Mark the tokens that a step may reveal beside its fixed number.

        Args:
            confidence: (N, K) probabilities of the drawn tokens, −∞ where not `valid`.
            places: (N, K) their places in the block, ascending where `valid`.
            valid: (N, K) bool.

        Returns:
            (N, K) bool, a part of `valid`.
        """


R = TypeVar("R", bound=type[RevealRule])
RULES: dict[str, type[RevealRule]] = {}


def register_rule(name: str) -> Callable[[R], R]:
    """Class decorator: make a rule known as `parallel=<name>`."""

    def register(cls: R) -> R:
        RULES[name] = cls
        return cls

    return register


@register_rule("threshold")
class Threshold(RevealRule):
    """Tokens of at least the probability `threshold` (Fast-dLLM, arXiv 2505.22618, Section 3.3)."""

    def reveal(self, confidence: Tensor, places: Tensor, valid: Tensor) -> Tensor:
        return (confidence >= self.options.threshold) & valid


@register_rule("factor")
class Factor(RevealRule):
    """The n most probable tokens, n the largest with (n + 1)·(1 − c_n) < `factor`, where c_n is the n-th largest
    probability (Fast-dLLM, Eq. 6). Probabilities 0.95, 0.8, 0.5 and factor 1 give 0.1, 0.6 and 2: n is 2.
    """

    def reveal(self, confidence: Tensor, places: Tensor, valid: Tensor) -> Tensor:
        ordered, order = confidence.sort(dim=-1, descending=True, stable=True)
        count = torch.arange(1, confidence.shape[1] + 1, device=confidence.device)
        allowed = ((count + 1) * (1 - ordered) < self.options.factor).long()
        largest = (allowed * count).amax(-1, keepdim=True)
        return torch.zeros_like(valid).scatter(-1, order, count <= largest) & valid


@register_rule("hierarchical")
class Hierarchical(Threshold):
    """`threshold`, and the most probable token of each run of neighbouring masks where its probability is at least
    `low_threshold` (dInfer, arXiv 2510.08666, hierarchical decoding).
    """

    def reveal(self, confidence: Tensor, places: Tensor, valid: Tensor) -> Tensor:
        low = self.options.low_threshold
        low = self.options.threshold / 2 if low is None else low
        starts = torch.ones_like(valid)
        starts[:, 1:] = places[:, 1:] != places[:, :-1] + 1
        run = starts.long().cumsum(-1) - 1
        best = torch.full_like(confidence, float("-inf")).scatter_reduce(-1, run, confidence, "amax")
        leads = (confidence == best.gather(-1, run)) & (confidence >= low) & valid
        return super().reveal(confidence, places, valid) | leads


@register_rule("credit")
class Credit(Threshold):
    """`threshold`, of probabilities that `TraceCredit` has raised."""

    def __init__(self, options: Certainty, rows: int, width: int, device: torch.device):
        super().__init__(options, rows, width, device)
        self.credit = TraceCredit(rows, width, device)

    def keep(self, rows: Tensor) -> None:
        self.credit.keep(rows)

    def refine(self, logits: Tensor, places: Tensor, valid: Tensor) -> Tensor:
        return self.credit.fuse(logits, places, valid)
