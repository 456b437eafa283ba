"""A running batch of the semi-autoregressive sampler: rows join and leave it between blocks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from maskgrpo_plugin.diffusion.packing import Packing
from maskgrpo_plugin.diffusion.samplers.base import (
    OnStep,
    SamplerOptionError,
    SamplerOutput,
    ban,
    logits_of_columns,
    top_k_per_row,
)
from maskgrpo_plugin.diffusion.samplers.blocks.cache import BlockCache
from maskgrpo_plugin.diffusion.samplers.blocks.credit import TraceCredit
from maskgrpo_plugin.diffusion.samplers.blocks.parallel import reveal_more

if TYPE_CHECKING:
    from maskgrpo_plugin.diffusion.samplers.blocks.sampler import SemiAutoregressiveSampler


@dataclass
class DecodedRow:
    """A row that has ended.

    Attributes:
        number: what `SemiAutoregressiveDecoder.join` called it.
        response: (R,) int64 tokens, without a mask token.
        reveal_step: (R,) int64, the row's own step that revealed a position; -1 where none did.
        model_calls: forward passes that the row took part in.
    """

    number: int
    response: Tensor
    reveal_step: Tensor
    model_calls: int


@dataclass
class _Row:
    number: int
    generator: torch.Generator | None
    block: int = 0
    calls: int = 0
    ended: bool = False


class SemiAutoregressiveDecoder:
    """Decodes rows block by block, each from its own first block on whenever it joined.

    All rows go through a step together, each within its own block; a row's tokens do not depend on the others. The
    canvas is aligned on the right: responses are the last columns, prompts are padded on the left.

    Args:
        sampler: says how a block is decoded.
        model: see `Sampler.generate`.
        mask_token_id: id of the mask token; never emitted.
        response_length: R, columns that are decoded; None: the sampler's.
        pad_token_id: fills the columns before a prompt that is shorter than another.
        on_step: called after each step with its number and the tokens so far, (B, L) with masks where hidden; for rows
            that joined together.

    Raises:
        SamplerOptionError: the fill token is the mask token, or there are more blocks than steps.
        ValueError: a cache with a model that takes none.
    """

    def __init__(
        self,
        sampler: SemiAutoregressiveSampler,
        model: Callable[..., Any],
        *,
        mask_token_id: int,
        response_length: int | None = None,
        pad_token_id: int = 0,
        on_step: OnStep | None = None,
    ):
        if sampler.cache != "none" and not getattr(model, "supports_block_cache", False):
            raise ValueError(f"sampler option cache={sampler.cache!r}: the model takes no block cache")
        if mask_token_id == sampler.fill_token:
            raise SamplerOptionError("fill_token_id", mask_token_id, "the mask token is never emitted")
        self.sampler, self.model, self.on_step = sampler, model, on_step
        self.mask_token_id, self.pad_token_id = mask_token_id, pad_token_id
        self.response_length = response_length or sampler.response_length
        self.block_length = sampler.block_length or self.response_length
        self.blocks = -(-self.response_length // self.block_length)
        if sampler.steps < self.blocks:
            raise SamplerOptionError(
                "steps", sampler.steps, f"the canvas has {self.blocks} blocks; each needs a step or more"
            )
        self.rows: list[_Row] = []
        self.tokens = torch.empty(0, dtype=torch.int64)
        self.reveal_step = torch.empty(0, dtype=torch.int64)
        self.attention_mask: Tensor | None = None
        self.model_calls = 0
        self._joined = 0

    @property
    def running(self) -> bool:
        """Whether a row has blocks to decode."""
        return any(not row.ended for row in self.rows)

    @property
    def takes_rows(self) -> bool:
        """Whether `join` works now: a block cache is of one block, the same for all rows, and blocks must be equal."""
        even = self.response_length % self.block_length == 0
        return not self.rows or (even and self.sampler.cache == "none")

    def join(
        self, tokens: Tensor, attention_mask: Tensor | None, generators: Sequence[torch.Generator | None]
    ) -> list[int]:
        """Add rows, which start at their first block.

        Args:
            tokens: (N, P + R), prompts and then masks, written in place; what is visible in the last R columns stays.
            attention_mask: (N, P + R), 1 = token, 0 = padding; None where nothing is padded.
            generators: one a row.

        Returns:
            A number for each row.

        Raises:
            ValueError: not one generator a row, or rows are there that no others can join.
        """
        if len(generators) != tokens.shape[0]:
            raise ValueError(
                f"generator holds {len(generators)} generators for a batch of {tokens.shape[0]} rows: give one a row"
            )
        if not self.takes_rows:
            raise ValueError(
                f"rows cannot join a running batch with cache={self.sampler.cache!r} or blocks of {self.block_length} "
                f"of {self.response_length} tokens"
            )
        joined = [_Row(self._joined + n, generator) for n, generator in enumerate(generators)]
        self._joined += len(joined)
        nowhere = torch.full_like(tokens, -1, dtype=torch.int64)
        if self.rows:
            before = self.attention_mask
            if self.tokens.shape[1] != tokens.shape[1] or before is not None or attention_mask is not None:
                before = torch.ones_like(self.tokens) if before is None else before
                attention_mask = torch.ones_like(tokens) if attention_mask is None else attention_mask
                attention_mask = _stack(before, attention_mask.to(before.dtype), 0)
            tokens = _stack(self.tokens, tokens, self.pad_token_id)
            nowhere = _stack(self.reveal_step, nowhere, -1)
        self.rows += joined
        self.tokens, self.reveal_step, self.attention_mask = tokens, nowhere, attention_mask
        return [row.number for row in joined]

    def decode_block(self) -> None:
        """Decode the next block of every row that has not ended.

        Within a block the device is waited for only where `parallel` makes the number of revealed tokens its business,
        and where rows that are left have to be packed anew.
        """
        sampler = self.sampler
        places = [n for n, row in enumerate(self.rows) if not row.ended]
        rows = [self.rows[n] for n in places]
        block = _Block(self, places)
        for step in range(block.quotas.shape[1]):
            block.keep(step)
            if not block.rows:
                break
            columns = block.masked_columns()
            counts = block.quotas[:, step].tolist()
            logits = block.logits(columns, share=any(row.calls == 0 for row in block.rows))
            self.model_calls += 1
            for row in block.rows:
                row.calls += 1
            if block.credit is not None:
                logits = ban(logits, (self.mask_token_id, *sampler.forbidden_token_ids))
                logits = block.credit.fuse(logits, columns - block.low, block.valid)
            own = [row.generator for row in block.rows]
            chosen, scores = sampler.choose(logits, block.left, own, self.mask_token_id)
            scores = scores.masked_fill(~block.valid, float("-inf"))
            revealed = top_k_per_row(scores, torch.tensor(counts, device=scores.device)) & block.valid
            if sampler.parallel != "none":
                revealed = revealed | reveal_more(
                    sampler.parallel, scores, columns, block.valid, threshold=sampler.threshold, factor=sampler.factor
                )
                counts = revealed.sum(-1).tolist()
            block.write(columns, chosen, revealed, counts, step)
            if self.on_step is not None:
                self.on_step(int(block.first_step[0]) + step, self.tokens.clone())
        for row in rows:
            row.block += 1
        for row, stopped in zip(rows, self._stopped(places), strict=True):
            row.ended = stopped or row.block == self.blocks

    def leave(self) -> list[DecodedRow]:
        """Take the rows that have ended out of the batch, and the columns that only their prompts needed."""
        places = [n for n, row in enumerate(self.rows) if row.ended]
        if not places:
            return []
        responses = self._filled(self.tokens[places, -self.response_length :])
        reveal_step = self.reveal_step[places, -self.response_length :]
        left = [
            DecodedRow(self.rows[n].number, response, steps, self.rows[n].calls)
            for n, response, steps in zip(places, responses, reveal_step, strict=True)
        ]
        stay = [n for n, row in enumerate(self.rows) if not row.ended]
        self.rows = [self.rows[n] for n in stay]
        self.tokens, self.reveal_step = self.tokens[stay], self.reveal_step[stay]
        if self.attention_mask is not None:
            self.attention_mask = self.attention_mask[stay]
            self._trim()
        return left

    def output(self) -> SamplerOutput:
        """The whole batch, in the order in which rows joined; for a batch that none has left."""
        calls = torch.tensor([row.calls for row in self.rows], dtype=torch.int64)
        return SamplerOutput(self._filled(self.tokens), self.reveal_step, self.model_calls, calls)

    def block_steps(self, block: int) -> int:
        """Steps of a block: the sampler's, shared as evenly as can be, the first blocks taking the remainder."""
        return self.sampler.steps // self.blocks + (block < self.sampler.steps % self.blocks)

    def first_step(self, block: int) -> int:
        """Steps before a block."""
        return sum(self.block_steps(earlier) for earlier in range(block))

    def _stopped(self, places: list[int]) -> list[bool]:
        """Whether these rows revealed a stop token; visible tokens of a canvas do not count."""
        if not self.sampler.stop_token_ids:
            return [False] * len(places)
        tokens, reveal_step = self.tokens[places], self.reveal_step[places]
        stops = torch.tensor(list(self.sampler.stop_token_ids), device=tokens.device)
        return (torch.isin(tokens, stops) & (reveal_step >= 0)).any(-1).tolist()

    def _filled(self, tokens: Tensor) -> Tensor:
        if self.sampler.fill_token is None:
            return tokens
        return tokens.masked_fill(tokens == self.mask_token_id, self.sampler.fill_token)

    def _trim(self) -> None:
        """Drop the columns on the left that are padding in every row."""
        mask = self.attention_mask
        if mask is None or mask.dim() != 2 or not self.rows:
            return
        unused = int((mask != 0).int().argmax(-1).min())
        self.tokens, self.reveal_step, mask = self.tokens[:, unused:], self.reveal_step[:, unused:], mask[:, unused:]
        self.attention_mask = None if bool(mask.all()) else mask


