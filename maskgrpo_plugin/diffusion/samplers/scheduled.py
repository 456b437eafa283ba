"""Samplers for image tokens: emerge (arXiv 2510.02880, Algorithm 4), and MaskGIT for comparison."""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from maskgrpo_plugin.diffusion.levels import Schedule, get_schedule
from maskgrpo_plugin.diffusion.samplers.base import (
    OnStep,
    Sampler,
    SamplerOptionError,
    SamplerOutput,
    ban,
    check_number,
    check_token_ids,
    logits_at,
    make_canvas,
    top_k_per_row,
)
from maskgrpo_plugin.diffusion.samplers.noise import (
    Generators,
    check_generators,
    draw_categories,
    gumbel,
    rows_of,
    uniform_rows,
)


@dataclass(frozen=True)
class _ScheduledSampler(Sampler):
    """Options and the loop that emerge and MaskGIT share; subclasses say which positions a step reveals.

    Attributes:
        steps: T, at least 1.
        response_length: tokens appended to a prompt that holds no mask token.
        schedule: k with k(0) = 1 and k(1) = 0: `cosine` or `linear`.
        temperature: 0 takes the most probable token; above, see the sampler.
        cfg_scale: w in (1 + w)·cond − w·uncond.
        vocab_slice: (start, stop) of the ids that may be emitted, or None for all.
        forbidden_token_ids: never emitted, like the mask token.

    Raises:
        SamplerOptionError: a value that cannot work.
    """

    steps: int
    response_length: int
    schedule: str = "cosine"
    temperature: float = 1.0
    cfg_scale: float = 0.0
    vocab_slice: tuple[int, int] | None = None
    forbidden_token_ids: tuple[int, ...] = ()

    def __post_init__(self):
        check_number("steps", self.steps, 1, whole=True)
        check_number("response_length", self.response_length, 1, whole=True)
        check_number("temperature", self.temperature, 0)
        check_number("cfg_scale", self.cfg_scale, 0)
        check_token_ids("forbidden_token_ids", self.forbidden_token_ids)
        try:
            get_schedule(self.schedule)
        except ValueError as error:
            raise SamplerOptionError("schedule", self.schedule, str(error)) from None
        if self.vocab_slice is not None:
            check_token_ids("vocab_slice", self.vocab_slice)
            if len(self.vocab_slice) != 2 or self.vocab_slice[0] >= self.vocab_slice[1]:
                raise SamplerOptionError("vocab_slice", self.vocab_slice, "allowed: (start, stop) with start < stop")

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
        uncond_input_ids: Tensor | None = None,
        uncond_attention_mask: Tensor | None = None,
    ) -> SamplerOutput:
        """Sample a batch; see `Sampler.generate`.

        Args:
            uncond_input_ids: (B, P) prompts without their text, as long as the prompts; needed with `cfg_scale` above
                0. With a canvas: (B, P) for the columns before its first mask, or all of (B, L).
            uncond_attention_mask: shaped like `uncond_input_ids`; None: the same padding as `attention_mask`.

        Raises:
            ValueError: guidance without `uncond_input_ids`, or ones of another length; not one generator a row.
        """
        check_generators(generator, input_ids.shape[0])
        canvas = make_canvas(input_ids, attention_mask, self.response_length, mask_token_id)
        tokens, mask = canvas.tokens, canvas.attention_mask
        uncond = None
        if self.cfg_scale > 0:
            uncond = _uncond_prompt(uncond_input_ids, input_ids, canvas.start)
            mask = _both_masks(mask, uncond_attention_mask, tokens)
        total = (tokens == mask_token_id).sum(-1)
        reveal_step = torch.full_like(tokens, -1, dtype=torch.int64)
        row_calls = torch.zeros_like(total)
        schedule = get_schedule(self.schedule)
        calls = 0
        for step in range(self.steps):
            rows = (tokens == mask_token_id).any(-1).nonzero().squeeze(-1)
            if rows.numel() == 0:
                break
            current, own = tokens[rows], rows_of(generator, rows.tolist())
            positions = current == mask_token_id
            counts = positions.sum(-1)
            logits = self._guided(model, current, mask, positions, uncond, rows)
            calls += 1
            row_calls[rows] += 1
            first = 0 if self.vocab_slice is None else self.vocab_slice[0]
            logits = ban(logits, (mask_token_id, *self.forbidden_token_ids), first)
            chosen = self._draw(logits, counts, own)
            revealed = positions
            if step < self.steps - 1:
                revealed = self._reveal(logits, chosen, positions, total[rows], schedule, step, own)
            current[revealed] = chosen[revealed[positions]] + first
            tokens[rows] = current
            reveal_step[rows] = reveal_step[rows].masked_fill(revealed, step)
            if on_step is not None:
                on_step(step, tokens.clone())
        return SamplerOutput(tokens, reveal_step, calls, row_calls)

    def _guided(
        self,
        model: Callable[..., Any],
        tokens: Tensor,
        mask: Tensor | None,
        positions: Tensor,
        uncond: Tensor | None,
        rows: Tensor,
    ) -> Tensor:
        """Logits of the allowed slice at `positions` (N, V'); with guidance, both passes in one batch.

        `mask` and `uncond` are those of all rows (with guidance, `mask` of both passes); `tokens` those of `rows`.
        """
        if uncond is None:
            return logits_at(model, tokens, None if mask is None else mask[rows], positions, self.vocab_slice)
        blind = tokens.clone()
        blind[:, : uncond.shape[1]] = uncond[rows]
        if mask is not None:
            mask = mask[torch.cat([rows, rows + mask.shape[0] // 2])]
        both = logits_at(model, torch.cat([tokens, blind]), mask, torch.cat([positions, positions]), self.vocab_slice)
        cond, without = both.chunk(2)
        return (1 + self.cfg_scale) * cond - self.cfg_scale * without

    def _draw(self, logits: Tensor, counts: Tensor, generator: Generators) -> Tensor:
        """A token for each masked position from softmax(logits / temperature); (N, V') -> (N,)."""
        return draw_tokens(logits, self.temperature, counts, generator)

    @abstractmethod
    def _reveal(
        self,
        logits: Tensor,
        chosen: Tensor,
        positions: Tensor,
        total: Tensor,
        schedule: Schedule,
        step: int,
        generator: Generators,
    ) -> Tensor:
        """Which of the masked `positions` (B, L) this step reveals; `total` (B,) were masked at the start."""


def draw_tokens(logits: Tensor, temperature: float, counts: Tensor, generator: Generators) -> Tensor:
    """Draw from softmax(logits / temperature) or take the best at temperature 0; (N, V) -> (N,).

    Args:
        logits: (N, V), the positions of a row after those of the row before.
        temperature: 0 or more.
        counts: (B,) how many of the N positions each row has.
        generator: see `uniform_rows`.
    """
    if temperature == 0:
        return logits.argmax(-1)
    return draw_categories(logits, temperature, uniform_rows(counts, generator, logits.device))


def _uncond_prompt(uncond: Tensor | None, input_ids: Tensor, start: int) -> Tensor:
    """The columns of the unconditional prompts, (B, at most `start`); checks that they fit `input_ids`."""
    if uncond is None:
        raise ValueError("cfg_scale above 0 needs uncond_input_ids")
    batch, width = input_ids.shape
    fits = uncond.shape[1] == width if start == width else uncond.shape[1] <= start or uncond.shape[1] == width
    if uncond.shape[0] != batch or not fits:
        raise ValueError(f"uncond_input_ids has shape {tuple(uncond.shape)}, the prompts {(batch, min(start, width))}")
    return uncond[:, :start]


def _both_masks(mask: Tensor | None, uncond: Tensor | None, tokens: Tensor) -> Tensor | None:
    """Attention masks of the two passes, (2B, L); None where neither is padded."""
    if mask is None and uncond is None:
        return None
    if uncond is None:
        uncond = mask
    if mask is None:
        mask = torch.ones_like(tokens, dtype=uncond.dtype)  # type: ignore[union-attr]
    # columns after the unconditional prompt are those of the canvas
    return torch.cat([mask, torch.cat([uncond.to(mask.dtype), mask[:, uncond.shape[1] :]], dim=1)])  # type: ignore[union-attr]


@dataclass(frozen=True)
class EmergeSampler(_ScheduledSampler):
    """Each masked position stays masked with probability k_s/k_t, else takes a token drawn from the model
    (arXiv 2510.02880, Algorithm 4); the last step reveals what is left. Options and errors: `_ScheduledSampler`'s,
    `temperature` being that of the softmax."""

    def _reveal(self, logits, chosen, positions, total, schedule, step, generator):
        stay = schedule((step + 1) / self.steps) / schedule(step / self.steps)
        revealed = torch.zeros_like(positions)
        revealed[positions] = uniform_rows(positions.sum(-1), generator, logits.device) >= stay
        return revealed


@dataclass(frozen=True)
class MaskGITSampler(_ScheduledSampler):
    """Reveal by confidence so that ⌊N·k((s+1)/T)⌋ positions stay masked (arXiv 2202.04200).

    Tokens are drawn from the softmax as it is; their log-probability plus Gumbel noise of scale
    temperature·(1 − (s+1)/T) ranks them. Temperature 0: the most probable tokens and no noise. Options and errors:
    `_ScheduledSampler`'s."""

    def _draw(self, logits, counts, generator):
        return draw_tokens(logits, 1.0 if self.temperature > 0 else 0.0, counts, generator)

    def _reveal(self, logits, chosen, positions, total, schedule, step, generator):
        counts = positions.sum(-1)
        confidence = logits.log_softmax(-1).gather(-1, chosen.unsqueeze(-1)).squeeze(-1).double()
        scale = self.temperature * (1 - (step + 1) / self.steps)
        if scale > 0:
            confidence = confidence + scale * gumbel(uniform_rows(counts, generator, logits.device))
        scores = torch.full(positions.shape, float("-inf"), dtype=torch.float64, device=positions.device)
        scores[positions] = confidence
        # 1e-9: a product such as 10 · (1 − 0.9) is a whole number but for rounding
        keep = (total.double() * schedule((step + 1) / self.steps) + 1e-9).floor().long()
        return top_k_per_row(scores, (counts - keep).clamp(min=0)) & positions
