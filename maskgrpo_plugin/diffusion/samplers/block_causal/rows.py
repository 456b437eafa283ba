"""The rows of a running batch of block-causal decoding, and the columns of each that a forward pass computes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from maskgrpo_plugin.diffusion.packing import Packing


@dataclass
class BlockCausalRow:
    """A row of a running batch; positions count from its first token, prompt included.

    Attributes:
        number: its number, as `join` gave it.
        generator: source of its noise.
        prompt: number of tokens before the response.
        end: number of tokens.
        masks: masked tokens of each of its blocks when it joined.
        start: first position of the block that is being decoded.
        stored: number of tokens, whole blocks, whose keys and values are final.
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
        start: (N, 1) first position of each row's block.
        stored: (N, 1) first position of the pass.
        end: (N, 1) positions of the row up to its block's end.
        positions: (N, W).
        packing: tells the columns of rows with fewer than W apart; None where all have as many.
        used: the largest of `end`.
    """

    start: Tensor
    stored: Tensor
    end: Tensor
    positions: Tensor
    packing: Packing | None
    used: int

    @classmethod
    def of(cls, rows: Sequence[BlockCausalRow], block_length: int, device: torch.device) -> "Window":
        """The columns of the rows' next pass; never waits for the device."""
        ends = [min(row.start + block_length, row.end) for row in rows]
        return cls.between([row.start for row in rows], [row.stored for row in rows], ends, device)

    @classmethod
    def between(
        cls, starts: Sequence[int], stored: Sequence[int], ends: Sequence[int], device: torch.device
    ) -> "Window":
        """Columns from `stored` to `ends` of each row."""
        table = torch.tensor([starts, stored, ends]).to(device, non_blocking=True).unsqueeze(-1)
        lengths = [end - first for end, first in zip(ends, stored, strict=True)]
        positions = table[1] + torch.arange(max(lengths), device=device)
        even = min(lengths) == max(lengths)
        packing = None if even else Packing.from_lengths(lengths, device)
        return cls(table[0], table[1], table[2], positions, packing, max(ends))