class _Block:
    """The rows that take part in a block, in a batch of their own until `write` puts their tokens back."""

    def __init__(self, decoder: SemiAutoregressiveDecoder, places: list[int]):
        self.decoder, self.sampler = decoder, decoder.sampler
        device = decoder.tokens.device
        self.rows = [decoder.rows[n] for n in places]
        self.index = torch.tensor(places, device=device)
        self.tokens = decoder.tokens[self.index]
        mask = decoder.attention_mask
        self.mask = None if mask is None else mask[self.index]
        start = self.tokens.shape[1] - decoder.response_length
        self.low = torch.tensor([[start + row.block * decoder.block_length] for row in self.rows], device=device)
        self.left: list[int] = self._masked().sum(-1).tolist()
        self.first_step = torch.tensor([[decoder.first_step(row.block)] for row in self.rows], device=device)
        steps = torch.tensor([decoder.block_steps(row.block) for row in self.rows])
        self.quotas = reveal_quota(torch.tensor(self.left), steps)
        self.cache = None if self.sampler.cache == "none" else BlockCache()
        self.credit: TraceCredit | None = None
        if self.sampler.parallel == "credit":
            self.credit = TraceCredit(len(places), decoder.block_length, device)
        self.valid = torch.empty(0)
        self.packing: tuple[int, Packing | None] | None = None

    def keep(self, step: int) -> None:
        """Go on with the rows that reveal something at this step."""
        quotas = self.quotas[:, step].tolist()
        kept = [n for n, left in enumerate(self.left) if left > 0 and quotas[n] > 0]
        if len(kept) == len(self.rows):
            return
        before = len(self.rows)
        self.quotas = self.quotas[kept]
        self.rows, self.left = [self.rows[n] for n in kept], [self.left[n] for n in kept]
        index = torch.tensor(kept, device=self.tokens.device, dtype=torch.long)
        self.index, self.tokens = self.index[index], self.tokens[index]
        self.low, self.first_step = self.low[index], self.first_step[index]
        self.mask = None if self.mask is None else self.mask[index]
        self.packing = None
        if self.credit is not None:
            self.credit.keep(index)
        if self.cache is not None:
            guided = torch.cat([index, index + before])
            self.cache.keep(guided if self.sampler.cfg_scale > 0 else index)

    def _masked(self) -> Tensor:
        """Which places of each row's block hold a mask, (N, block length); places past the canvas do not."""
        columns = self.low + torch.arange(self.decoder.block_length, device=self.tokens.device)
        last = self.tokens.shape[1] - 1
        return (self.tokens.gather(1, columns.clamp(max=last)) == self.decoder.mask_token_id) & (columns <= last)

    def masked_columns(self) -> Tensor:
        """Columns of the block's masked tokens, left to right, (N, K) with K the most that a row has; `valid` (N, K)
        tells them from the columns that fill shorter rows.
        """
        most = max(self.left)
        columns = self._masked().to(torch.int8).sort(dim=-1, descending=True, stable=True).indices[:, :most] + self.low
        left = torch.tensor(self.left, device=columns.device)
        self.valid = torch.arange(most, device=columns.device) < left.unsqueeze(1)
        return columns

    def logits(self, columns: Tensor, *, share: bool) -> Tensor:
        """Logits (N, K, V) at `columns`; with guidance, both passes in one batch.

        `share`: rows of equal tokens, such as a group's before their first token is drawn, go through the model once.
        """
        tokens, mask = self.tokens, self.mask
        if share and self.cache is None and tokens.shape[0] > 1:
            both = tokens if mask is None else torch.cat([tokens, mask.to(tokens.dtype)], dim=1)
            _, inverse = torch.unique(both, dim=0, return_inverse=True)
            first = {group: n for n, group in reversed(list(enumerate(inverse.tolist())))}
            if len(first) < tokens.shape[0]:
                members = torch.tensor([first[group] for group in range(len(first))], device=tokens.device)
                mask = None if mask is None else mask[members]
                return self._guided(tokens[members], mask, columns[members])[inverse]
        return self._guided(tokens, mask, columns)

    def _guided(self, tokens: Tensor, mask: Tensor | None, columns: Tensor) -> Tensor:
        scale = self.sampler.cfg_scale
        if scale == 0:
            return self._forward(tokens, mask, columns)
        blind = tokens.clone()
        blind[:, : -self.decoder.response_length] = self.decoder.mask_token_id
        masks = None if mask is None else torch.cat([mask, mask])
        both = self._forward(torch.cat([tokens, blind]), masks, torch.cat([columns, columns]))
        cond, uncond = both.chunk(2)
        return uncond + (1 + scale) * (cond - uncond)

    def _forward(self, tokens: Tensor, mask: Tensor | None, columns: Tensor) -> Tensor:
        model = self.decoder.model
        if self.cache is None:
            mask, packed = self._packed(mask)
            return logits_of_columns(model, tokens, mask, columns, **packed)
        first, last = 0, tokens.shape[1]
        if self.cache.filled:
            first = last - self.decoder.response_length + self.rows[0].block * self.decoder.block_length
            last = min(first + self.decoder.block_length, last) if self.sampler.cache == "dual" else last
        options = {"cache": self.cache, "first_column": first}
        return logits_of_columns(model, tokens[:, first:last], mask, columns - first, **options)

    def _packed(self, mask: Tensor | None) -> tuple[Tensor | None, dict[str, Packing]]:
        """The mask and its packing as the model takes them, kept while the rows stay; shared rows are fewer."""
        if mask is None or not getattr(self.decoder.model, "supports_packing", False):
            return mask, {}
        if self.packing is None or self.packing[0] != mask.shape[0]:
            self.packing = mask.shape[0], Packing.of(mask)
        packing = self.packing[1]
        return (None, {}) if packing is None else (mask, {"packing": packing})

    def write(self, columns: Tensor, chosen: Tensor, revealed: Tensor, counts: list[int], step: int) -> None:
        """Put the `revealed` (N, K) tokens, `counts[n]` of row n, into the batch and the canvas."""
        self.tokens.scatter_(1, columns, torch.where(revealed, chosen, self.tokens.gather(1, columns)))
        self.decoder.tokens[self.index] = self.tokens
        steps = self.decoder.reveal_step[self.index]
        now = torch.where(revealed, self.first_step + step, steps.gather(1, columns))
        self.decoder.reveal_step[self.index] = steps.scatter(1, columns, now)
        self.left = [left - count for left, count in zip(self.left, counts, strict=True)]


def reveal_quota(masked: Tensor, steps: Tensor) -> Tensor:
    """Share `masked` (B,) positions over `steps` (B,) evenly, the first steps taking the remainder; (B, max steps)."""
    base, extra = (masked // steps).unsqueeze(1), (masked % steps).unsqueeze(1)
    number = torch.arange(int(steps.max()), device=masked.device)
    return (base + (number < extra)) * (number < steps.unsqueeze(1))


def _stack(first: Tensor, second: Tensor, padding: int) -> Tensor:
    """Rows of (B, L) and (B', L'), padded on the left to one width."""
    width = max(first.shape[1], second.shape[1])
    return torch.cat([F.pad(rows, (width - rows.shape[1], 0), value=padding) for rows in (first, second)])
