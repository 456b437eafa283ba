"""The block-causal sampler of block-diffusion models (SDAR, LLaDA2, A2D, Fast-dLLM v2)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from maskgrpo_plugin.diffusion.samplers.block_causal.decoder import BlockCausalDecoder
from maskgrpo_plugin.diffusion.samplers.block_causal.options import BlockCausalOptions
from maskgrpo_plugin.diffusion.samplers.registry import register_sampler


@register_sampler("block_causal")
@dataclass(frozen=True, kw_only=True)
class BlockCausalSampler(BlockCausalOptions):
    """Reveal the tokens of a block over a few steps, block after block, each seeing those before it (BD3-LM, arXiv
    2503.09573; SDAR, arXiv 2510.06303).

    Blocks count from the row's first token, prompt included, so that the first block of a response may begin with the
    prompt's last tokens; the last one ends with the response. Where the model's logits stand before their token
    (Fast-dLLM v2), the first token of a block is revealed by itself, from the last logits of the block before, as
    published.

    Options: `BlockCausalOptions`'.
    """

    def decoder(self, model: Callable[..., Any], *, mask_token_id: int, **options: Any) -> BlockCausalDecoder:
        """A running batch that rows join and leave; see `BlockCausalDecoder`, also for `options`."""
        return BlockCausalDecoder(self, model, mask_token_id=mask_token_id, **options)
