"""The semi-autoregressive sampler of LLaDA (AR-like reversing): blocks left to right, the most certain tokens first."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from maskgrpo_plugin.diffusion.samplers.base import (
    Canvas,
    OnStep,
    Sampler,
    SamplerOptionError,
    SamplerOutput,
    ban,
    check_choice,
    check_number,
    check_token_ids,
    logits_of_columns,
    make_canvas,
    top_k_per_row,
)
from maskgrpo_plugin.diffusion.samplers.cache import CACHES, BlockCache
from maskgrpo_plugin.diffusion.samplers.noise import (
    Generators,
    check_generators,
    draw_categories,
    rows_of,
    uniform_table,
)
from maskgrpo_plugin.diffusion.samplers.parallel import PARALLEL, reveal_more

ORDERINGS = ("low_confidence", "random", "entropy", "margin")


@dataclass(frozen=True)
class SemiAutoregressiveSampler(Sampler):
    """Reveal k tokens a step, block after block (arXiv 2502.09992, Algorithm 5; arXiv 2510.02880, AR-like).

    Attributes:
        steps: steps in total; each block has steps / blocks of them.
        response_length: tokens appended to a prompt.
        block_length: tokens a block; None: one block.
        ordering: which masked tokens are revealed first: the most probable (`low_confidence` ones wait), `random`,
            lowest `entropy`, or largest `margin` of the two best.
        temperature: tokens are drawn from softmax(logits / temperature); 0 takes the most probable token.
        cfg_scale: w in un + (1 + w)(cond − un), un without the prompt; 0 for no guidance.
        stop_token_ids: a row that holds one of them once a block is done takes no further blocks.
        fill_token_id: fills the blocks that were not decoded; None: the first stop token.
        forbidden_token_ids: never emitted, like the mask token.
        cache: `none`; or what stays as it was at the start of the block (approximate, arXiv 2505.22618): keys and
            values of what lies before it (`prefix`), or of all but the block (`dual`).
        parallel: `none` reveals the fixed number of tokens a step; the others reveal more where the model is certain
            (approximate, needs `low_confidence`): see `reveal_more`.
        threshold: of `parallel`, a probability in (0, 1].
        factor: of `parallel=factor`, above 0.

    Raises:
        SamplerOptionError: a value that cannot work.
    """

    steps: int
    response_length: int
    block_length: int | None = None
    ordering: str = "low_confidence"
    temperature: float = 0.0
    cfg_scale: float = 0.0
    stop_token_ids: tuple[int, ...] = ()
    fill_token_id: int | None = None
    forbidden_token_ids: tuple[int, ...] = ()
    cache: str = "none"
    parallel: str = "none"
    threshold: float = 0.9
    factor: float = 1.0

    def __post_init__(self):
        check_number("response_length", self.response_length, 1, whole=True)
        check_number("steps", self.steps, 1, whole=True)
        if self.block_length is not None:
            check_number("block_length", self.block_length, 1, whole=True)
        check_number("temperature", self.temperature, 0)
        check_number("cfg_scale", self.cfg_scale, 0)
        check_choice("ordering", self.ordering, ORDERINGS)
        check_choice("cache", self.cache, CACHES)
        check_choice("parallel", self.parallel, PARALLEL)
        if self.parallel != "none" and self.ordering != "low_confidence":
            raise SamplerOptionError("parallel", self.parallel, "needs ordering low_confidence")
        if isinstance(self.threshold, bool) or not 0 < self.threshold <= 1:
            raise SamplerOptionError("threshold", self.threshold, "allowed: above 0, up to 1")
        if isinstance(self.factor, bool) or not 0 < self.factor < float("inf"):
            raise SamplerOptionError("factor", self.factor, "allowed: above 0")
        for option in ("stop_token_ids", "forbidden_token_ids"):
            check_token_ids(option, getattr(self, option))
        if self.fill_token_id is not None:
            check_number("fill_token_id", self.fill_token_id, 0, whole=True)
        if self.fill_token is not None and self.fill_token in self.forbidden_token_ids:
            raise SamplerOptionError("fill_token_id", self.fill_token, "is one of forbidden_token_ids")
        block = self.block_length or self.response_length
        if self.response_length % block:
            raise SamplerOptionError("block_length", block, f"must divide the response length {self.response_length}")
        blocks = self.response_length // block
        if self.steps < blocks:
            raise SamplerOptionError("steps", self.steps, f"there are {blocks} blocks; each needs a step or more")
        if self.steps % blocks:
            raise SamplerOptionError("steps", self.steps, f"must be a multiple of the {blocks} blocks")
        if self.steps // blocks > block:
            raise SamplerOptionError("steps", self.steps, f"a block of {block} tokens has at most {block} steps")

    @torch.no_grad()
    def generate(
        self,
        model: Callable[..., Any],
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        *,
        mask_token_id: int,
        generator: Generators = None,
        on_step: OnStep | None = None,
    ) -> SamplerOutput:
        """Sample a batch; see `Sampler.generate`. At temperature 0 it equals the published sampler token for token.

        On a canvas, blocks run from the first mask of any row to the end, and share `steps` as evenly as can be.

        Raises:
            SamplerOptionError: `fill_token_id` is the mask token, or a canvas has more blocks than there are steps.
            ValueError: not one generator a row, or a cache with a model that takes none.
        """
        if self.cache != "none" and not getattr(model, "supports_block_cache", False):
            raise ValueError(f"sampler option cache={self.cache!r}: the model takes no block cache")
        if mask_token_id == self.fill_token:
            raise SamplerOptionError("fill_token_id", mask_token_id, "the mask token is never emitted")
        check_generators(generator, input_ids.shape[0])
        canvas = make_canvas(input_ids, attention_mask, self.response_length, mask_token_id)
        length = canvas.tokens.shape[1]
        block = self.block_length or length - canvas.start
        lows = range(canvas.start, length, block)
        if self.steps < len(lows):
            raise SamplerOptionError(
                "steps", self.steps, f"the canvas has {len(lows)} blocks; each needs a step or more"
            )
        rows = list(range(canvas.tokens.shape[0]))
        state = _State(
            canvas,
            torch.full_like(canvas.tokens, -1, dtype=torch.int64),
            torch.zeros(len(rows), dtype=torch.int64),
            mask_token_id,
            generator,
            on_step,
        )
        first_step = 0
        for number, low in enumerate(lows):
            steps = self.steps // len(lows) + (number < self.steps % len(lows))
            high = min(low + block, length)
            self._decode_block(model, state, rows, low, high, first_step, steps)
            first_step += steps
            rows = self._unfinished(state, rows)
            if not rows:
                break
        if self.fill_token is not None:
            canvas.tokens[canvas.tokens == mask_token_id] = self.fill_token
        return SamplerOutput(canvas.tokens, state.reveal_step, state.model_calls, state.row_calls)

    @property
    def fill_token(self) -> int | None:
        """The token that fills blocks after a stop token; None where nothing stops early."""
        if not self.stop_token_ids:
            return None
        return self.stop_token_ids[0] if self.fill_token_id is None else self.fill_token_id

    def _decode_block(
        self,
        model: Callable[..., Any],
        state: "_State",
        rows: list[int],
        low: int,
        high: int,
        first_step: int,
        steps: int,
    ) -> None:
        """Reveal columns [low, high) of `rows` in place; a row with no mask left in them sits the step out.

        Within a block the device is waited for only where `parallel` makes the number of revealed tokens its business.
        """
        block = _Block(self, state, rows, low, high)
        quotas = reveal_quota(torch.tensor(block.left), steps).tolist()
        for step in range(steps):
            block.keep([n for n, quota in enumerate(quotas) if quota[step] > 0 and block.left[n] > 0])
            quotas = [quotas[n] for n in block.kept]
            if not block.rows:
                return
            columns = block.masked_columns()
            counts = [quota[step] for quota in quotas]
            logits = block.logits(model, columns, share=first_step + step == 0)
            state.model_calls += 1
            state.row_calls[block.rows] += 1
            own = rows_of(state.generator, block.rows)
            chosen, scores = self._choose(logits, block.left, own, state.mask_token_id)
            scores = scores.masked_fill(~block.valid, float("-inf"))
            revealed = top_k_per_row(scores, torch.tensor(counts, device=scores.device)) & block.valid
            if self.parallel != "none":
                revealed = revealed | reveal_more(
                    self.parallel, scores, columns, block.valid, threshold=self.threshold, factor=self.factor
                )
                counts = revealed.sum(-1).tolist()
            block.write(columns, chosen, revealed, counts, first_step + step)
            if state.on_step is not None:
                state.on_step(first_step + step, state.canvas.tokens.clone())

    def _choose(
        self, logits: Tensor, counts: list[int], generator: Generators, mask_token_id: int
    ) -> tuple[Tensor, Tensor]:
        """Draw a token for each masked position, and say how certain it is; (N, K, V) -> two of (N, K).

        Row n has `counts[n]` positions; what lies beyond is arbitrary. `logits` are overwritten.
        """
        logits = ban(logits, (mask_token_id, *self.forbidden_token_ids))
        if self.temperature == 0:
            chosen = logits.argmax(-1)
        else:
            uniform = uniform_table(counts, logits.shape[1], generator, logits.device)
            chosen = draw_categories(logits, self.temperature, uniform)
        if self.ordering == "random":
            return chosen, uniform_table(counts, logits.shape[1], generator, logits.device)
        probabilities = logits.softmax(-1)
        if self.ordering == "low_confidence":
            return chosen, probabilities.gather(-1, chosen.unsqueeze(-1)).squeeze(-1)
        if self.ordering == "margin":
            best = probabilities.topk(2, dim=-1).values
            return chosen, best[..., 0] - best[..., 1]
        return chosen, torch.xlogy(probabilities, probabilities).sum(-1)

    def _unfinished(self, state: "_State", rows: list[int]) -> list[int]:
        """Rows that revealed no stop token; visible tokens of a canvas do not count."""
        if not self.stop_token_ids:
            return rows
        tokens, reveal_step = state.canvas.tokens[rows], state.reveal_step[rows]
        stops = torch.tensor(list(self.stop_token_ids), device=tokens.device)
        stopped = (torch.isin(tokens, stops) & (reveal_step >= 0)).any(-1).tolist()
        return [row for row, done in zip(rows, stopped, strict=True) if not done]


@dataclass
class _State:
    canvas: Canvas
    reveal_step: Tensor
    row_calls: Tensor
    mask_token_id: int
    generator: Generators
    on_step: OnStep | None
    model_calls: int = 0


class _Block:
    """The rows that take part in a block, in a batch of their own until `write` puts their tokens back."""

    def __init__(self, sampler: SemiAutoregressiveSampler, state: _State, rows: list[int], low: int, high: int):
        self.sampler, self.state, self.low, self.high = sampler, state, low, high
        self.rows, self.kept = rows, list(range(len(rows)))
        self.index = torch.tensor(rows, device=state.canvas.tokens.device)
        self.tokens = state.canvas.tokens[self.index]
        mask = state.canvas.attention_mask
        self.mask = None if mask is None else mask[self.index]
        self.left: list[int] = (self.tokens[:, low:high] == state.mask_token_id).sum(-1).tolist()
        self.cache = None if sampler.cache == "none" else BlockCache()
        self.valid = torch.empty(0)

    def keep(self, kept: list[int]) -> None:
        """Go on with the rows at these places of the batch."""
        self.kept = kept
        if len(kept) == len(self.rows):
            return
        before = len(self.rows)
        index = torch.tensor(kept, device=self.tokens.device, dtype=torch.long)
        self.rows, self.left = [self.rows[n] for n in kept], [self.left[n] for n in kept]
        self.index, self.tokens = self.index[index], self.tokens[index]
        self.mask = None if self.mask is None else self.mask[index]
        if self.cache is not None:
            guided = torch.cat([index, index + before])
            self.cache.keep(guided if self.sampler.cfg_scale > 0 else index)

    def masked_columns(self) -> Tensor:
        """Columns of the block's masked tokens, left to right, (N, K) with K the most that a row has; `valid` (N, K)
        tells them from the columns that fill shorter rows.
        """
        masked = self.tokens[:, self.low : self.high] == self.state.mask_token_id
        most = max(self.left)
        columns = masked.to(torch.int8).sort(dim=-1, descending=True, stable=True).indices[:, :most] + self.low
        left = torch.tensor(self.left, device=columns.device)
        self.valid = torch.arange(most, device=columns.device) < left.unsqueeze(1)
        return columns

    def logits(self, model: Callable[..., Any], columns: Tensor, *, share: bool) -> Tensor:
        """Logits (N, K, V) at `columns`; with guidance, both passes in one batch.

        `share`: rows of equal tokens, such as a group's before their first token is drawn, go through the model once.
        """
        tokens, mask, scale = self.tokens, self.mask, self.sampler.cfg_scale
        if share and self.cache is None and tokens.shape[0] > 1:
            both = tokens if mask is None else torch.cat([tokens, mask.to(tokens.dtype)], dim=1)
            _, inverse = torch.unique(both, dim=0, return_inverse=True)
            first = {group: n for n, group in reversed(list(enumerate(inverse.tolist())))}
            if len(first) < tokens.shape[0]:
                members = torch.tensor([first[group] for group in range(len(first))], device=tokens.device)
                mask = None if mask is None else mask[members]
                return self._guided(model, tokens[members], mask, columns[members], scale)[inverse]
        return self._guided(model, tokens, mask, columns, scale)

    def _guided(
        self, model: Callable[..., Any], tokens: Tensor, mask: Tensor | None, columns: Tensor, scale: float
    ) -> Tensor:
        if scale == 0:
            return self._forward(model, tokens, mask, columns)
        blind = tokens.clone()
        blind[:, : self.state.canvas.start] = self.state.mask_token_id
        masks = None if mask is None else torch.cat([mask, mask])
        both = self._forward(model, torch.cat([tokens, blind]), masks, torch.cat([columns, columns]))
        cond, uncond = both.chunk(2)
        return uncond + (1 + scale) * (cond - uncond)

    def _forward(self, model: Callable[..., Any], tokens: Tensor, mask: Tensor | None, columns: Tensor) -> Tensor:
        if self.cache is None:
            return logits_of_columns(model, tokens, mask, columns)
        first, last = 0, tokens.shape[1]
        if self.cache.filled:
            first, last = self.low, self.high if self.sampler.cache == "dual" else last
        options = {"cache": self.cache, "first_column": first}
        return logits_of_columns(model, tokens[:, first:last], mask, columns - first, **options)

    def write(self, columns: Tensor, chosen: Tensor, revealed: Tensor, counts: list[int], step: int) -> None:
        """Put the `revealed` (N, K) tokens, `counts[n]` of row n, into the batch and the canvas."""
        self.tokens.scatter_(1, columns, torch.where(revealed, chosen, self.tokens.gather(1, columns)))
        self.state.canvas.tokens[self.index] = self.tokens
        steps = self.state.reveal_step[self.index]
        self.state.reveal_step[self.index] = steps.scatter(
            1, columns, torch.where(revealed, step, steps.gather(1, columns))
        )
        self.left = [left - count for left, count in zip(self.left, counts, strict=True)]


def reveal_quota(masked: Tensor, steps: int) -> Tensor:
    """Share `masked` (B,) positions over `steps` evenly, the first steps taking the remainder; (B, steps)."""
    base, extra = masked // steps, masked % steps
    return base[:, None] + (torch.arange(steps, device=masked.device)[None, :] < extra[:, None])
