"""Batches without their padding: the tokens of all rows in one line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import torch
from torch import Tensor


@dataclass(frozen=True)
class Packing:
    """Where the T tokens of a batch (B, L) lie once its padding is left out, row after row.

    Rows of 2 and 3 tokens, `Packing.from_lengths([2, 3], device)`:

        line            a b c d e
        position_ids    0 1 0 1 2
        boundaries      0   2     5
        mask            (1 1 0), (1 1 1)
        index           0 1 3 4 5

    Attributes:
        mask: (B, L) bool, true = token.
        index: (T,) int64, index of each token in the flattened batch.
        position_ids: (1, T) int64, number of tokens of the same row before each token.
        boundaries: (B + 1,) int32, where rows begin and end in the line.
        longest: number of tokens of the longest row.
    """

    mask: Tensor
    index: Tensor
    position_ids: Tensor
    boundaries: Tensor
    longest: int

    @classmethod
    def of(cls, attention_mask: Tensor) -> Packing | None:
        """The packing of a mask (B, L), 1 = token, 0 = padding anywhere; None where nothing is padded.

        Waits for the device, to learn the number of tokens.
        """
        mask = attention_mask.bool()
        lengths = mask.sum(-1)
        longest = int(lengths.max())
        if longest == mask.shape[1] and bool(mask.all()):
            return None
        index = mask.flatten().nonzero().squeeze(-1)
        positions = (mask.long().cumsum(-1) - 1).flatten()[index].unsqueeze(0)
        boundaries = torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).to(torch.int32)
        return cls(mask, index, positions, boundaries, longest)

    @classmethod
    def from_lengths(cls, lengths: Sequence[int], device: torch.device | str) -> Packing:
        """The packing of rows whose numbers of tokens the host knows; never waits for the device.

        Args:
            lengths: number of tokens of each row, 1 or more.
            device: where the line lives.

        Returns:
            The packing of the batch (B, longest row) with its padding on the right.

        Raises:
            ValueError: no rows, or a row without tokens.
        """
        if not lengths or min(lengths) < 1:
            raise ValueError(f"lengths={list(lengths)}: allowed are one row or more, of one token or more")
        total, longest = sum(lengths), max(lengths)
        boundaries = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32).to(device, non_blocking=True)
        line = torch.arange(total, dtype=torch.int32, device=device)
        row = torch.searchsorted(boundaries[1:], line, right=True)
        positions = line.long() - boundaries.long()[row]
        mask = torch.arange(longest, device=device) < boundaries.diff().unsqueeze(1)
        return cls(mask, row * longest + positions, positions.unsqueeze(0), boundaries, longest)

    @property
    def rows(self) -> int:
        """B, the number of rows."""
        return self.mask.shape[0]

    @property
    def tokens(self) -> int:
        """T, the number of tokens of the line."""
        return self.index.shape[0]

    @property
    def is_even(self) -> bool:
        """Whether the batch has no padding, so that line and batch hold the same values in the same order."""
        return self.tokens == self.mask.numel()

    @cached_property
    def places(self) -> Tensor:
        """(B, L) int64, index of each column in the line; at padding, that of the last token before it (0 if none)."""
        return (self.mask.flatten().cumsum(0) - 1).clamp(min=0).view(self.mask.shape)

    def is_line(self, values: Tensor) -> bool:
        """Whether values (1, T, …) are a line already, rather than a batch (B, L, …)."""
        return values.shape[:2] == (1, self.tokens)

    def pack(self, batch: Tensor) -> Tensor:
        """(B, L, …) -> (1, T, …)."""
        flat = batch.flatten(0, 1)
        return (flat if self.is_even else flat[self.index]).unsqueeze(0)

    def unpack(self, line: Tensor) -> Tensor:
        """(1, T, …) -> (B, L, …), 0 at padding."""
        if self.is_even:
            return line[0].unflatten(0, self.mask.shape)
        batch = line.new_zeros(self.mask.numel(), *line.shape[2:])
        return batch.index_copy(0, self.index, line[0]).view(*self.mask.shape, *line.shape[2:])

    def pack_columns(self, columns: Tensor) -> Tensor:
        """Columns (B, K) of the batch, none of them padding, as places in the line; (1, B·K)."""
        return self.places.gather(1, columns).view(1, -1)
