"""Attention of batches and of packed lines, for LLaDA's blocks and for the layers of transformers.

The layers of transformers find their attention function by `config._attn_implementation` and hand further arguments
through to it. `sdpa_by_row` and `eager_by_row`, registered here, take a `packing` that way: the rows of a line then
attend to themselves alone, and no other part of a layer sees padding. Flash attention knows lines by itself
(`flash_line`), and so does flex attention, by its mask of tiles; what has none is computed by SDPA.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from transformers import AttentionInterface, PretrainedConfig
from transformers.integrations.flex_attention import flex_attention_forward
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from maskgrpo_plugin.diffusion.packing import Packing
from maskgrpo_plugin.models.layout import Layout

Attention = Callable[..., tuple[Tensor, Any]]
BY_ROW = {  # by what is asked for, in the names of transformers
    None: "auto_by_row",
    "auto": "auto_by_row",
    "sdpa": "sdpa_by_row",
    "flex_attention": "flex_by_row",
    "eager": "eager_by_row",
}
FLEX_HEAD_SIZE = 16  # the smallest that flex attention computes on a GPU


def eager_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention written out; (B, H, L, d) -> (B, L, H, d). `attention_mask` (B, 1, L, L) bool, true = attend."""
    groups = module.num_key_value_groups
    key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    scores = query @ key.transpose(-1, -2) * scaling
    if attention_mask is not None:
        scores = scores.masked_fill(~attention_mask, torch.finfo(scores.dtype).min)
    weights = F.dropout(scores.softmax(-1, dtype=torch.float32).to(query.dtype), dropout, module.training)
    return (weights @ value).transpose(1, 2), None


def attend_by_row(
    attend: Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    packing: Packing,
    attention_mask: Tensor | None = None,
    *,
    at_columns: bool = False,
) -> Tensor:
    """Attention of a packed line, by way of its rows.

    Args:
        attend: attention of a batch: (B, H, K, d), two of (B, H', L, d) and a mask (B, 1, K, L) or None
            -> (B, K, H, d).
        query: (1, H, T, d); with `at_columns` (1, H, B·K, d), as many of each row.
        key, value: (1, H', T, d).
        packing: of the line.
        attention_mask: (B, 1, L, L) bool, true = attend, which also hides padding; None: each row attends to all of
            itself.

    Returns:
        (1, T or B·K, H, d).
    """
    key, value = (packing.unpack(part.transpose(1, 2)).transpose(1, 2) for part in (key, value))
    query = query.transpose(1, 2)
    rows = query.unflatten(1, (packing.rows, -1))[0] if at_columns else packing.unpack(query)
    if attention_mask is None and not packing.is_even:
        attention_mask = packing.mask[:, None, None, :].expand(-1, 1, rows.shape[1], -1)
    attended = attend(rows.transpose(1, 2), key, value, attention_mask)
    return attended.flatten(0, 1).unsqueeze(0) if at_columns else packing.pack(attended)


def attend_to_cache(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: Layout,
    scaling: float | None = None,
) -> Tensor:
    """Attention of a few columns of each row to the cache of `layout`, which takes their keys and values in.

    Heads that share keys and values are laid out as further queries, so that no copy of the cache is made for them.

    Args:
        module: the attention layer.
        query: (B, H, W, d), or (1, H, T, d) of a packed line.
        key, value: (B, H', W, d) or (1, H', T, d).
        layout: with `prefix`.
        scaling: of the scores; None: 1/√d.

    Returns:
        (B, W, H, d) or (1, T, H, d).
    """
    packing = layout.packing
    if packing is not None:
        query, key, value = (packing.unpack(part.transpose(1, 2)).transpose(1, 2) for part in (query, key, value))
    assert layout.prefix is not None and layout.slots is not None and layout.attention_mask is not None
    keys, values = layout.prefix.update(module.layer_idx, key, value, layout.slots)
    rows, heads, width, size = query.shape
    groups = heads // keys.shape[1]
    folded = query.reshape(rows, keys.shape[1], groups * width, size)
    mask = layout.attention_mask.repeat(1, 1, groups, 1)
    attended = F.scaled_dot_product_attention(folded, keys, values, attn_mask=mask, scale=scaling)
    attended = attended.view(rows, heads, width, size).transpose(1, 2)
    return attended if packing is None else packing.pack(attended)


def chooses_flex(config: PretrainedConfig, device: torch.device) -> bool:
    """Whether a model attends by flex attention where it can: as asked for, or by `auto` on a CUDA device."""
    if config._attn_implementation != BY_ROW["auto"]:
        return config._attn_implementation == BY_ROW["flex_attention"]
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return device.type == "cuda" and size >= FLEX_HEAD_SIZE and not config.attention_dropout


def attend_in_tiles(
    module: Any, query: Tensor, key: Tensor, value: Tensor, tiles: BlockMask, scaling: float | None, **options: Any
) -> Tensor:
    """Flex attention of a packed line; (1, H, T, d), two of (1, H', T, d) -> (1, T, H, d).

    On the CPU torch has no gradients of it, and what it compiles there fails for lines whose lengths differ.
    """
    query, key = query.to(value.dtype), key.to(value.dtype)  # norms under automatic casts give float32
    if query.device.type != "cpu":
        return flex_attention_forward(module, query, key, value, tiles, scaling, **options)[0]
    return flex_attention(query, key, value, block_mask=tiles, scale=scaling, enable_gqa=True).transpose(1, 2)


def flash_line(packing: Packing) -> dict[str, Any]:
    """Arguments by which transformers' flash attention learns where the rows of a line begin."""
    return {
        "cu_seq_lens_q": packing.boundaries,
        "cu_seq_lens_k": packing.boundaries,
        "max_length_q": packing.longest,
        "max_length_k": packing.longest,
    }


def _by_row(attention: Attention) -> Attention:
    """An attention function of transformers that attends in both directions, and takes lines."""

    def by_row(
        module: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        packing: Packing | None = None,
        layout: Layout | None = None,
        scaling: float | None = None,
        **options: Any,
    ) -> tuple[Tensor, None]:
        if layout is not None and layout.tiles is not None:
            return attend_in_tiles(module, query, key, value, layout.tiles, scaling, **options), None
        if layout is not None:
            return attend_to_cache(module, query, key, value, layout, scaling), None

        def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
            return attention(module, query, key, value, mask, scaling=scaling, **options | {"is_causal": False})[0]

        if packing is None:
            return attend(query, key, value, attention_mask), None
        return attend_by_row(attend, query, key, value, packing, attention_mask), None

    return by_row


for _name in ("auto", "sdpa", "flex_attention"):
    AttentionInterface.register(BY_ROW[_name], _by_row(sdpa_attention_forward))
AttentionInterface.register(BY_ROW["eager"], _by_row(eager_attention))
