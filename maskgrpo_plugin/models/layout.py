"""Where the columns of a forward pass stand, and what they attend to."""

from dataclasses import dataclass

import torch
from torch import Tensor

from maskgrpo_plugin.diffusion.packing import Packing
from maskgrpo_plugin.diffusion.samplers.blocks.cache import BlockCache


@dataclass(frozen=True)
class Layout:
    """Where the columns of a forward pass stand, and what they attend to.

    Attributes:
        position_ids: (B, W) int64, number of tokens of the row before each column; (1, T) of a packed line.
        attention_mask: (B, 1, W, L) bool, true = attend; None: every column attends to all of its row.
        packing: of a packed line (1, T), whose rows attend to themselves alone; None of a batch.
        columns: (B, K) int64, the columns whose hidden states are wanted; (1, N) places of a packed line, as many of
            each row; None: all.
        cache: keys and values of all L columns of the canvas, to attend to and to renew.
        first_column: column of the canvas where the W columns begin.
        block_length: of block-causal attention; None: the model's.
    """

    position_ids: Tensor
    attention_mask: Tensor | None = None
    packing: Packing | None = None
    columns: Tensor | None = None
    cache: BlockCache | None = None
    first_column: int = 0
    block_length: int | None = None


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
    cache: BlockCache | None,
    first_column: int,
    block_length: int | None,
) -> Layout:
    """The layout of embedded columns x (B, W, D), or of a packed line (1, T, D)."""
    if packing is not None:
        positions = packing.position_ids if position_ids is None else position_ids
        return Layout(positions, None, packing, columns, block_length=block_length)
    positions = default_positions(x, attention_mask, first_column) if position_ids is None else position_ids
    mask = rectangular_mask(attention_mask, x.shape[1])
    return Layout(positions, mask, None, columns, cache, first_column, block_length)


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
