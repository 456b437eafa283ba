"""Where the columns of a forward pass stand, and what they attend to."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from maskgrpo_plugin.diffusion.packing import Packing
from maskgrpo_plugin.diffusion.samplers.block_causal.cache import PrefixCache
from maskgrpo_plugin.diffusion.samplers.blocks.cache import BlockCache


@dataclass(frozen=True)
class Layout:
    """Where the columns of a forward pass stand, and what they attend to.

    Attributes:
        position_ids: (B, W) int64, number of tokens of the row before each column; (1, T) of a packed line.
        attention_mask: (B, 1, W, L) bool, true = attend; of a packed line's rows, (B, 1, L, L), padding hidden; None:
            every column attends to all of its row.
        packing: of a packed line (1, T), whose rows attend to themselves alone; None of a batch.
        columns: (B, K) int64, the columns whose hidden states are wanted; (1, N) places of a packed line, as many of
            each row; None: all.
        cache: keys and values of all L columns of the canvas, to attend to and to renew.
        first_column: column of the canvas where the W columns begin.
        prefix: keys and values of each row's blocks so far, to attend to and to renew.
        slots: (B, W) int64, the column of `prefix` that each column renews.
        tiles: flex attention's mask of a packed line, (1, 1, T, T), in place of `attention_mask`.
    """

    position_ids: Tensor
    attention_mask: Tensor | None = None
    packing: Packing | None = None
    columns: Tensor | None = None
    cache: BlockCache | None = None
    first_column: int = 0
    prefix: PrefixCache | None = None
    slots: Tensor | None = None
    tiles: BlockMask | None = None


def at_columns(x: Tensor, columns: Tensor) -> Tensor:
    """Hidden states (B, K, D) of x (B, L, D) at `columns` (B, K)."""
    return x.gather(1, columns.unsqueeze(-1).expand(-1, -1, x.shape[-1]))


def mask_at_columns(mask: Tensor, columns: Tensor) -> Tensor:
    """The mask (B, 1, K, L) of the queries at `columns` (B, K), from (B, 1, W, L)."""
    return at_columns(mask.squeeze(1), columns).unsqueeze(1)


def lay_out(
    x: Tensor,
    attention_mask: Tensor | None,
    position_ids: Tensor | None,
    packing: Packing | None,
    columns: Tensor | None,
    cache: BlockCache | PrefixCache | None,
    first_column: int,
    block_length: int | None,
) -> Layout:
    """The layout of embedded columns x (B, W, D), or of a packed line (1, T, D).

    With a `block_length` attention is block-causal, except under a mask (B, 1, W, L), which says all by itself.
    """
    if isinstance(cache, PrefixCache):
        assert position_ids is not None and block_length is not None
        return _lay_out_cached(attention_mask, position_ids, packing, columns, cache, block_length)
    if packing is not None:
        positions = packing.position_ids if position_ids is None else position_ids
        mask = None if block_length is None else block_causal_mask(packing.unpack(positions), block_length)
        return Layout(positions, None if mask is None else mask & packing.mask[:, None, None, :], packing, columns)
    positions = default_positions(x, attention_mask, first_column) if position_ids is None else position_ids
    mask = rectangular_mask(attention_mask, x.shape[1])
    if block_length is not None and (attention_mask is None or attention_mask.dim() == 2):
        allowed = block_causal_mask(positions, block_length)
        mask = allowed if mask is None else mask & allowed
    return Layout(positions, mask, None, columns, cache, first_column)


def _lay_out_cached(
    attention_mask: Tensor | None,
    position_ids: Tensor,
    packing: Packing | None,
    columns: Tensor | None,
    cache: PrefixCache,
    block_length: int,
) -> Layout:
    """The layout of a few columns of each row, which attend to the cache's used columns up to their own block's end."""
    positions = position_ids if packing is None else packing.unpack(position_ids)
    cached = torch.arange(cache.used, device=positions.device)
    mask = (cached // block_length <= (positions // block_length).unsqueeze(-1)).unsqueeze(1)
    if attention_mask is not None:
        mask = mask & attention_mask.bool()[:, None, None, :]
    slots = positions if packing is None else positions.masked_fill(~packing.mask, cache.columns)
    return Layout(position_ids, mask, packing, columns, prefix=cache, slots=slots)


def two_copy_mask(position_ids: Tensor, noisy: Tensor, block_length: int) -> Tensor:
    """What the noisy and the clean copy of a row attend to, (B, 1, L, L) bool.

    A noisy column attends to the noisy ones of its own block and to the clean ones of the blocks before it; a clean
    column to the clean ones of its own block and of those before it.

    Args:
        position_ids: (B, L) positions in the row, of both copies.
        noisy: (B, L) bool, true at the columns of the noisy copy.
        block_length: tokens per block.
    """
    block = position_ids // block_length
    own, before = block.unsqueeze(-1) == block.unsqueeze(-2), block.unsqueeze(-1) > block.unsqueeze(-2)
    of_noisy, to_noisy = noisy.unsqueeze(-1), noisy.unsqueeze(-2)
    return ((of_noisy == to_noisy) & own | ~to_noisy & before).unsqueeze(1)


def block_causal_mask(position_ids: Tensor, block_length: int) -> Tensor:
    """Which columns attend to which, (B, 1, L, L) bool: each to its own block and to those before it.

    Positions 0 1 2 3 4 in blocks of two: columns 0 and 1 attend to 0 and 1, columns 2 and 3 to 0 … 3, column 4 to all.

    Args:
        position_ids: (B, L), counted from the row's first token, prompt included.
        block_length: tokens per block, 1 or more; 1 is left-to-right attention.
    """
    block = position_ids // block_length
    return (block.unsqueeze(-1) >= block.unsqueeze(-2)).unsqueeze(1)


def rectangular_mask(attention_mask: Tensor | None, width: int) -> Tensor | None:
    """The mask as (B, 1, W, L) bool, from one of that shape or from (B, L); None where it is known to hide nothing."""
    if attention_mask is None or attention_mask.dim() == 4:
        return attention_mask
    if attention_mask.device.type == "cpu" and bool(attention_mask.all()):
        return None
    return attention_mask.bool()[:, None, None, :].expand(-1, 1, width, -1)


def default_positions(x: Tensor, attention_mask: Tensor | None, first_column: int = 0) -> Tensor:
    """Positions of (B, W, …), the columns from `first_column` on: counted over tokens alone where a (B, L) mask tells
    padding apart; (B, W) int64.
    """
    last = first_column + x.shape[1]
    if attention_mask is not None and attention_mask.dim() == 2:
        return (attention_mask.long().cumsum(-1) - 1).clamp(min=0)[:, first_column:last]
    return torch.arange(first_column, last, device=x.device).expand(x.shape[0], -1)
