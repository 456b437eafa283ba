"""The model's forward passes over the rows of a running batch, with guidance, by the exact cache or without."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from maskgrpo_plugin.diffusion.samplers.base import hide_prompt
from maskgrpo_plugin.diffusion.samplers.block_causal.cache import PrefixCache
from maskgrpo_plugin.diffusion.samplers.block_causal.rows import BlockCausalRow, Window


class Passes:
    """Passes that compute all of a row up to its block's end.

    Args:
        model: a block-causal mask predictor.
        mask_token_id: id of the mask token.
        cfg_scale: guidance weight, see `BlockCausalOptions`.
        options: further arguments of the model.
    """

    def __init__(self, model: Callable[..., Any], mask_token_id: int, cfg_scale: float, options: dict[str, Any]):
        self.model, self.mask_token_id, self.cfg_scale, self.options = model, mask_token_id, cfg_scale, options

    def join(self, rows: Sequence[BlockCausalRow], tokens: Tensor, columns: int) -> int:
        """Add rows (N, C).

        Args:
            rows: the rows.
            tokens: (N, C) theirs.
            columns: most columns that a row of the batch will have.

        Returns:
            Forward passes that it took.
        """
        return 0

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows (N,)."""

    def logits(self, rows: Sequence[BlockCausalRow], window: Window, tokens: Tensor, columns: Tensor) -> Tensor:
        """Logits (N, K, V) of the tokens at `columns` (N, K) of the rows (N, C)."""
        logits = self.forward(window, tokens, columns, blind=False)
        if self.cfg_scale == 0:
            return logits
        uncond = self.forward(window, hide_prompts(rows, tokens, self.mask_token_id), columns, blind=True)
        return uncond + (1 + self.cfg_scale) * (logits - uncond)

    def forward(self, window: Window, tokens: Tensor, columns: Tensor, *, blind: bool) -> Tensor:
        """One pass; `blind` says that prompts are hidden."""
        places = torch.arange(window.used, device=tokens.device)
        return self.model(
            tokens[:, : window.used],
            attention_mask=window.holds(places),
            position_ids=places.expand(len(tokens), -1),
            logits_positions=columns.clamp(max=window.used - 1),
            **self.options,
        ).logits


class CachedPasses(Passes):
    """Passes that compute a row's block alone, and once more the one before it when that is finished; see `Passes`.

    The model takes a `PrefixCache`.

    Attributes:
        caches: of the rows, and with guidance of the rows without their prompts.
    """

    def __init__(self, model: Callable[..., Any], mask_token_id: int, cfg_scale: float, options: dict[str, Any]):
        super().__init__(model, mask_token_id, cfg_scale, options)
        self.caches = [PrefixCache()] if cfg_scale == 0 else [PrefixCache(), PrefixCache()]

    def join(self, rows: Sequence[BlockCausalRow], tokens: Tensor, columns: int) -> int:
        """See `Passes.join`; computes what the rows have stored, equal beginnings once."""
        for blind, cache in enumerate(self.caches):
            seen = hide_prompts(rows, tokens, self.mask_token_id) if blind else tokens
            ends = [max(row.stored, row.first + 1) for row in rows]
            known = zip(rows, ends, seen.tolist(), strict=True)
            beginnings = [(row.first, *ids[row.first : end]) for row, end, ids in known]
            places = {beginning: n for n, beginning in reversed(list(enumerate(beginnings)))}
            own = {beginning: place for place, beginning in enumerate(places)}
            each = list(places.values())
            stored, ends = [rows[n].first for n in each], [ends[n] for n in each]
            window = Window.between([rows[n] for n in each], stored, ends, tokens.device)
            fresh = PrefixCache()
            fresh.reserve(columns)
            self._forward(fresh, window, seen[each], seen.new_empty(len(each), 0))
            fresh.keep(torch.tensor([own[beginning] for beginning in beginnings], device=tokens.device))
            cache.join(fresh)
        return 1

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows (N,)."""
        for cache in self.caches:
            cache.keep(rows)

    def forward(self, window: Window, tokens: Tensor, columns: Tensor, *, blind: bool) -> Tensor:
        """See `Passes.forward`."""
        places = (columns - window.stored).clamp(0, window.positions.shape[1] - 1)
        return self._forward(self.caches[blind], window, tokens, places)

    def _forward(self, cache: PrefixCache, window: Window, tokens: Tensor, places: Tensor) -> Tensor:
        cache.used = window.used
        return self.model(
            tokens.gather(1, window.positions.clamp(max=tokens.shape[1] - 1)),
            attention_mask=window.holds(torch.arange(window.used, device=tokens.device)),
            position_ids=window.positions,
            packing=window.packing,
            cache=cache,
            logits_positions=places,
            **self.options,
        ).logits


def hide_prompts(rows: Sequence[BlockCausalRow], tokens: Tensor, mask_token_id: int) -> Tensor:
    """Rows (N, C) with their prompts as guidance hides them."""
    prompts = torch.tensor([[row.prompt] for row in rows]).to(tokens.device, non_blocking=True)
    inside = torch.arange(tokens.shape[1], device=tokens.device) < prompts
    return torch.where(inside, hide_prompt(tokens, mask_token_id), tokens)
