"""The training objective of masked diffusion models: each row masked at a level of its own, stratified over a batch."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from maskgrpo_plugin.diffusion.estimators.base import Estimator, Pass, Rows, register_estimator
from maskgrpo_plugin.diffusion.random import combine_seed, uniform_noise, unit_float
from maskgrpo_plugin.diffusion.remasking import least_noise, response_noise
from maskgrpo_plugin.errors import check_choice, check_number

_LEVEL_STREAM = 0x7374726174  # "strat": keeps the shift of the levels apart from the masks of the same seed and step
_BLOCK_STREAM = 0x626C6F636B  # "block"
BLOCK_WEIGHTS = ("row", "token")


@register_estimator("denoising")
@dataclass(frozen=True)
class Denoising(Estimator):
    """One pass; −Σ ℓ̂ of a row is its negative evidence bound per token, for one draw of its level.

    The row with the key k has u = frac(shift + k/strata), with one shift ~ U(0, 1) per seed, step and update: over
    any `strata` keys that follow one another the levels are evenly spread, and each is uniform.

    Text (LLaDA, arXiv 2502.09992, Algorithm 2): t = ε + (1 − ε)·u; each of the L tokens of the answer is masked with
    probability t; a masked token has the weight 1/(t·L). Images (MMaDA, arXiv 2505.15809): the share
    max(cos(π·u/2), least) of the N image tokens, rounded, at least one; a masked token has the weight 1/their number.

    With the tokens [5, 6, 7, 8], the first of them a prompt, u = 0.5 and ε = 0, two of the three tokens masked: the
    weights are [0, 2/3, 0, 2/3].

    With `block_length` a text is learned as Blockwise SFT does (arXiv 2508.19529): the tokens of one random block of
    the answer are masked with probability t; what lies before the block is visible, all that follows is masked and not
    learned, as semi-autoregressive decoding meets it. A masked token has the weight 1/their number as published
    (`block_weights: row`); or the same in every row, 1/(the number of a block that are masked on average) (`token`).
    Then what has to be worked out, in a block that is masked nearly whole, counts as much as what can be told from the
    tokens around it. Blocks that begin after the first end token are never drawn. The published code draws a row's
    blocks without repetition.

    Attributes:
        mu, canvas: see `Estimator`; `full`: the end tokens that fill a row are learned, so that answers end.
        strata: number of keys over which levels are evenly spread, 1 or more; of a training step the rows of the batch.
        least_level: ε of text, in (0, 1); published 1e-3.
        label_smoothing: ε of image tokens, in [0, 1]: their ℓ̂ is (1 − ε)·ℓ + ε·the mean of ℓ over the codebook.
        least_image_level: least share of an image's tokens that is masked, in [0, 1]; published 0.3.
        block_length: tokens of a block of a text, 1 or more; None: the answer is masked as a whole.
        block_weights: `row` or `token`, see above.
    """

    mu: int = 1
    canvas: str = "full"
    strata: int = 1
    least_level: float = 1e-3
    least_image_level: float = 0.3
    label_smoothing: float = 0.0
    block_length: int | None = None
    block_weights: str = "row"

    accepts: ClassVar[tuple[str, ...]] = ("image_tokens",)
    uses_old: ClassVar[bool] = False
    uses_reference: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("strata", self.strata, 1, whole=True)
        check_number("least_level", self.least_level, 1e-9, 1)
        check_number("least_image_level", self.least_image_level, 0, 1)
        check_number("label_smoothing", self.label_smoothing, 0, 1)
        if self.block_length is not None:
            check_number("block_length", self.block_length, 1, whole=True)
        check_choice("block_weights", self.block_weights, BLOCK_WEIGHTS)

    @property
    def target_smoothing(self) -> float:
        """`label_smoothing`."""
        return self.label_smoothing

    def passes(self, rows: Rows, *, seed: int, step: int, update: int) -> list[Pass]:
        """See `Estimator.passes`."""
        maskable = self.maskable(rows)
        length = maskable.sum(-1, keepdim=True).double().clamp(min=1)
        position = self.row_positions(rows.keys, seed=seed, step=step, update=update)
        noise = response_noise(maskable, seed=combine_seed(seed, step, update), keys=rows.keys)
        level = (self.least_level + (1 - self.least_level) * position).unsqueeze(1)
        masked, weight = maskable & (noise < level), 1 / (level * length)
        hidden = torch.zeros_like(maskable)
        if self.block_length is not None:
            block, active = self._blocks(rows, maskable, combine_seed(_BLOCK_STREAM, seed, step, update))
            masked, hidden = masked & (block == active), rows.response & (block > active)
            if self.block_weights == "row":
                weight = 1 / masked.sum(-1, keepdim=True).clamp(min=1).double()
            else:
                weight = torch.full_like(level, 2 / ((1 + self.least_level) * self.block_length))
        if rows.image_tokens is not None:
            is_image = (rows.image_tokens > 0).any(-1, keepdim=True)
            share = torch.cos(position * (torch.pi / 2)).clamp(min=self.least_image_level).unsqueeze(1)
            count = (share * length).round().clamp(min=1)
            masked = torch.where(is_image, least_noise(noise, maskable, count), masked)
            hidden = hidden & ~is_image
            weight = torch.where(is_image, 1 / count, weight)
        return [Pass(self.clean(rows).masked_fill(masked | hidden, rows.mask_token_id), masked, masked * weight)]

    def _blocks(self, rows: Rows, maskable: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        """The block (B, L) of each response token, and the one (B, 1) that is learned."""
        assert self.block_length is not None
        block = rows.response_blocks(self.block_length)
        last = block.masked_fill(~(maskable & ~rows.tail), 0).amax(-1, keepdim=True)
        return block, (uniform_noise(seed, rows.keys, 1) * (last + 1)).long()

    def row_positions(self, keys: Tensor, *, seed: int, step: int, update: int) -> Tensor:
        """u of each row in [0, 1), (B,) float64, from its key (B,)."""
        shift = unit_float(combine_seed(_LEVEL_STREAM, seed, step, update))
        return (shift + keys.remainder(self.strata).double() / self.strata) % 1
