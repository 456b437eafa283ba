"""Coupled-GRPO of DiffuCoder (arXiv 2506.20639): a mask, its complement, and the wholly masked response."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from maskgrpo_plugin.diffusion.estimators.base import Estimator, Pass, Rows, make_pass, register_estimator
from maskgrpo_plugin.diffusion.random import combine_seed, unit_float
from maskgrpo_plugin.diffusion.remasking import response_noise
from maskgrpo_plugin.errors import OptionError, check_number

_LEVEL_STREAM = 0x636F75706C6564  # "coupled"


@register_estimator("coupled")
@dataclass(frozen=True)
class Coupled(Estimator):
    """Three passes per update: all masked; the tokens with u < r; the others. With r ~ U(low, high) per update,

        ℓ̂ = ½·[π(all) + π(first)/r] where the first mask covers the token, else ½·[π(all) + π(second)/(1 − r)].

    Every token has a part in two passes, and the ratio is taken of their sum, so a row's three passes stay in one
    micro-batch: its forward holds three canvases, and micro-batch sizes count them. Splitting them by the chain rule
    would save that memory at the price of one more forward per pass, which three passes are too few to be worth.

    Published masks also cover the tail, which is not in the loss; here the tail is masked in all three passes
    (`canvas="masked"`) or treated like the rest.

    Attributes:
        mu, canvas: see `Estimator`; published μ = 2.
        low, high: range of r, 0 < low ≤ high < 1; published 0.2 and 0.8.
    """

    separable: ClassVar[bool] = False

    mu: int = 2
    low: float = 0.2
    high: float = 0.8

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("low", self.low, 0, 1)
        check_number("high", self.high, 0, 1)
        if not 0 < self.low <= self.high < 1:
            raise OptionError("low", self.low, f"allowed: above 0, up to high={self.high}, which is below 1")

    def passes(self, rows: Rows, *, seed: int, step: int, update: int) -> list[Pass]:
        """See `Estimator.passes`."""
        ratio = self.low + (self.high - self.low) * unit_float(combine_seed(_LEVEL_STREAM, seed, step, update))
        maskable = self.maskable(rows)
        noise = response_noise(maskable, seed=combine_seed(seed, step, update), keys=rows.keys)
        return coupled_passes(self.clean(rows), maskable, noise < ratio, ratio, rows.mask_token_id)


def coupled_passes(tokens: Tensor, maskable: Tensor, first: Tensor, ratio: float, mask_token_id: int) -> list[Pass]:
    """The three passes of a given mask.

    Args:
        tokens: (B, L) the clean canvas.
        maskable: (B, L) bool, the tokens that are masked in the first pass.
        first: (B, L) bool, those of them that are masked in the second pass; the others are in the third.
        ratio: r in (0, 1).
        mask_token_id: id of the mask token.
    """
    masks = ((maskable, 0.5), (maskable & first, 0.5 / ratio), (maskable & ~first, 0.5 / (1 - ratio)))
    return [make_pass(torch.where(mask, mask_token_id, tokens), mask, weight) for mask, weight in masks]
