"""The rows that go through one block together, and the model's forward passes over them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from maskgrpo_plugin.diffusion.packing import Packing
from maskgrpo_plugin.diffusion.samplers.base import hide_prompt, logits_of_columns
from maskgrpo_plugin.diffusion.samplers.blocks.cache import BlockCache


@dataclass
class Row:
    """A row of a running batch.

    Attributes:
        number: its number, as `BlockDecoder.join` gave it.
        generator: source of its noise.
        block: number of blocks that are done.
        calls: forward passes that it took part in.
        ended: whether it takes no further blocks.
    """

    number: int
    generator: torch.Generator | None
    block: int = 0
    calls: int = 0
    ended: bool = False


@dataclass
class BlockState:
    """N rows, each within its own block; what has an entry per row is shortened by `keep` alone.

    Attributes:
        rows: the rows.
        index: (N,) their numbers in the running batch.
        tokens: (N, L) the canvases so far.
        mask: (N, L) attention mask, or None.
        low: (N, 1) first column of each row's block.
        first_step: (N, 1) steps of each row before its block.
        quotas: (N, S) tokens to be revealed per step, on the CPU.
        left: N numbers of tokens still masked in the block.
        length: columns per block.
        mask_token_id: id of the mask token.
    """

    rows: list[Row]
    index: Tensor
    tokens: Tensor
    mask: Tensor | None
    low: Tensor
    first_step: Tensor
    quotas: Tensor
    left: list[int]
    length: int
    mask_token_id: int

    def working(self, step: int) -> list[int]:
        """The rows that reveal something at a step."""
        quotas = self.quotas[:, step].tolist()
        return [n for n, left in enumerate(self.left) if left > 0 and quotas[n] > 0]

    def keep(self, kept: list[int]) -> Tensor:
        """Go on with these rows; returns them as (M,) on the device."""
        index = torch.tensor(kept, device=self.tokens.device, dtype=torch.long)
        self.rows, self.left = [self.rows[n] for n in kept], [self.left[n] for n in kept]
        self.quotas = self.quotas[kept]
        self.index, self.tokens = self.index[index], self.tokens[index]
        self.low, self.first_step = self.low[index], self.first_step[index]
        self.mask = None if self.mask is None else self.mask[index]
        return index

    def masked(self) -> Tensor:
        """Which places of each row's block hold a mask, (N, block length) bool; places past the canvas do not."""
        columns = self.low + torch.arange(self.length, device=self.tokens.device)
        last = self.tokens.shape[1] - 1
        return (self.tokens.gather(1, columns.clamp(max=last)) == self.mask_token_id) & (columns <= last)

    def masked_columns(self) -> tuple[Tensor, Tensor]:
        """Columns of the block's masked tokens, left to right.

        Two rows whose blocks of 4 begin at column 6 and hold `m 3 m m` and `m 5 2 m` have the columns [[6, 8, 9],
        [6, 9, ·]], of which the last is not valid.

        Returns:
            Columns (N, K) int64, K the most that a row has, and `valid` (N, K) bool, which tells them from the columns
            that fill shorter rows.
        """
        most = max(self.left)
        columns = self.masked().to(torch.int8).sort(dim=-1, descending=True, stable=True).indices[:, :most] + self.low
        left = torch.tensor(self.left, device=columns.device)
        return columns, torch.arange(most, device=columns.device) < left.unsqueeze(1)


class BlockModel:
    """The model's forward passes over the rows of one block, with guidance, the block's cache and packed rows.

    Args:
        model: see `Sampler.generate`.
        response_length: R, the last columns of the canvas.
        mask_token_id: id of the mask token.
        cfg_scale: guidance weight, see `BlockSampler`.
        cache: see `BlockSampler`.
    """

    def __init__(
        self, model: Callable[..., Any], response_length: int, mask_token_id: int, *, cfg_scale: float, cache: str
    ):
        self.model, self.response_length, self.mask_token_id = model, response_length, mask_token_id
        self.cfg_scale, self.window = cfg_scale, cache
        self.cache = None if cache == "none" else BlockCache()
        self._packing: tuple[int, Packing | None] | None = None

    def keep(self, kept: Tensor, before: int) -> None:
        """Go on with the rows `kept` (M,) of the `before` that there were."""
        self._packing = None
        if self.cache is not None:
            self.cache.keep(torch.cat([kept, kept + before]) if self.cfg_scale > 0 else kept)

    def logits(self, state: BlockState, columns: Tensor) -> Tensor:
        """Logits (N, K, V) at `columns` (N, K).

        Rows of equal tokens, such as a group's before their first token is drawn, go through the model once; they are
        looked for where a row has not been through it.
        """
        tokens, mask = state.tokens, state.mask
        if self.cache is None and tokens.shape[0] > 1 and any(row.calls == 0 for row in state.rows):
            both = tokens if mask is None else torch.cat([tokens, mask.to(tokens.dtype)], dim=1)
            _, inverse = torch.unique(both, dim=0, return_inverse=True)
            first = {group: n for n, group in reversed(list(enumerate(inverse.tolist())))}
            if len(first) < tokens.shape[0]:
                members = torch.tensor([first[group] for group in range(len(first))], device=tokens.device)
                mask = None if mask is None else mask[members]
                return self._guided(state, tokens[members], mask, columns[members])[inverse]
        return self._guided(state, tokens, mask, columns)

    def _guided(self, state: BlockState, tokens: Tensor, mask: Tensor | None, columns: Tensor) -> Tensor:
        """With guidance, both passes in one batch."""
        if self.cfg_scale == 0:
            return self._forward(state, tokens, mask, columns)
        prompt, response = tokens[:, : -self.response_length], tokens[:, -self.response_length :]
        blind = torch.cat([hide_prompt(prompt, self.mask_token_id), response], dim=1)
        masks = None if mask is None else torch.cat([mask, mask])
        both = self._forward(state, torch.cat([tokens, blind]), masks, torch.cat([columns, columns]))
        cond, uncond = both.chunk(2)
        return uncond + (1 + self.cfg_scale) * (cond - uncond)

    def _forward(self, state: BlockState, tokens: Tensor, mask: Tensor | None, columns: Tensor) -> Tensor:
        if self.cache is None:
            mask, packed = self._packed(mask)
            return logits_of_columns(self.model, tokens, mask, columns, **packed)
        first, last = 0, tokens.shape[1]
        if self.cache.filled:
            first = last - self.response_length + state.rows[0].block * state.length
            last = min(first + state.length, last) if self.window == "dual" else last
        options = {"cache": self.cache, "first_column": first}
        return logits_of_columns(self.model, tokens[:, first:last], mask, columns - first, **options)

    def _packed(self, mask: Tensor | None) -> tuple[Tensor | None, dict[str, Packing]]:
        """The mask and its packing as the model takes them, kept while the rows stay; shared rows are fewer."""
        if mask is None or not getattr(self.model, "supports_packing", False):
            return mask, {}
        if self._packing is None or self._packing[0] != mask.shape[0]:
            self._packing = mask.shape[0], Packing.of(mask)
        packing = self._packing[1]
        return (None, {}) if packing is None else (mask, {"packing": packing})
