"""The semi-autoregressive sampler of LLaDA (AR-like reversing): blocks left to right, the most certain tokens first."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from maskgrpo_plugin.diffusion.samplers.base import OnStep, SamplerOutput, make_canvas
from maskgrpo_plugin.diffusion.samplers.blocks.decoder import BlockDecoder
from maskgrpo_plugin.diffusion.samplers.blocks.options import BlockSampler
from maskgrpo_plugin.diffusion.samplers.noise import Generators
from maskgrpo_plugin.diffusion.samplers.registry import register_sampler


@register_sampler("semi_autoregressive")
@dataclass(frozen=True, kw_only=True)
class SemiAutoregressiveSampler(BlockSampler):
    """Reveal k tokens per step, block after block (arXiv 2502.09992, Algorithm 5; arXiv 2510.02880, AR-like).

    Options: `BlockSampler`'s.
    """

    @torch.no_grad()
    def generate(
        self,
        model: Callable[..., Any],
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        *,
        mask_token_id: int,
        generator: Generators = None,
        on_step: OnStep | None = None,
    ) -> SamplerOutput:
        """Sample a batch; see `Sampler.generate`. At temperature 0 it equals the published sampler token for token.

        On a canvas, blocks run from the first mask of any row to the end, and share `steps` as evenly as can be.

        Raises:
            OptionError: `fill_token_id` is the mask token, or a canvas has more blocks than there are steps.
            ValueError: the number of generators is not the batch size, or a cache with a model that takes none.
        """
        canvas = make_canvas(input_ids, attention_mask, self.response_length, mask_token_id)
        rows, length = canvas.tokens.shape
        own = generator if isinstance(generator, Sequence) else [generator] * rows
        decoder = BlockDecoder(
            self, model, mask_token_id=mask_token_id, response_length=length - canvas.start, on_step=on_step
        )
        decoder.join(canvas.tokens, canvas.attention_mask, own)
        while decoder.running:
            decoder.decode_block()
        return decoder.output()

    def decoder(self, model: Callable[..., Any], *, mask_token_id: int, **options: Any) -> BlockDecoder:
        """A running batch that rows join and leave between blocks; see `BlockDecoder`, also for `options`."""
        return BlockDecoder(self, model, mask_token_id=mask_token_id, **options)
