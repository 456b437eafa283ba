"""Estimates of a completion's evidence bound from random masks: ESPO, GDPO, BGPO, EBPO, and GDSD's score without it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from maskgrpo_plugin.diffusion.estimators.base import Estimator, Pass, Rows, register_estimator
from maskgrpo_plugin.diffusion.random import combine_seed, uniform_noise
from maskgrpo_plugin.diffusion.remasking import response_noise
from maskgrpo_plugin.errors import OptionError, check_choice, check_number

QUADRATURES = {  # levels t on [0, 1] and their weights
    "gauss-2": ((0.5 - 0.5 / math.sqrt(3), 0.5), (0.5 + 0.5 / math.sqrt(3), 0.5)),
    "gauss-3": ((0.5 - 0.5 * math.sqrt(0.6), 5 / 18), (0.5, 8 / 18), (0.5 + 0.5 * math.sqrt(0.6), 5 / 18)),
    "simpson": ((0.1, 1 / 6), (0.5, 4 / 6), (1.0, 1 / 6)),
}
NODE_WEIGHTS = ("level", "share")
WEIGHTINGS = ("inverse_share", "none")
_LEVEL_STREAM = 0x656C626F  # "elbo": keeps the numbers of masked tokens apart from the masks of the same seed and step


@register_estimator("elbo")
@dataclass(frozen=True)
class ELBO(Estimator):
    """The evidence bound Σ_{l=1..n} 1/l · E_{|M|=l} Σ_{i∈M} π_i of the n maskable tokens, from `draws` random masks M.

    A draw masks l tokens, l uniform in 1 … n, and its estimate is (n/l)·Σ_{i∈M} π_i. With `complement` (ESPO's coupled
    masks) l is uniform in 0 … n, a second pass masks the other n − l tokens, and the estimate is

        ½·[(n + 1)/l · Σ_{i∈M} π_i + (n + 1)/(n − l) · Σ_{i∉M} π_i],

    where an empty sum is 0. ℓ̂ is the mean over the draws; its sum over the row is the bound. Of n = 4, a draw of l = 1
    with its complement has the weights 5/2 for the masked token and 5/6 for the others.

    A row's l are stratified over its own draws: l_j = lowest + ⌊frac(u + j/draws)·(number of values)⌋, u ~ U(0, 1).

    Attributes:
        mu, canvas: see `Estimator`. ESPO publishes `full`: the tail is masked and scored. `trimmed` is DARE's form.
        draws: masks per update, 1 or more; with `nodes` per node.
        complement: each mask with its complement, so that every token is scored once per draw.
        nodes: a quadrature over the level t in place of random l: `gauss-2`, `gauss-3` or `simpson` (GDPO). A draw at
            the level t masks l = max(1, ⌊t·n⌋) tokens.
        node_weight: of the node (t, w): `level`, w/t per masked token as published, which is biased where l/n is not t;
            `share`: w·n/l.
        block_length: mask in every block of so many response tokens at once, with an l of its own (EBPO), counted from
            the first response token; None: the response is one block.
        weighting: `inverse_share`: as above; `none`: Σ π_i over the draw's passes, divided by their number (GDSD).
        apart: each draw is an estimate with a ratio of its own (BGPO, GDSD), and a row of the loss; else the draws of a
            row are added, and lie in one micro-batch.
        redraw: new masks at every update; false: all updates of a step share them (BGPO, EBPO, GDPO), so that the old
            policy is asked once.
    """

    separable: ClassVar[bool] = False
    score: ClassVar[str] = "sequence"

    draws: int = 2
    complement: bool = False
    nodes: str | None = None
    node_weight: str = "level"
    block_length: int | None = None
    weighting: str = "inverse_share"
    apart: bool = False
    redraw: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("draws", self.draws, 1, whole=True)
        check_choice("node_weight", self.node_weight, NODE_WEIGHTS)
        check_choice("weighting", self.weighting, WEIGHTINGS)
        if self.block_length is not None:
            check_number("block_length", self.block_length, 1, whole=True)
        if self.nodes is None:
            return
        check_choice("nodes", self.nodes, tuple(QUADRATURES))
        for option, plain in (("complement", False), ("block_length", None), ("apart", False)):
            if getattr(self, option) != plain:
                raise OptionError(option, getattr(self, option), f"with nodes={self.nodes} use {plain}")
        if self.weighting != "inverse_share":
            raise OptionError("weighting", self.weighting, f"with nodes={self.nodes} use inverse_share")

    @property
    def varies(self) -> bool:  # type: ignore[override]
        """`redraw`."""
        return self.redraw

    @property
    def estimates(self) -> int:
        """The draws, where each stands for itself."""
        return self.draws if self.apart else 1

    def passes(self, rows: Rows, *, seed: int, step: int, update: int) -> list[Pass]:
        """See `Estimator.passes`; a draw's complement follows it."""
        return self.passes_of(rows, self.masks(rows, combine_seed(seed, step, update if self.redraw else 0)))

    def masks(self, rows: Rows, seed: int) -> list[Tensor]:
        """The draws' masks, (B, L) bool each; with `nodes` those of the first node come first.

        Args:
            rows: the completions.
            seed: of step and update.
        """
        maskable = self.maskable(rows)
        block = self._block(rows)
        size = _per_block(maskable, block)
        found = []
        for number in range(self.draws * len(self._levels)):
            level = self._levels[number // self.draws]
            if level is None:
                count = self._random_count(rows, block, size, seed, number)
            else:
                count = (level[0] * size.double()).long().clamp(min=1)
            noise = response_noise(maskable, seed=combine_seed(seed, number), keys=rows.keys)
            found.append(_least(noise, maskable, block, count))
        return found

    def passes_of(self, rows: Rows, masks: Sequence[Tensor]) -> list[Pass]:
        """The passes of given masks, as `masks` orders them."""
        maskable, clean, block = self.maskable(rows), self.clean(rows), self._block(rows)
        size, factor = _per_block(maskable, block).double(), 1.0 if self.apart else 1 / self.draws
        found = []
        for number, masked in enumerate(masks):
            level = self._levels[number // self.draws]
            for side in (masked, maskable & ~masked) if self.complement else (masked,):
                weight = factor * self._coefficient(size, _per_block(side, block), level)
                found.append(Pass(clean.masked_fill(side, rows.mask_token_id), side, side * weight))
        return found

    def counted(self, rows: Rows, passes: Sequence[Pass]) -> Tensor:
        """The maskable tokens: the score is theirs, whatever the draws masked."""
        return self.maskable(rows)

    @property
    def _levels(self) -> Sequence[tuple[float, float] | None]:
        """The quadrature's nodes; without one, one level that stands for a random number of masked tokens."""
        return (None,) if self.nodes is None else QUADRATURES[self.nodes]

    def _block(self, rows: Rows) -> Tensor:
        """(B, L) int64, the block of each response token, 0 elsewhere."""
        if self.block_length is None:
            return torch.zeros_like(rows.tokens)
        return rows.response_blocks(self.block_length)

    def _random_count(self, rows: Rows, block: Tensor, size: Tensor, seed: int, draw: int) -> Tensor:
        """(B, L) int64, how many tokens a draw masks of each token's block."""
        lowest = 0 if self.complement else 1
        blocks = (block.masked_fill(~self.maskable(rows), 0).amax(-1, keepdim=True) + 1).double()
        start = uniform_noise(combine_seed(_LEVEL_STREAM, seed), rows.keys, 1)
        position = (start + (draw * blocks + block) / (self.draws * blocks)) % 1
        return lowest + (position * (size + 1 - lowest)).long()

    def _coefficient(self, size: Tensor, masked: Tensor, level: tuple[float, float] | None) -> Tensor:
        """(B, L) factor of π where a pass scores `masked` of the `size` tokens of a block."""
        if self.weighting == "none":
            return torch.full_like(size, 0.5 if self.complement else 1.0)
        masked = masked.clamp(min=1)
        if level is not None:
            t, weight = level
            return torch.full_like(size, weight / t) if self.node_weight == "level" else weight * size / masked
        return 0.5 * (size + 1) / masked if self.complement else size / masked


def _per_block(chosen: Tensor, block: Tensor) -> Tensor:
    """(B, L) int64, how many of the `chosen` (B, L) bool lie in each position's block."""
    counts = torch.zeros_like(block).scatter_add_(1, block, chosen.long())
    return counts.gather(1, block)


def _least(noise: Tensor, maskable: Tensor, block: Tensor, count: Tensor) -> Tensor:
    """(B, L) bool: in each block the `count` maskable positions of least noise.

    With the noise [.3, .1, .9, .2], all of one block, and the count 2: [0, 1, 0, 1].
    """
    rank = (noise + block).masked_fill(~maskable, torch.inf).argsort(-1).argsort(-1)
    per_block = torch.zeros_like(block).scatter_add_(1, block, maskable.long())
    before = (per_block.cumsum(-1) - per_block).gather(1, block)
    return maskable & (rank - before < count)
