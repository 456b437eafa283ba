"""A running batch of block-wise decoding: rows join and leave it between blocks."""

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
from maskgrpo_plugin.diffusion.samplers.blocks.block import BlockModel, BlockState, Row
from maskgrpo_plugin.diffusion.samplers.blocks.options import BlockSampler
from maskgrpo_plugin.diffusion.samplers.blocks.parallel import RULES
from maskgrpo_plugin.diffusion.samplers.blocks.quotas import reveal_quota
from maskgrpo_plugin.diffusion.samplers.noise import check_generators
from maskgrpo_plugin.diffusion.samplers.record import TokenRecord
from maskgrpo_plugin.errors import OptionError


class BlockDecoder:
    """Decodes rows block by block, each from its own first block on whenever it joined (a `RunningBatch`).

    All rows go through a step together, each within its own block; a row's tokens do not depend on the others. The
    canvas is aligned on the right: responses are the last columns, prompts are padded on the left.

    Args:
        sampler: says how a block is decoded.
        model: see `Sampler.generate`.
        mask_token_id: id of the mask token; never emitted.
        response_length: R, columns that are decoded; None: the sampler's.
        pad_token_id: fills the columns before a prompt that is shorter than another.
        on_step: observer of rows that joined together, see `OnStep`.

    Raises:
        OptionError: the fill token is the mask token, or there are more blocks than steps.
        ValueError: a cache with a model that takes none.
    """

    def __init__(
        self,
        sampler: BlockSampler,
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
            raise OptionError("fill_token_id", mask_token_id, "the mask token is never emitted")
        self.sampler, self.model, self.on_step = sampler, model, on_step
        self.mask_token_id, self.pad_token_id = mask_token_id, pad_token_id
        self.response_length = response_length or sampler.response_length
        self.block_length = sampler.block_length or self.response_length
        self.blocks = -(-self.response_length // self.block_length)
        if sampler.steps < self.blocks:
            raise OptionError("steps", sampler.steps, f"the canvas has {self.blocks} blocks; each needs a step or more")
        self.rows: list[Row] = []
        self.tokens = torch.empty(0, dtype=torch.int64)
        self.reveal_step = torch.empty(0, dtype=torch.int64)
        self.attention_mask: Tensor | None = None
        self.record: TokenRecord | None = None
        self.model_calls = 0
        self._banned = (mask_token_id, *sampler.forbidden_token_ids)
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
            generators: one per row.

        Returns:
            A number for each row.

        Raises:
            ValueError: the number of generators is not that of the rows, or no others can join the rows of the batch.
        """
        check_generators(generators, tokens.shape[0])
        if not self.takes_rows:
            raise ValueError(
                f"rows cannot join a running batch with cache={self.sampler.cache!r} or blocks of {self.block_length} "
                f"of {self.response_length} tokens"
            )
        joined = [Row(self._joined + n, generator) for n, generator in enumerate(generators)]
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
        self.record = self.sampler.with_rows(self.record, len(joined), self.response_length, tokens.device)
        self.rows += joined
        self.tokens, self.reveal_step, self.attention_mask = tokens, nowhere, attention_mask
        return [row.number for row in joined]

    def decode_block(self) -> None:
        """Decode the next block of every row that has not ended.

        Within a block, only `parallel` decoding, a record, and packing after rows have left, synchronise with the
        device.
        """
        places = [n for n, row in enumerate(self.rows) if not row.ended]
        rows = [self.rows[n] for n in places]
        state, sampler = self._block(places), self.sampler
        model = BlockModel(
            self.model, self.response_length, self.mask_token_id, cfg_scale=sampler.cfg_scale, cache=sampler.cache
        )
        rule = None
        if sampler.parallel != "none":
            rule = RULES[sampler.parallel](sampler, len(rows), self.block_length, state.tokens.device)
        for step in range(state.quotas.shape[1]):
            working = state.working(step)
            if not working:
                break
            if len(working) < len(state.rows):
                before = len(state.rows)
                kept = state.keep(working)
                model.keep(kept, before)
                if rule is not None:
                    rule.keep(kept)
            columns, valid = state.masked_columns()
            counts = state.quotas[:, step].tolist()
            logits = ban(model.logits(state, columns), self._banned)
            self.model_calls += 1
            for row in state.rows:
                row.calls += 1
            if rule is not None:
                logits = rule.refine(logits, columns - state.low, valid)
            chosen, scores = sampler.choose(logits, state.left, [row.generator for row in state.rows])
            scores = scores.masked_fill(~valid, float("-inf"))
            revealed = top_k_per_row(scores, torch.tensor(counts, device=scores.device)) & valid
            if rule is not None:
                revealed = revealed | rule.reveal(scores, columns - state.low, valid)
                counts = revealed.sum(-1).tolist()
            self._write(state, columns, chosen, revealed, step)
            if self.record is not None:
                in_response = columns - (self.tokens.shape[1] - self.response_length)
                self.record = sampler.noted(self.record, logits, chosen, revealed, state.index, in_response)
            state.left = [left - count for left, count in zip(state.left, counts, strict=True)]
            if self.on_step is not None:
                sure = torch.zeros(state.tokens.shape, device=columns.device)
                sure.scatter_(1, columns, token_probability(logits, chosen).masked_fill(~revealed, 0))
                everywhere = torch.zeros(self.tokens.shape, device=columns.device).index_copy(0, state.index, sure)
                self.on_step(int(state.first_step[0]) + step, self.tokens.clone(), everywhere)
        for row in rows:
            row.block += 1
        for row, stopped in zip(rows, self._stopped(places), strict=True):
            row.ended = stopped or row.block == self.blocks

    def leave(self) -> list[DecodedRow]:
        """Take the rows that have ended out of the batch, and the columns that only their prompts needed."""
        places = [n for n, row in enumerate(self.rows) if row.ended]
        if not places:
            return []
        responses = self.sampler.filled(self.tokens[places, -self.response_length :], self.mask_token_id)
        reveal_step = self.reveal_step[places, -self.response_length :]
        records = [None if self.record is None else self.record.of_rows(n) for n in places]
        left = [
            DecodedRow(self.rows[n].number, response, steps, self.rows[n].calls, record)
            for n, response, steps, record in zip(places, responses, reveal_step, records, strict=True)
        ]
        stay = [n for n, row in enumerate(self.rows) if not row.ended]
        self.rows = [self.rows[n] for n in stay]
        self.tokens, self.reveal_step = self.tokens[stay], self.reveal_step[stay]
        if self.record is not None:
            self.record = self.record.of_rows(stay)
        if self.attention_mask is not None:
            self.attention_mask = self.attention_mask[stay]
            self._trim()
        return left

    def output(self) -> SamplerOutput:
        """The whole batch, in the order in which rows joined; for a batch that none has left."""
        calls = torch.tensor([row.calls for row in self.rows], dtype=torch.int64)
        sequences = self.sampler.filled(self.tokens, self.mask_token_id)
        return SamplerOutput(sequences, self.reveal_step, self.model_calls, calls, self.record)

    def block_steps(self, block: int) -> int:
        """Steps of a block: the sampler's, shared as evenly as can be, the first blocks taking the remainder."""
        return self.sampler.steps // self.blocks + (block < self.sampler.steps % self.blocks)

    def first_step(self, block: int) -> int:
        """Steps before a block."""
        return sum(self.block_steps(earlier) for earlier in range(block))

    def _block(self, places: list[int]) -> BlockState:
        """The rows at these places, each at the start of its next block."""
        device = self.tokens.device
        index = torch.tensor(places, device=device)
        rows, tokens = [self.rows[n] for n in places], self.tokens[index]
        start = tokens.shape[1] - self.response_length
        steps = torch.tensor([self.block_steps(row.block) for row in rows])
        state = BlockState(
            rows=rows,
            index=index,
            tokens=tokens,
            mask=None if self.attention_mask is None else self.attention_mask[index],
            low=torch.tensor([[start + row.block * self.block_length] for row in rows], device=device),
            first_step=torch.tensor([[self.first_step(row.block)] for row in rows], device=device),
            quotas=torch.empty(0),
            left=[],
            length=self.block_length,
            mask_token_id=self.mask_token_id,
        )
        state.left = state.masked().sum(-1).tolist()
        state.quotas = reveal_quota(torch.tensor(state.left), steps, self.sampler.quota)
        return state

    def _write(self, state: BlockState, columns: Tensor, chosen: Tensor, revealed: Tensor, step: int) -> None:
        """Put the `revealed` (N, K) of the `chosen` tokens into the block and the batch."""
        state.tokens.scatter_(1, columns, torch.where(revealed, chosen, state.tokens.gather(1, columns)))
        self.tokens[state.index] = state.tokens
        steps = self.reveal_step[state.index]
        now = torch.where(revealed, state.first_step + step, steps.gather(1, columns))
        self.reveal_step[state.index] = steps.scatter(1, columns, now)

    def _stopped(self, places: list[int]) -> list[bool]:
        """Whether these rows revealed a stop token."""
        if not self.sampler.stops:
            return [False] * len(places)
        return self.sampler.stopped(self.tokens[places], self.reveal_step[places]).tolist()

    def _trim(self) -> None:
        """Drop the columns on the left that are padding in every row."""
        mask = self.attention_mask
        if mask is None or mask.dim() != 2 or not self.rows:
            return
        unused = int((mask != 0).int().argmax(-1).min())
        self.tokens, self.reveal_step, mask = self.tokens[:, unused:], self.reveal_step[:, unused:], mask[:, unused:]
        self.attention_mask = None if bool(mask.all()) else mask


def _stack(first: Tensor, second: Tensor, padding: int) -> Tensor:
    """Rows of (B, L) and (B', L'), padded on the left to one width."""
    width = max(first.shape[1], second.shape[1])
    return torch.cat([F.pad(rows, (width - rows.shape[1], 0), value=padding) for rows in (first, second)])
