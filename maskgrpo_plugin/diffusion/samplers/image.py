"""Samplers for image tokens: emerge (arXiv 2510.02880, Algorithm 4), and MaskGIT for comparison."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from maskgrpo_plugin.diffusion.samplers.base import (
    Sampler,
    SamplerOptionError,
    SamplerOutput,
    check_number,
    forbid,
    logits_at,
    make_canvas,
)
from maskgrpo_plugin.diffusion.samplers.noise import Generators, gumbel, uniform_rows
from maskgrpo_plugin.diffusion.samplers.semi_autoregressive import top_k_per_row
from maskgrpo_plugin.diffusion.schedules import get_schedule


@dataclass(frozen=True)
class _ScheduledSampler(Sampler):
    """Options and the loop that emerge and MaskGIT share; subclasses say which positions a step reveals.

    Attributes:
        steps: T, at least 1.
        response_length: tokens appended to a prompt that holds no mask token.
        schedule: k with k(0) = 1 and k(1) = 0: `cosine` or `linear`.
        temperature: of the softmax that tokens are drawn from; 0 takes the most probable.
        cfg_scale: w in (1 + w)·cond − w·uncond.
        vocab_slice: (start, stop) of the ids that may be emitted, or None for all.
        forbidden_token_ids: never emitted, like the mask token.
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
        try:
            get_schedule(self.schedule)
        except ValueError as error:
            raise SamplerOptionError("schedule", self.schedule, str(error)) from None
        if self.vocab_slice is not None and not 0 <= self.vocab_slice[0] < self.vocab_slice[1]:
            raise SamplerOptionError("vocab_slice", self.vocab_slice, "allowed: (start, stop) with 0 ≤ start < stop")

    def generate(
        self,
        model: Callable[..., Any],
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        *,
        mask_token_id: int,
        generator: Generators = None,
        uncond_input_ids: Tensor | None = None,
        uncond_attention_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> SamplerOutput:
        """Sample a batch; see `Sampler.generate`.

        Args:
            uncond_input_ids: (B, P) prompts without their text; needed with `cfg_scale` above 0.
            uncond_attention_mask: (B, P) their padding; None where nothing is padded.

        Raises:
            ValueError: guidance without `uncond_input_ids`.
        """
        if self.cfg_scale > 0 and uncond_input_ids is None:
            raise ValueError("cfg_scale above 0 needs uncond_input_ids")
        canvas = make_canvas(input_ids, attention_mask, self.response_length, mask_token_id)
        tokens, mask = canvas.tokens, canvas.attention_mask
        if self.cfg_scale > 0 and (mask is not None or uncond_attention_mask is not None):
            mask = torch.cat([_full(mask, tokens), _full(uncond_attention_mask, tokens)])
        total = (tokens == mask_token_id).sum(-1)
        reveal_step = torch.full_like(tokens, -1, dtype=torch.int64)
        schedule = get_schedule(self.schedule)
        calls = 0
        for step in range(self.steps):
            positions = tokens == mask_token_id
            counts = positions.sum(-1)
            if not bool(counts.any()):
                break
            logits = self._guided(model, tokens, mask, positions, uncond_input_ids)
            calls += 1
            logits = self._allowed(logits, mask_token_id)
            chosen = self._draw(logits, counts, generator)
            now, then = (float(schedule.mask_ratio((step + i) / self.steps)) for i in (0, 1))
            if step == self.steps - 1:
                revealed = positions
            else:
                revealed = self._reveal(logits, chosen, positions, counts, total, now, then, step, generator)
            tokens[revealed] = chosen[revealed[positions]]
            reveal_step[revealed] = step
        return SamplerOutput(tokens, reveal_step, calls, torch.full_like(total, calls))

    def _guided(
        self, model: Callable[..., Any], tokens: Tensor, mask: Tensor | None, positions: Tensor, uncond: Tensor | None
    ) -> Tensor:
        if self.cfg_scale == 0:
            return logits_at(model, tokens, mask, positions)
        assert uncond is not None
        blind = tokens.clone()
        blind[:, : uncond.shape[1]] = uncond
        both = logits_at(model, torch.cat([tokens, blind]), mask, torch.cat([positions, positions]))
        cond, without = both.chunk(2)
        return (1 + self.cfg_scale) * cond - self.cfg_scale * without

    def _allowed(self, logits: Tensor, mask_token_id: int) -> Tensor:
        logits = forbid(logits, (mask_token_id, *self.forbidden_token_ids)).float()
        if self.vocab_slice is not None:
            logits[:, : self.vocab_slice[0]] = float("-inf")
            logits[:, self.vocab_slice[1] :] = float("-inf")
        return logits

    def _draw(self, logits: Tensor, counts: Tensor, generator: Generators) -> Tensor:
        if self.temperature == 0:
            return logits.argmax(-1)
        noise = gumbel(uniform_rows(counts, logits.shape[-1], generator, logits.device))
        return (logits.double() / self.temperature + noise).argmax(-1)

    def _reveal(
        self,
        logits: Tensor,
        chosen: Tensor,
        positions: Tensor,
        counts: Tensor,
        total: Tensor,
        now: float,
        then: float,
        step: int,
        generator: Generators,
    ) -> Tensor:
        raise NotImplementedError


def _full(mask: Tensor | None, tokens: Tensor) -> Tensor:
    if mask is None:
        return torch.ones_like(tokens)
    missing = tokens.shape[1] - mask.shape[1]
    return torch.nn.functional.pad(mask, (0, missing), value=1)


@dataclass(frozen=True)
class EmergeSampler(_ScheduledSampler):
    """Each masked position stays masked with probability k_s/k_t, else takes a token drawn from the model
    (arXiv 2510.02880, Algorithm 4); the last step reveals what is left."""

    def _reveal(self, logits, chosen, positions, counts, total, now, then, step, generator):
        draws = uniform_rows(counts, None, generator, logits.device)
        revealed = torch.zeros_like(positions)
        revealed[positions] = draws >= then / now
        return revealed


@dataclass(frozen=True)
class MaskGITSampler(_ScheduledSampler):
    """Reveal by confidence so that ⌊N·k((s+1)/T)⌋ positions stay masked (arXiv 2202.04200), the confidence disturbed
    by Gumbel noise whose scale falls linearly to 0."""

    def _reveal(self, logits, chosen, positions, counts, total, now, then, step, generator):
        confidence = logits.log_softmax(-1).gather(-1, chosen.unsqueeze(-1)).squeeze(-1).double()
        scale = self.temperature * (1 - (step + 1) / self.steps)
        confidence = confidence + scale * gumbel(uniform_rows(counts, None, generator, logits.device))
        ranked = torch.full(positions.shape, float("-inf"), dtype=torch.float64, device=positions.device)
        ranked[positions] = confidence
        keep = torch.minimum((total * then).floor().long(), counts)
        return top_k_per_row(ranked, counts - keep) & positions
