"""The rows of a running batch of block-causal decoding, and the columns of each that a forward pass computes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from maskgrpo_plugin.diffusion.packing import Packing


@dataclass
class BlockCausalRow:
    """A row of a running batch. A block is so many columns, counted from column 0.

    Attributes:
        number: its number, as `join` gave it.
        generator: source of its noise.
        prompt: column where the response begins.
        end: column behind the last token.
        masks: masked tokens of each of its blocks when it joined.
        first: column of the first token; those before it are hidden.
        start: first column of the block that is being decoded.
        stored: column up to which, by whole blocks, keys and values are final.
        step: steps of the block so far.
        steps: steps so far, each of them a forward pass.
        quota: tokens that each step of the block reveals.
        left: masked tokens of the block.
        ended: whether it takes no further blocks.
    """

    number: int
    generator: torch.Generator | None
    prompt: int
    end: int
    masks: list[int]
    first: int = 0
    start: int = 0
    stored: int = 0
    step: int = 0
    steps: int = 0
    quota: Sequence[int] = ()
    left: int = 0
    ended: bool = False

    def enter(self, block: int, block_length: int, quota: Callable[[int], Sequence[int]]) -> None:
        """Go to the first block from this number on that holds masks; the row has ended where there is none."""
        while block < len(self.masks) and self.masks[block] == 0:
            block += 1
        self.ended = block == len(self.masks)
        self.start, self.step = block * block_length, 0
        if not self.ended:
            self.left = self.masks[block]
            self.quota = quota(self.left)

    def revealing(self) -> int:
        """Tokens that the next step reveals of those that are left."""
        return min(self.quota[min(self.step, len(self.quota) - 1)], self.left)


@dataclass(frozen=True)
class Window:
    """The columns of N rows that a pass computes: finished blocks that are not stored yet, and the block after them.

    Attributes:
        start: (N, 1) first column of each row's block.
        stored: (N, 1) first column of the pass.
        end: (N, 1) column behind its block.
        first: (N, 1) column of its first token.
        positions: (N, W) columns of the pass, which are the positions that the model is given.
        packing: tells the columns of rows with fewer than W apart; None where all have as many.
        used: the largest of `end`.
    """

    start: Tensor
    stored: Tensor
    end: Tensor
    first: Tensor
    positions: Tensor
    packing: Packing | None
    used: int

    @classmethod
    def of(cls, rows: Sequence[BlockCausalRow], block_length: int, device: torch.device) -> "Window":
        """The columns of the rows' next pass; never waits for the device."""
        ends = [min(row.start + block_length, row.end) for row in rows]
        return cls.between(rows, [row.stored for row in rows], ends, device)

    @classmethod
    def between(
        cls, rows: Sequence[BlockCausalRow], stored: Sequence[int], ends: Sequence[int], device: torch.device
    ) -> "Window":
        """Columns from `stored` to `ends` of each row."""
        starts, firsts = [row.start for row in rows], [row.first for row in rows]
        table = torch.tensor([starts, stored, ends, firsts]).to(device, non_blocking=True).unsqueeze(-1)
        lengths = [end - first for end, first in zip(ends, stored, strict=True)]
        positions = table[1] + torch.arange(max(lengths), device=device)
        even = min(lengths) == max(lengths)
        packing = None if even else Packing.from_lengths(lengths, device)
        return cls(table[0], table[1], table[2], table[3], positions, packing, max(ends))

    def holds(self, columns: Tensor) -> Tensor:
        """Whether columns (N, K) or (K,) are tokens of each row up to its block's end; (N, K) bool."""
        return (columns >= self.first) & (columns < self.end)
