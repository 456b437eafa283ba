"""Batches without their padding: the tokens of all rows in one line."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Packing:
    """Where the T tokens of a padded batch (B, L) lie once its padding is left out, row after row.

    Attributes:
        mask: (B, L) bool, true = token.
        index: (T,) int64, each token's place in the flattened batch.
        places: (B, L) int64, each column's place in the line; that of a token before it, or 0, where it is padding.
        position_ids: (1, T) int64, tokens of the same row before each.
        boundaries: (B + 1,) int32, where rows begin and end in the line.
        longest: tokens of the longest row.
    """

    mask: Tensor
    index: Tensor
    places: Tensor
    position_ids: Tensor
    boundaries: Tensor
    longest: int

    @classmethod
    def of(cls, attention_mask: Tensor) -> Packing | None:
        """The packing of a mask (B, L), 1 = token, 0 = padding anywhere; None where nothing is padded.

        The device is waited for, to learn the number of tokens.
        """
        mask = attention_mask.bool()
        lengths = mask.sum(-1)
        longest = int(lengths.max())
        if longest == mask.shape[1] and bool(mask.all()):
            return None
        index = mask.flatten().nonzero().squeeze(-1)
        places = (mask.flatten().cumsum(0) - 1).clamp(min=0).view(mask.shape)
        positions = (mask.long().cumsum(-1) - 1).flatten()[index].unsqueeze(0)
        boundaries = torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).to(torch.int32)
        return cls(mask, index, places, positions, boundaries, longest)

    def pack(self, rows: Tensor) -> Tensor:
        """(B, L, …) -> (1, T, …)."""
        return rows.flatten(0, 1)[self.index].unsqueeze(0)

    def unpack(self, line: Tensor) -> Tensor:
        """(1, T, …) -> (B, L, …), 0 at padding."""
        rows = line.new_zeros(self.mask.numel(), *line.shape[2:])
        return rows.index_copy(0, self.index, line[0]).view(*self.mask.shape, *line.shape[2:])

    def pack_columns(self, columns: Tensor) -> Tensor:
        """Columns (B, K) of the rows, none of them padding, as places in the line; (1, B·K)."""
        return self.places.gather(1, columns).view(1, -1)
