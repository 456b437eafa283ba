"""The semi-autoregressive sampler of LLaDA (AR-like reversing): blocks left to right, the most certain tokens first."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from maskgrpo_plugin.diffusion.samplers.base import (
    Canvas,
    Sampler,
    SamplerOptionError,
    SamplerOutput,
    check_number,
    forbid,
    logits_at,
    make_canvas,
)
from maskgrpo_plugin.diffusion.samplers.noise import Generators, gumbel, uniform_rows

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
        temperature: of the Gumbel noise; 0 takes the most probable token.
        cfg_scale: w in un + (1 + w)(cond − un), un without the prompt; 0 for no guidance.
        stop_token_ids: a row that holds one of them once a block is done takes no further blocks.
        fill_token_id: fills the blocks that were not decoded; None: the first stop token.
        forbidden_token_ids: never emitted, like the mask token.

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

    def __post_init__(self):
        check_number("response_length", self.response_length, 1, whole=True)
        check_number("steps", self.steps, 1, whole=True)
        if self.block_length is not None:
            check_number("block_length", self.block_length, 1, whole=True)
        check_number("temperature", self.temperature, 0)
        check_number("cfg_scale", self.cfg_scale, 0)
        if self.ordering not in ORDERINGS:
            raise SamplerOptionError("ordering", self.ordering, f"allowed: {', '.join(ORDERINGS)}")
        block = self.block_length or self.response_length
        if self.response_length % block:
            raise SamplerOptionError(
                "block_length", block, f"must divide the response length {self.response_length}"
            )
        blocks = self.response_length // block
        if self.steps < blocks:
            raise SamplerOptionError("steps", self.steps, f"there are {blocks} blocks; each needs a step or more")
        if self.steps % blocks:
            raise SamplerOptionError("steps", self.steps, f"must be a multiple of the {blocks} blocks")
        if self.steps // blocks > block:
            raise SamplerOptionError("steps", self.steps, f"a block of {block} tokens has at most {block} steps")

    @property
    def steps_per_block(self) -> int:
        """Steps of one block."""
        return self.steps // (self.response_length // (self.block_length or self.response_length))

    def generate(
        self,
        model: Callable[..., Any],
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        *,
        mask_token_id: int,
        generator: Generators = None,
        **kwargs: Any,
    ) -> SamplerOutput:
        """Sample a batch; see `Sampler.generate`. At temperature 0 it equals the published sampler token for token."""
        canvas = make_canvas(input_ids, attention_mask, self.response_length, mask_token_id)
        span = canvas.tokens.shape[1] - canvas.start
        block = self.block_length or span
        reveal_step = torch.full_like(canvas.tokens, -1, dtype=torch.int64)
        rows = torch.arange(canvas.tokens.shape[0], device=canvas.tokens.device)
        row_calls = torch.zeros_like(rows)
        state = _State(canvas, reveal_step, row_calls, mask_token_id)
        for number, first in enumerate(range(0, span, block)):
            low, high = canvas.start + first, min(canvas.start + first + block, canvas.tokens.shape[1])
            self._decode_block(model, state, rows, low, high, number * self.steps_per_block, generator)
            rows = self._unfinished(canvas, rows, high)
            if rows.numel() == 0:
                break
        if self.stop_token_ids:
            fill = self.stop_token_ids[0] if self.fill_token_id is None else self.fill_token_id
            canvas.tokens[canvas.tokens == mask_token_id] = fill
        return SamplerOutput(canvas.tokens, reveal_step, state.model_calls, row_calls)

    def _decode_block(
        self,
        model: Callable[..., Any],
        state: "_State",
        rows: Tensor,
        low: int,
        high: int,
        first_step: int,
        generator: Generators,
    ) -> None:
        """Reveal columns [low, high) of `rows` in place."""
        tokens = state.canvas.tokens[rows]
        mask = None if state.canvas.attention_mask is None else state.canvas.attention_mask[rows]
        own = [generator[i] for i in rows.tolist()] if isinstance(generator, list | tuple) else generator
        in_block = torch.zeros_like(tokens, dtype=torch.bool)
        in_block[:, low:high] = True
        quota = reveal_quota((tokens == state.mask_token_id).logical_and(in_block).sum(-1), self.steps_per_block)
        for step in range(self.steps_per_block):
            positions = (tokens == state.mask_token_id) & in_block
            counts = positions.sum(-1)
            if not bool(counts.any()):
                break
            logits = self._guided_logits(model, tokens, mask, positions, state)
            state.model_calls += 1
            state.row_calls[rows] += 1
            chosen, confidence = self._choose(logits, counts, own, state.mask_token_id)
            ranked = torch.full(tokens.shape, float("-inf"), dtype=confidence.dtype, device=tokens.device)
            ranked[positions] = confidence
            proposal = tokens.clone()
            proposal[positions] = chosen
            revealed = top_k_per_row(ranked, torch.minimum(quota[:, step], counts)) & positions
            tokens = torch.where(revealed, proposal, tokens)
            steps = state.reveal_step[rows]
            steps[revealed] = first_step + step
            state.reveal_step[rows] = steps
        state.canvas.tokens[rows] = tokens

    def _guided_logits(
        self, model: Callable[..., Any], tokens: Tensor, mask: Tensor | None, positions: Tensor, state: "_State"
    ) -> Tensor:
        """Logits at `positions` (N, V); with guidance, both passes in one batch."""
        if self.cfg_scale == 0:
            return logits_at(model, tokens, mask, positions)
        blind = tokens.clone()
        blind[:, : state.canvas.start] = state.mask_token_id
        both = torch.cat([tokens, blind])
        masks = None if mask is None else torch.cat([mask, mask])
        cond, uncond = logits_at(model, both, masks, torch.cat([positions, positions])).chunk(2)
        return uncond + (1 + self.cfg_scale) * (cond - uncond)

    def _choose(
        self, logits: Tensor, counts: Tensor, generator: Generators, mask_token_id: int
    ) -> tuple[Tensor, Tensor]:
        """Draw a token for each masked position, and say how certain it is; (N, V) -> two of (N,)."""
        logits = forbid(logits, (mask_token_id, *self.forbidden_token_ids)).float()
        if self.temperature == 0:
            chosen = logits.argmax(-1)
        else:
            noise = gumbel(uniform_rows(counts, logits.shape[-1], generator, logits.device))
            chosen = (logits.double() + self.temperature * noise).argmax(-1)
        if self.ordering == "random":
            return chosen, uniform_rows(counts, None, generator, logits.device)
        probabilities = logits.softmax(-1)
        if self.ordering == "low_confidence":
            return chosen, probabilities.gather(-1, chosen.unsqueeze(-1)).squeeze(-1)
        if self.ordering == "margin":
            best = probabilities.topk(2, dim=-1).values
            return chosen, best[:, 0] - best[:, 1]
        return chosen, torch.xlogy(probabilities, probabilities).sum(-1)

    def _unfinished(self, canvas: Canvas, rows: Tensor, high: int) -> Tensor:
        """Rows without a stop token before column `high`."""
        if not self.stop_token_ids:
            return rows
        stops = torch.tensor(self.stop_token_ids, device=canvas.tokens.device)
        return rows[~torch.isin(canvas.tokens[rows, canvas.start : high], stops).any(-1)]


@dataclass
class _State:
    canvas: Canvas
    reveal_step: Tensor
    row_calls: Tensor
    mask_token_id: int
    model_calls: int = 0


def reveal_quota(masked: Tensor, steps: int) -> Tensor:
    """Share `masked` (B,) positions over `steps` evenly, the first steps taking the remainder; (B, steps)."""
    base, extra = masked // steps, masked % steps
    return base[:, None] + (torch.arange(steps, device=masked.device)[None, :] < extra[:, None])


def top_k_per_row(scores: Tensor, counts: Tensor) -> Tensor:
    """Mark the `counts[b]` highest scores of each row; (B, L) -> (B, L) bool."""
    largest = int(counts.max())
    marked = torch.zeros_like(scores, dtype=torch.bool)
    if largest == 0:
        return marked
    order = scores.topk(largest, dim=-1).indices
    return marked.scatter(-1, order, torch.arange(largest, device=scores.device)[None, :] < counts[:, None])
