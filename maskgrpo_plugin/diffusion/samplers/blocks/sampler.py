"""The semi-autoregressive sampler of LLaDA (AR-like reversing): blocks left to right, the most certain tokens first."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from maskgrpo_plugin.diffusion.samplers.blocks.decoder import BlockDecoder
from maskgrpo_plugin.diffusion.samplers.blocks.options import BlockSampler
from maskgrpo_plugin.diffusion.samplers.registry import register_sampler


@register_sampler("semi_autoregressive")
@dataclass(frozen=True, kw_only=True)
class SemiAutoregressiveSampler(BlockSampler):
    """Reveal k tokens per step, block after block (arXiv 2502.09992, Algorithm 5; arXiv 2510.02880, AR-like).

    On a canvas, blocks run from the first mask of any row to the end, and share `steps` as evenly as can be.

    Options: `BlockSampler`'s.
    """

    def decoder(self, model: Callable[..., Any], *, mask_token_id: int, **options: Any) -> BlockDecoder:
        """A running batch that rows join and leave between blocks; see `BlockDecoder`, also for `options`."""
        return BlockDecoder(self, model, mask_token_id=mask_token_id, **options)
