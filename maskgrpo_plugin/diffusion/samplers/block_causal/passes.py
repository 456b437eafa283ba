"""The model's forward passes over the rows of a running batch, with guidance and the exact cache."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from maskgrpo_plugin.diffusion.samplers.base import hide_prompt
from maskgrpo_plugin.diffusion.samplers.block_causal.cache import PrefixCache
from maskgrpo_plugin.diffusion.samplers.block_causal.rows import BlockCausalRow, Window


class CachedPasses:
    """Passes that compute a row's block alone, and once more the one before it when that is finished.

    Args:
        model: a block-causal mask predictor that takes a `PrefixCache`.
        mask_token_id: id of the mask token.
        cfg_scale: guidance weight, see `BlockCausalSampler`.
        options: further arguments of the model.
    """

    def __init__(self, model: Callable[..., Any], mask_token_id: int, cfg_scale: float, options: dict[str, Any]):
        self.model, self.mask_token_id, self.cfg_scale, self.options = model, mask_token_id, cfg_scale, options
        self.caches = [PrefixCache()] if cfg_scale == 0 else [PrefixCache(), PrefixCache()]

    def join(self, rows: Sequence[BlockCausalRow], tokens: Tensor, columns: int) -> None:
        """Add rows (N, C) and compute what they have stored; equal beginnings once.

        Args:
            rows: the rows.
            tokens: (N, C) theirs.
            columns: most columns that a row of the batch will have.
        """
        for blind, cache in enumerate(self.caches):
            seen = self._blind(rows, tokens) if blind else tokens
            beginnings = [tuple(seen[n, : max(row.stored, 1)].tolist()) for n, row in enumerate(rows)]
            places = {beginning: n for n, beginning in reversed(list(enumerate(beginnings)))}
            own = {beginning: place for place, beginning in enumerate(places)}
            first = torch.tensor(list(places.values()), device=tokens.device)
            lengths = [len(beginning) for beginning in places]
            window = Window.between([0] * len(first), [0] * len(first), lengths, tokens.device)
            fresh = PrefixCache()
            fresh.reserve(columns)
            nothing = torch.empty(len(first), 0, dtype=torch.int64, device=tokens.device)
            self._forward(fresh, window, seen[first], nothing)
            fresh.keep(torch.tensor([own[beginning] for beginning in beginnings], device=tokens.device))
            cache.join(fresh)

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows (N,)."""
        for cache in self.caches:
            cache.keep(rows)

    def logits(self, rows: Sequence[BlockCausalRow], window: Window, tokens: Tensor, columns: Tensor) -> Tensor:
        """Logits (N, K, V) of the tokens at `columns` (N, K) of the rows (N, C)."""
        places = (columns - window.stored).clamp(max=window.positions.shape[1] - 1)
        logits = self._forward(self.caches[0], window, tokens, places)
        if self.cfg_scale == 0:
            return logits
        uncond = self._forward(self.caches[1], window, self._blind(rows, tokens), places)
        return uncond + (1 + self.cfg_scale) * (logits - uncond)

    def _forward(self, cache: PrefixCache, window: Window, tokens: Tensor, places: Tensor) -> Tensor:
        cache.used = window.used
        held = torch.arange(window.used, device=tokens.device) < window.end
        ids = tokens.gather(1, window.positions.clamp(max=tokens.shape[1] - 1))
        return self.model(
            ids,
            attention_mask=held,
            position_ids=window.positions,
            packing=window.packing,
            cache=cache,
            logits_positions=places,
            **self.options,
        ).logits

    def _blind(self, rows: Sequence[BlockCausalRow], tokens: Tensor) -> Tensor:
        return hide_prompts(rows, tokens, self.mask_token_id)


class WholePasses:
    """Passes that compute all of a row up to its block's end; see `CachedPasses`."""

    def __init__(self, model: Callable[..., Any], mask_token_id: int, cfg_scale: float, options: dict[str, Any]):
        self.model, self.mask_token_id, self.cfg_scale, self.options = model, mask_token_id, cfg_scale, options

    def join(self, rows: Sequence[BlockCausalRow], tokens: Tensor, columns: int) -> None:
        """Nothing is kept of a row."""

    def keep(self, rows: Tensor) -> None:
        """Nothing is kept of a row."""

    def logits(self, rows: Sequence[BlockCausalRow], window: Window, tokens: Tensor, columns: Tensor) -> Tensor:
        """See `CachedPasses.logits`."""
        tokens, columns = tokens[:, : window.used], columns.clamp(max=window.used - 1)
        held = torch.arange(window.used, device=tokens.device) < window.end

        def forward(tokens: Tensor) -> Tensor:
            return self.model(tokens, attention_mask=held, logits_positions=columns, **self.options).logits

        logits = forward(tokens)
        if self.cfg_scale == 0:
            return logits
        uncond = forward(hide_prompts(rows, tokens, self.mask_token_id))
        return uncond + (1 + self.cfg_scale) * (logits - uncond)


def hide_prompts(rows: Sequence[BlockCausalRow], tokens: Tensor, mask_token_id: int) -> Tensor:
    """Rows (N, C) with their prompts as guidance hides them."""
    prompts = torch.tensor([[row.prompt] for row in rows]).to(tokens.device, non_blocking=True)
    inside = torch.arange(tokens.shape[1], device=tokens.device) < prompts
    return torch.where(inside, hide_prompt(tokens, mask_token_id), tokens)
