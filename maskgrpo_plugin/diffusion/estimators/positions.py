"""JustGRPO (arXiv 2601.15165): each token given the tokens before it, for some of the positions."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from maskgrpo_plugin.diffusion.estimators.base import Estimator, Pass, Rows, by_block, by_token, register_estimator
from maskgrpo_plugin.diffusion.random import combine_seed, uniform_noise
from maskgrpo_plugin.errors import OptionError, check_number


@register_estimator("positions")
@dataclass(frozen=True)
class Positions(Estimator):
    """One pass per sampled position: the tokens before it are visible, it and those after it are masked, it is scored.

    For rollouts from left to right Σ_i π(o_i | o_<i) over the n maskable tokens is the exact log-likelihood. Each pass
    is an unbiased estimate of that sum by itself, with the weight n, and a row of the loss of its own: the mean over
    rows is unbiased, whatever `sampled` is, and memory is that of one pass. The positions are systematic: with one
    u ~ U(0, 1) per completion and update, pass k of K has position ⌊(k + u)·n/K⌋; K = n is all of them, once each.

    On a block-causal model, which sees the clean blocks before each one, the positions are those of every block: one
    pass holds a position of each, with the weight of its block's length n. One pass is an unbiased estimate, and as
    many as a block has tokens are all of them.

    With the answer [5, 6, 7, 8], the mask token 9 and K = 2: [9, 9, 9, 9] or [5, 9, 9, 9], then [5, 6, 9, 9] or
    [5, 6, 7, 9].

    Attributes:
        mu, canvas: see `Estimator`; published `full`, so that the tail is learned.
        sampled: K, 1 or more; published: the length of the response. Of a block-causal model at most the length of a
            block.
    """

    separable: ClassVar[bool] = False
    uses_reference: ClassVar[bool] = False
    score: ClassVar[str] = "samples"

    sampled: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("sampled", self.sampled, 1, whole=True)

    def check_blocks(self, block_length: int) -> None:
        """See `Estimator.check_blocks`: more passes than a block has tokens would repeat them."""
        if self.sampled > block_length:
            allowed = f"at most {block_length}, a block of this checkpoint: a pass holds a position of every block"
            raise OptionError("sampled", self.sampled, f"allowed: {allowed}")

    @property
    def estimates(self) -> int:
        """`sampled`."""
        return self.sampled

    def passes(self, rows: Rows, *, seed: int, step: int, update: int) -> list[Pass]:
        """See `Estimator.passes`."""
        maskable, clean = self.maskable(rows), self.clean(rows)
        rank, length = _ranks(rows, maskable)
        start = uniform_noise(combine_seed(seed, step, update), rows.keys, 1)
        found = []
        for number in range(self.sampled):
            position = ((number + start) * length / self.sampled).long()
            scored = maskable & (rank == torch.minimum(position, length - 1))
            noisy = clean.masked_fill(maskable & (rank >= position), rows.mask_token_id)
            found.append(Pass(noisy, scored, scored * length.double()))
        return found

    def counted(self, rows: Rows, passes: Sequence[Pass]) -> Tensor:
        """The maskable tokens, of whose sum each pass is an estimate."""
        return self.maskable(rows)


def _ranks(rows: Rows, maskable: Tensor) -> tuple[Tensor, Tensor]:
    """(B, L) int64, the number of each maskable token (B, L) among those of its row, or of its block where there are
    blocks, and how many these are.
    """
    if rows.block_length is None:
        rank = maskable.long().cumsum(-1) - 1
        return rank, maskable.sum(-1, keepdim=True).expand_as(rank)
    table = by_block(maskable, False, rows)
    rank = table.long().cumsum(-1) - 1
    return by_token(rank, rows), by_token(table.sum(-1, keepdim=True).expand_as(rank), rows)
