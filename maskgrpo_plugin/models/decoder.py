"""Mask predictors made of transformers' decoders (Qwen2, Qwen3, …): the same layers and weight names, another mask."""

from typing import Any

import torch
from torch import Tensor
from transformers import PretrainedConfig

from maskgrpo_plugin.diffusion.samplers.blocks.cache import BlockCache
from maskgrpo_plugin.models.attention import BY_ROW, chooses_flex, flash_line
from maskgrpo_plugin.models.interface import MaskPredictorModel
from maskgrpo_plugin.models.layout import Layout, at_columns


class PublishedConfig(PretrainedConfig):
    """Writes the rotary settings under the published keys, which older versions of transformers read.

    Config classes inherit from it and from one of transformers, in this order.
    """

    def to_dict(self) -> dict[str, Any]:
        """As transformers', with `rope_theta` and `rope_scaling` in place of `rope_parameters`."""
        output = super().to_dict()
        rotary = dict(output.pop("rope_parameters", None) or {})
        if "rope_theta" in rotary:
            output["rope_theta"] = rotary.pop("rope_theta")
        rotary.pop("partial_rotary_factor", None)
        output["rope_scaling"] = None if rotary.get("rope_type", "default") == "default" else rotary
        return output


class DecoderMaskPredictor(MaskPredictorModel):
    """A mask predictor that inherits from this class and from a `…ForCausalLM` of transformers, in this order.

    Attention is computed by SDPA, written out (`eager`), or by flash attention where it is in both directions; packed
    lines keep no padding between their attention. With `flex_attention`, the noisy and the clean copies of a line are
    computed by flex attention and all else by SDPA; so it is with `auto`, the default, on a CUDA device.
    """

    supports_packing = True

    def __init__(self, config: Any):
        given = config._attn_implementation
        config._attn_implementation = BY_ROW.get(given, given)
        super().__init__(config)
        self.supports_block_cache = self.block_length is None and self.logits_shift == 0
        self.supports_prefix_cache = self.supports_block_attention
        for module in self.modules():
            if hasattr(module, "is_causal"):
                module.is_causal = False

    def encode(self, inputs_embeds: Tensor, layout: Layout) -> Tensor:
        """Layers and last norm; see `MaskPredictorModel.encode`.

        Raises:
            ValueError: flash attention where a mask of queries and keys is needed.
        """
        x, decoder, options = inputs_embeds, self.get_decoder(), self._attention_options(layout)
        rotary = decoder.rotary_emb(x, layout.position_ids)
        for layer in decoder.layers:
            x = layer(x, position_embeddings=rotary, **options)
        x = decoder.norm(x)
        return x if layout.columns is None else at_columns(x, layout.columns)

    def attends_in_tiles(self, device: torch.device) -> bool:
        """See `MaskPredictorModel.attends_in_tiles`."""
        return chooses_flex(self.config, device)

    def _attention_options(self, layout: Layout) -> dict[str, Any]:
        """What the layers hand through to their attention."""
        implementation = self.config._attn_implementation
        mask, packing = layout.attention_mask, layout.packing
        if layout.prefix is not None and "flash" in implementation:
            raise ValueError(f"attn_implementation={implementation!r} takes no cache of finished blocks; use sdpa")
        if layout.prefix is not None or layout.tiles is not None:
            return {"attention_mask": None, "layout": layout}
        if "flash" not in implementation:
            cache = None if layout.cache is None else _Columns(layout.cache, layout.first_column)
            return {"attention_mask": mask, "packing": packing, "past_key_values": cache}
        if mask is not None or layout.cache is not None:
            raise ValueError(
                f"attn_implementation={implementation!r} takes no mask of queries and keys, which blocks, and a cache, "
                "need; use sdpa"
            )
        return {"attention_mask": None} | ({} if packing is None else flash_line(packing))


class BlockMaskPredictor(DecoderMaskPredictor):
    """A decoder that attends block by block: by the config's `block_size`, None for attention in both directions."""

    supports_block_attention = True

    @staticmethod
    def block_length_of(config: Any) -> int | None:
        """The config's `block_size`; see `MaskPredictorModel`."""
        return config.block_size


class _Columns:
    """A block cache in the place of transformers' cache: renews keys and values from `first_column` on."""

    def __init__(self, cache: BlockCache, first_column: int):
        self.cache, self.first_column = cache, first_column

    def update(self, key: Tensor, value: Tensor, layer: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """See `BlockCache.update`."""
        return self.cache.update(layer, key, value, self.first_column)
