"""The noisy and the clean copy of every row in one line, by which block-causal models are trained in one pass.

A noisy block attends to the clean blocks before it, so that the log-probabilities of all blocks come from one forward
pass (BD3-LM, arXiv 2503.09573). Two rows of 2 and 1 tokens, n noisy and c clean, lie as n n c c | n c.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from maskgrpo_plugin.diffusion.packing import Packing
from maskgrpo_plugin.models.layout import Layout, two_copy_mask
from maskgrpo_plugin.models.tiles import tile_mask


@dataclass(frozen=True)
class TwoCopies:
    """Where both copies of the T tokens of a packed line lie in a line of 2T.

    Attributes:
        packing: of the line of 2T, whose rows are both copies of one row; the positions of the second are the first's.
        noisy, clean: (T,) int64, the place of each token's copy.
        position_ids: (T,) int64, each token's position in its row.
        block_length: tokens per block.
    """

    packing: Packing
    noisy: Tensor
    clean: Tensor
    position_ids: Tensor
    block_length: int

    @classmethod
    def of(cls, packing: Packing, block_length: int) -> TwoCopies:
        """Both copies of the rows of a packing; never waits for the device."""
        lengths = packing.boundaries.diff().long()
        position, row = packing.position_ids[0], packing.index // packing.mask.shape[1]
        token = torch.arange(packing.tokens, device=lengths.device)
        noisy = 2 * token - position
        clean = noisy + lengths[row]
        line = torch.zeros(2 * packing.tokens, dtype=torch.int64, device=token.device)
        width = 2 * packing.longest
        index = line.index_copy(0, noisy, row * width + position)
        index = index.index_copy(0, clean, row * width + lengths[row] + position)
        positions = line.index_copy(0, noisy, position).index_copy(0, clean, position)
        mask = torch.arange(width, device=token.device) < 2 * lengths.unsqueeze(1)
        both = Packing(mask, index, positions.unsqueeze(0), 2 * packing.boundaries, width)
        return cls(both, noisy, clean, position, block_length)

    def lay(self, noisy_ids: Tensor, clean_ids: Tensor) -> Tensor:
        """Two lines (1, T) as one (1, 2T)."""
        line = noisy_ids.new_zeros(self.packing.tokens)
        return line.index_copy(0, self.noisy, noisy_ids[0]).index_copy(0, self.clean, clean_ids[0]).unsqueeze(0)

    def places(self, places: Tensor, logits_shift: int) -> Tensor:
        """Where the logits of the tokens at `places` of the line of T stand in the line of 2T; any shape.

        Shifted logits of a block's first token stand at the last clean token of the block before, whence a sampler
        draws it; those of a row's first token at itself.
        """
        noisy = self.noisy[places]
        if not logits_shift:
            return noisy
        position = self.position_ids[places]
        first = (position % self.block_length == 0) & (position > 0)
        return torch.where(first, self.clean[places] - 1, noisy - (position > 0).long())

    def of_noisy(self, hidden: Tensor) -> Tensor:
        """(1, 2T, …) -> (1, T, …) at the noisy copy."""
        return hidden[:, self.noisy]

    def spans(self) -> tuple[Tensor, Tensor]:
        """Where the places begin and end that each of the 2T attends to, (2, 2T) int64 each; see `tile_mask`.

        Of a noisy token: its own block, and the clean copy up to its block. The last block's spans lie side by side and
        are one. Of a clean token: the clean copy up to the end of its block.
        """
        position, length = self.position_ids, self.clean - self.noisy
        noisy, clean = self.noisy - position, self.clean - position  # where both copies of the row begin
        begin = position - position % self.block_length
        end = torch.minimum(begin + self.block_length, length)
        is_last = end == length
        of_noisy = (noisy + begin, torch.where(is_last, clean + begin, noisy + end)), (clean, clean + begin * ~is_last)
        of_clean = (clean, clean + end), (clean, clean)

        def line(part: int) -> Tensor:
            values = position.new_zeros(2, self.packing.tokens)
            values.index_copy_(1, self.noisy, torch.stack([span[part] for span in of_noisy]))
            return values.index_copy_(1, self.clean, torch.stack([span[part] for span in of_clean]))

        return line(0), line(1)

    def layout(self, columns: Tensor | None, *, tiled: bool = False) -> Layout:
        """The layout of the line of 2T, with hidden states wanted at `columns` of it (None: all).

        Args:
            columns: (1, N) places.
            tiled: with flex attention's mask of the line in place of a mask for each row.
        """
        packing = self.packing
        if tiled:
            return Layout(packing.position_ids, packing=packing, columns=columns, tiles=tile_mask(*self.spans()))
        is_noisy = torch.zeros_like(packing.position_ids, dtype=torch.bool)
        is_noisy[0, self.noisy] = True
        mask = two_copy_mask(packing.unpack(packing.position_ids), packing.unpack(is_noisy), self.block_length)
        return Layout(packing.position_ids, mask & packing.mask[:, None, None, :], packing, columns)
