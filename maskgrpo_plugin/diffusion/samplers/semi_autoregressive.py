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
    check_number,
    check_token_ids,
    forbid,
    logits_at,
    make_canvas,
    top_k_per_row,
)
from maskgrpo_plugin.diffusion.samplers.noise import Generators, check_generators, gumbel, rows_of, uniform_rows

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
            ValueError: not one generator a row.
        """
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
        rows = torch.arange(canvas.tokens.shape[0], device=canvas.tokens.device)
        state = _State(
            canvas,
            torch.full_like(canvas.tokens, -1, dtype=torch.int64),
            torch.zeros_like(rows),
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
            if rows.numel() == 0:
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
        self, model: Callable[..., Any], state: "_State", rows: Tensor, low: int, high: int, first_step: int, steps: int
    ) -> None:
        """Reveal columns [low, high) of `rows` (N,) in place; a row with no mask left in them sits the step out."""
        canvas = state.canvas
        in_block = torch.zeros(canvas.tokens.shape[1], dtype=torch.bool, device=canvas.tokens.device)
        in_block[low:high] = True
        quota = reveal_quota((canvas.tokens[rows, low:high] == state.mask_token_id).sum(-1), steps)
        for step in range(steps):
            busy = quota[:, step] > 0
            rows, quota = rows[busy], quota[busy]
            if rows.numel() == 0:
                return
            tokens = canvas.tokens[rows]
            mask = None if canvas.attention_mask is None else canvas.attention_mask[rows]
            positions = (tokens == state.mask_token_id) & in_block
            logits = self._guided_logits(model, tokens, mask, positions, state)
            state.model_calls += 1
            state.row_calls[rows] += 1
            own = rows_of(state.generator, rows)
            chosen, confidence = self._choose(logits, positions.sum(-1), own, state.mask_token_id)
            scores = torch.full(tokens.shape, float("-inf"), dtype=confidence.dtype, device=tokens.device)
            scores[positions] = confidence
            revealed = top_k_per_row(scores, quota[:, step])
            tokens[revealed] = chosen[revealed[positions]]
            canvas.tokens[rows] = tokens
            state.reveal_step[rows] = state.reveal_step[rows].masked_fill(revealed, first_step + step)
            if state.on_step is not None:
                state.on_step(first_step + step, canvas.tokens.clone())

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
        logits = forbid(logits, (mask_token_id, *self.forbidden_token_ids))
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

    def _unfinished(self, state: "_State", rows: Tensor) -> Tensor:
        """Rows that revealed no stop token; visible tokens of a canvas do not count."""
        if not self.stop_token_ids:
            return rows
        stops = torch.tensor(list(self.stop_token_ids), device=rows.device)
        stopped = torch.isin(state.canvas.tokens[rows], stops) & (state.reveal_step[rows] >= 0)
        return rows[~stopped.any(-1)]


@dataclass
class _State:
    canvas: Canvas
    reveal_step: Tensor
    row_calls: Tensor
    mask_token_id: int
    generator: Generators
    on_step: OnStep | None
    model_calls: int = 0


def reveal_quota(masked: Tensor, steps: int) -> Tensor:
    """Share `masked` (B,) positions over `steps` evenly, the first steps taking the remainder; (B, steps)."""
    base, extra = masked // steps, masked % steps
    return base[:, None] + (torch.arange(steps, device=masked.device)[None, :] < extra[:, None])
