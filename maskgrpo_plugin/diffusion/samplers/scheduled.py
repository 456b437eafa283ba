"""What emerge and MaskGIT share: a whole canvas, revealed over T steps by a schedule; subclasses say where."""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from maskgrpo_plugin.diffusion.levels import SCHEDULES, get_schedule
from maskgrpo_plugin.diffusion.samplers.base import (
    OnStep,
    Sampler,
    SamplerOutput,
    ban,
    logits_at,
    make_canvas,
    revealed_probability,
)
from maskgrpo_plugin.diffusion.samplers.noise import (
    Generators,
    check_generators,
    draw_categories,
    rows_of,
    uniform_rows,
)
from maskgrpo_plugin.diffusion.samplers.options import number, one_of, option, token_ids
from maskgrpo_plugin.errors import OptionError


def id_range(key: str, value: Any) -> None:
    """Raise OptionError unless `value` is (start, stop) of token ids, start < stop."""
    token_ids(key, value)
    if len(value) != 2 or value[0] >= value[1]:
        raise OptionError(key, value, "allowed: (start, stop) with start < stop")


@dataclass(frozen=True, kw_only=True)
class ScheduledSampler(Sampler):
    """Options and the loop that emerge and MaskGIT share; see `Sampler` for the others.

    Attributes:
        steps: T, at least 1; 20 as published (arXiv 2510.02880).
        schedule: k with k(0) = 1 and k(1) = 0, see `get_schedule`.
        cfg_scale: w in (1 + w)·cond − w·uncond.
        vocab_slice: (start, stop) of the ids that may be emitted, or None for all.
    """

    modalities: ClassVar[tuple[str, ...]] = ("text", "t2i")

    steps: int = option(number(1, whole=True), 20)
    schedule: str = option(one_of(*SCHEDULES), "cosine")
    temperature: float = option(number(0), 1.0, by_run=True)
    vocab_slice: tuple[int, int] | None = option(id_range, None, by_run=True)

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
            ValueError: guidance without `uncond_input_ids`, or ones of another length; not one generator per row.
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
            chosen = self.draw(logits, counts, own)
            revealed = positions
            if step < self.steps - 1:
                revealed = self.reveal(logits, chosen, positions, total[rows], step, own)
            current[revealed] = chosen[revealed[positions]] + first
            tokens[rows] = current
            reveal_step[rows] = reveal_step[rows].masked_fill(revealed, step)
            if on_step is not None:
                sure = torch.zeros(tokens.shape, device=tokens.device)
                sure[rows] = revealed_probability(logits, chosen, positions, revealed)
                on_step(step, tokens.clone(), sure)
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

    def share(self, step: int) -> float:
        """k(step/T), the share of positions that are masked before a step."""
        return get_schedule(self.schedule)(step / self.steps)

    def draw(self, logits: Tensor, counts: Tensor, generator: Generators) -> Tensor:
        """A token for each masked position from softmax(logits / temperature); (N, V') -> (N,)."""
        return draw_tokens(logits, self.temperature, counts, generator)

    @abstractmethod
    def reveal(
        self, logits: Tensor, chosen: Tensor, positions: Tensor, total: Tensor, step: int, generator: Generators
    ) -> Tensor:
        """Which positions a step reveals; not asked for the last step, which reveals all.

        Args:
            logits: (N, V') at the masked positions, row by row.
            chosen: (N,) columns of `logits` that were drawn.
            positions: (B, L) bool, the N masked positions.
            total: (B,) number of masked positions before the first step.
            step: number of the step, from 0.
            generator: see `uniform_rows`.

        Returns:
            (B, L) bool, a part of `positions`.
        """


def draw_tokens(logits: Tensor, temperature: float, counts: Tensor, generator: Generators) -> Tensor:
    """Draw from softmax(logits / temperature) or take the best at temperature 0; (N, V) -> (N,).

    Args:
        logits: (N, V), the positions of a row after those of the row before.
        temperature: 0 or more.
        counts: (B,) number of the N positions per row.
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
