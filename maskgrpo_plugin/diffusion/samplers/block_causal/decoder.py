"""A running batch of block-causal decoding: rows step through their own blocks, and join and leave between steps."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from maskgrpo_plugin.diffusion.samplers.base import (
    DecodedRow,
    OnStep,
    SamplerOutput,
    ban,
    token_probability,
    top_k_per_row,
)
from maskgrpo_plugin.diffusion.samplers.block_causal.options import BlockCausalOptions
from maskgrpo_plugin.diffusion.samplers.block_causal.passes import CachedPasses, Passes
from maskgrpo_plugin.diffusion.samplers.block_causal.rows import BlockCausalRow, Window
from maskgrpo_plugin.diffusion.samplers.blocks.quotas import QUOTAS, even
from maskgrpo_plugin.diffusion.samplers.choice import choose_tokens
from maskgrpo_plugin.diffusion.samplers.noise import check_generators
from maskgrpo_plugin.diffusion.samplers.record import TokenRecord
from maskgrpo_plugin.errors import OptionError


class BlockCausalDecoder:
    """Decodes rows block by block, each at its own pace (a `RunningBatch`); a row's tokens do not depend on the others.

    Rows begin at column 0, or a few columns later where their responses are to begin a block, with room for a block
    behind the longest. A step computes the block of every row; where that follows a block that has just been finished,
    the clean tokens of both go through the model together, so that keeping a block costs no pass of its own.

    Args:
        sampler: says how a block is decoded.
        model: see `Sampler.generate`; block-causal.
        mask_token_id: id of the mask token; never emitted.
        response_length: R, the last columns of what joins; None: the sampler's.
        pad_token_id: fills the columns behind rows that are shorter than another.
        on_step: observer of rows that joined together, see `OnStep`.

    Raises:
        OptionError: a model that attends in both directions, options that do not fit its blocks, a cache that it does
            not take, or the mask token as the fill token.
    """

    def __init__(
        self,
        sampler: BlockCausalOptions,
        model: Callable[..., Any],
        *,
        mask_token_id: int,
        response_length: int | None = None,
        pad_token_id: int = 0,
        on_step: OnStep | None = None,
    ):
        own = getattr(model, "block_length", None)
        block_length = sampler.block_length or own
        if block_length is None:
            allowed = "it attends in both directions: use semi_autoregressive, or give a model with blocks"
            raise OptionError("model", type(model).__name__, allowed)
        sampler.check_block(block_length)
        if mask_token_id == sampler.fill_token:
            raise OptionError("fill_token_id", mask_token_id, "the mask token is never emitted")
        if sampler.cache == "exact" and not getattr(model, "supports_prefix_cache", False):
            raise OptionError("cache", sampler.cache, f"{type(model).__name__} takes no cache: use none")
        passes = CachedPasses if sampler.cache == "exact" else Passes
        options = {} if block_length == own else {"block_length": block_length}
        self.passes: Passes = passes(model, mask_token_id, sampler.cfg_scale, options)
        self.sampler, self.on_step, self.block_length = sampler, on_step, block_length
        self.shift: int = getattr(model, "logits_shift", 0)
        self.mask_token_id, self.pad_token_id = mask_token_id, pad_token_id
        self.response_length = response_length or sampler.response_length
        self.rows: list[BlockCausalRow] = []
        self.active: list[int] = []
        self.tokens = torch.empty(0, dtype=torch.int64)
        self.reveal_step = torch.empty(0, dtype=torch.int64)
        self.record: TokenRecord | None = None
        self.model_calls = 0
        self._banned = (mask_token_id, *sampler.forbidden_token_ids)
        self._joined = 0
        self._given: tuple[Tensor, Tensor] | None = None

    @property
    def running(self) -> bool:
        """Whether a row has blocks to decode."""
        return bool(self.active)

    @property
    def takes_rows(self) -> bool:
        """True: rows may join between any two steps."""
        return True

    def join(
        self, tokens: Tensor, attention_mask: Tensor | None, generators: Sequence[torch.Generator | None]
    ) -> list[int]:
        """Add rows, which start at their first block with masks; one pass computes the blocks before it.

        Args:
            tokens: (N, P + R), prompts and then masks; what is visible in the last R columns stays.
            attention_mask: (N, P + R), 1 = token, 0 = padding; None where nothing is padded.
            generators: one per row.

        Returns:
            A number for each row.

        Raises:
            ValueError: the number of generators is not that of the rows.
        """
        check_generators(generators, tokens.shape[0])
        held = torch.ones_like(tokens, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
        self._given = (tokens, held) if self._given is None else self._given
        order = held.to(torch.int8).sort(dim=-1, descending=True, stable=True).indices
        aligned = tokens.gather(1, order).masked_fill(~held.gather(1, order), self.pad_token_id)
        lengths = held.sum(-1).tolist()
        firsts = [self._first(length) for length in lengths]
        ends = [first + length for first, length in zip(firsts, lengths, strict=True)]
        longest = max([*ends, *(row.end for row in self.rows)])
        columns = longest + self.block_length
        aligned = F.pad(aligned, (0, max(columns - aligned.shape[1], 0)), value=self.pad_token_id)[:, :columns]
        if any(firsts):
            aligned = torch.stack([row.roll(first) for row, first in zip(aligned, firsts, strict=True)])
        masks = self._masks(aligned, ends)
        joined = []
        for n, generator in enumerate(generators):
            prompt = ends[n] - self.response_length
            row = BlockCausalRow(self._joined + n, generator, prompt, ends[n], masks[n], firsts[n])
            row.enter(0, self.block_length, self._quota)
            fresh = self.shift and row.start > 0
            row.stored = max(row.start - (self.block_length if fresh else 0), row.first)
            joined.append(row)
        self._joined += len(joined)
        started = [n for n, row in enumerate(joined) if not row.ended]
        if started:
            self.model_calls += self.passes.join([joined[n] for n in started], aligned[started], longest)
        nowhere = torch.full_like(aligned, -1)
        if self.rows:
            behind = columns - self.tokens.shape[1]
            aligned = torch.cat([F.pad(self.tokens, (0, behind), value=self.pad_token_id), aligned])
            nowhere = torch.cat([F.pad(self.reveal_step, (0, behind), value=-1), nowhere])
        self.record = self.sampler.with_rows(self.record, len(joined), self.response_length, tokens.device)
        self.active += [len(self.rows) + n for n in started]
        self.rows += joined
        self.tokens, self.reveal_step = aligned, nowhere
        return [row.number for row in joined]

    def _first(self, length: int) -> int:
        """The column where a row of so many tokens begins."""
        return 0 if self.sampler.blocks_from == "row" else (self.response_length - length) % self.block_length

    def _masks(self, tokens: Tensor, ends: Sequence[int]) -> list[list[int]]:
        """Masked tokens of each block of the rows (N, C), which end before these columns; prompts left out."""
        column = torch.arange(tokens.shape[1], device=tokens.device)
        last = torch.tensor(ends, device=tokens.device).unsqueeze(-1)
        masked = (tokens == self.mask_token_id) & (column < last) & (column >= last - self.response_length)
        short = -tokens.shape[1] % self.block_length
        return F.pad(masked, (0, short)).unflatten(1, (-1, self.block_length)).sum(-1).tolist()

    def _quota(self, masked: int) -> list[int]:
        """Tokens that each step of a block with so many masks reveals."""
        steps = self.sampler.steps_per_block or self.block_length
        if self.sampler.quota == "even":
            return even(self.block_length, steps)
        return [count for count in QUOTAS[self.sampler.quota](masked, steps) if count]

    def decode_block(self) -> None:
        """Step until a row has finished its block."""
        while self.active and not self._step():
            pass

    def _step(self) -> bool:
        """One pass of the rows that have not ended; whether one of them finished its block."""
        sampler, rows = self.sampler, [self.rows[n] for n in self.active]
        index = torch.tensor(self.active, device=self.tokens.device)
        tokens, window = self.tokens[index], Window.of(rows, self.block_length, self.tokens.device)
        alone = [bool(self.shift) and row.step == 0 and row.start > 0 and row.stored < row.start for row in rows]
        columns, valid, counts = self._candidates(tokens, window, alone)
        logits = ban(self.passes.logits(rows, window, tokens, columns), self._banned)
        self.model_calls += 1
        chosen, scores = choose_tokens(
            logits,
            counts,
            [row.generator for row in rows],
            temperature=sampler.temperature,
            ordering=sampler.ordering,
            top_k=sampler.top_k,
            top_p=sampler.top_p,
            scale=sampler.temperature or 1.0,
        )
        scores = scores.masked_fill(~valid, float("-inf"))
        wanted = [1 if first else row.revealing() for row, first in zip(rows, alone, strict=True)]
        revealed = top_k_per_row(scores, torch.tensor(wanted, device=scores.device)) & valid
        if sampler.parallel == "threshold":
            revealed = revealed | (scores >= sampler.threshold) & valid
        self._write(index, rows, columns, chosen, revealed)
        if self.record is not None:
            in_response = columns - torch.tensor([[row.prompt] for row in rows], device=columns.device)
            self.record = sampler.noted(self.record, logits, chosen, revealed, index, in_response)
        if self.on_step is not None:
            self._observe(index, rows, columns, token_probability(logits, chosen).masked_fill(~revealed, 0))
        return self._advance(index, rows, revealed, alone)

    def _candidates(self, tokens: Tensor, window: Window, alone: Sequence[bool]) -> tuple[Tensor, Tensor, list[int]]:
        """Columns (N, K) of the tokens that may be revealed now, left to right, which of them are valid, and their
        numbers: the block's masks, those of its first sub-block with masks, or its first token where `alone`.
        """
        places = torch.arange(self.block_length, device=tokens.device)
        columns = window.start + places
        masked = tokens.gather(1, columns) == self.mask_token_id
        masked &= window.holds(columns)
        if self.sampler.sub_block_length is not None:
            part = places // self.sampler.sub_block_length
            first = torch.where(masked, part, self.block_length).amin(-1, keepdim=True)
            masked &= part == first
        if any(alone):
            masked &= (places == 0) | ~torch.tensor(alone, device=tokens.device).unsqueeze(-1)
        counts = masked.sum(-1).tolist()
        order = masked.to(torch.int8).sort(dim=-1, descending=True, stable=True).indices[:, : max(counts)]
        return columns.gather(1, order), masked.gather(1, order), counts

    def _write(
        self, index: Tensor, rows: Sequence[BlockCausalRow], columns: Tensor, chosen: Tensor, revealed: Tensor
    ) -> None:
        """Put the `revealed` (N, K) of the `chosen` tokens into the batch."""
        steps = torch.tensor([[row.steps] for row in rows], device=columns.device).expand(columns.shape)
        for values, new in ((self.tokens, chosen), (self.reveal_step, steps)):
            own = values[index]
            values[index] = own.scatter(1, columns, torch.where(revealed, new, own.gather(1, columns)))

    def _advance(self, index: Tensor, rows: Sequence[BlockCausalRow], revealed: Tensor, alone: Sequence[bool]) -> bool:
        """Count the step; rows that have finished their block enter the next, or end."""
        stopped = torch.zeros_like(index, dtype=torch.bool)
        if self.sampler.stops:
            stopped = self.sampler.stopped(self.tokens[index], self.reveal_step[index])
        told = torch.stack([revealed.sum(-1), stopped.long()], dim=-1).tolist()
        finished = False
        for row, (count, stop), first in zip(rows, told, alone, strict=True):
            row.steps += 1
            row.step += not first
            row.left -= count
            row.stored = max(row.start, row.first)
            if row.left == 0:
                finished = True
                row.enter(row.start // self.block_length + 1, self.block_length, self._quota)
                row.ended = row.ended or bool(stop)
        stay = [n for n, row in enumerate(rows) if not row.ended]
        if len(stay) < len(rows):
            self.passes.keep(torch.tensor(stay, device=index.device, dtype=torch.int64))
            self.active = [self.active[n] for n in stay]
        return finished

    def leave(self) -> list[DecodedRow]:
        """Take the rows that have ended out of the batch."""
        left = [self._decoded(n) for n, row in enumerate(self.rows) if row.ended]
        if left:
            stay = [n for n, row in enumerate(self.rows) if not row.ended]
            self.rows = [self.rows[n] for n in stay]
            columns = max([0, *(row.end for row in self.rows)]) + self.block_length
            self.tokens, self.reveal_step = self.tokens[stay, :columns], self.reveal_step[stay, :columns]
            if self.record is not None:
                self.record = self.record.of_rows(stay)
            self.active = [stay.index(n) for n in self.active]
        return left

    def _decoded(self, place: int) -> DecodedRow:
        row = self.rows[place]
        response = self.sampler.filled(self.tokens[place, row.prompt : row.end], self.mask_token_id)
        reveal_step = self.reveal_step[place, row.prompt : row.end].clone()
        record = None if self.record is None else self.record.of_rows(place)
        return DecodedRow(row.number, response, reveal_step, row.steps, record)

    def output(self) -> SamplerOutput:
        """The whole batch, as it was given and in the order in which rows joined; for rows that joined together."""
        assert self._given is not None
        tokens, _ = self._given
        calls = torch.tensor([row.steps for row in self.rows], dtype=torch.int64)
        sequences = self.sampler.filled(self._as_given(self.tokens, tokens), self.mask_token_id)
        reveal_step = self._as_given(self.reveal_step, torch.full_like(tokens, -1))
        return SamplerOutput(sequences, reveal_step, self.model_calls, calls, self.record)

    def _as_given(self, aligned: Tensor, padding: Tensor) -> Tensor:
        """Values of the rows' columns (B, C), in the columns in which they joined (B, L)."""
        assert self._given is not None
        held = self._given[1]
        bounds = torch.tensor([[row.first, row.end] for row in self.rows], device=aligned.device)
        column = torch.arange(aligned.shape[1], device=aligned.device)
        inside = (column >= bounds[:, :1]) & (column < bounds[:, 1:])
        return padding.masked_scatter(held, aligned[inside])

    def _observe(self, index: Tensor, rows: Sequence[BlockCausalRow], columns: Tensor, sure: Tensor) -> None:
        """Tell the observer of a step."""
        assert self._given is not None and self.on_step is not None
        everywhere = torch.zeros(self.tokens.shape, device=sure.device)
        own = everywhere[index].scatter(1, columns, sure)
        everywhere = everywhere.index_copy(0, index, own)
        self.on_step(
            rows[0].steps,
            self._as_given(self.tokens, self._given[0]).clone(),
            self._as_given(everywhere, torch.zeros(self._given[1].shape, device=sure.device)),
        )
