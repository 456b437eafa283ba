"""Estimators along the sampler's own trajectory: each token is scored once, in the state of its slice of steps."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from maskgrpo_plugin.diffusion.estimators.base import (
    Estimator,
    Pass,
    Rows,
    by_block,
    by_token,
    make_pass,
    register_estimator,
)
from maskgrpo_plugin.diffusion.random import combine_seed
from maskgrpo_plugin.diffusion.remasking import mask_prompt
from maskgrpo_plugin.errors import OptionError, check_number


@register_estimator("trajectory")
@dataclass(frozen=True)
class Trajectory(Estimator):
    """One pass per slice of the reveal order: tokens of earlier slices are visible, those of this slice and of later
    ones are masked, and those of this slice are scored.

    TraceRL (arXiv 2509.06949) merges `shrink` distinct steps of a completion into a slice; d2-StepMerge (arXiv
    2509.21474) cuts the sampler's steps into `segments`; CJ-GRPO has as many segments as steps, which is `shrink=1`:
    then ℓ̂ is the log-probability with which the sampler drew the token at temperature 1.

    On a block-causal model the slices are those of each block, and one pass holds the n-th of every block (TraceRL's
    form for block diffusion): with blocks of one token, one pass gives the exact left-to-right likelihood.

    The reveal steps [0, 2, 1, 3] with `shrink=2` make two passes: all four masked, the first and third scored; then
    the second and fourth masked and scored.

    Attributes:
        mu, canvas: see `Estimator`. Under `full` the tail is masked or visible by its reveal steps (published);
            `end_tokens` then says how much of it is in the loss.
        shrink: distinct steps per slice, 1 or more.
        segments: number N of equal segments of the sampler's steps, in place of `shrink`; a segment starts at step
            ⌊i·T/N⌋.
        steps: T of `segments`; None: each completion's own last step plus 1.
        end_tokens: how many tokens from the first end token on are in the loss (TraceRL's `post_num`: 0 for LLaDA);
            None: what `canvas` has in the loss.
        prompt_mask_ratio: share of prompt tokens that are masked in every pass, one draw per update (d2: 0.15), in
            [0, 1).
    """

    requires: ClassVar[tuple[str, ...]] = ("reveal_step",)

    shrink: int | None = None
    segments: int | None = None
    steps: int | None = None
    end_tokens: int | None = None
    prompt_mask_ratio: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for option in ("shrink", "segments", "steps"):
            value = getattr(self, option)
            if value is not None:
                check_number(option, value, 1, whole=True)
        if self.shrink is not None and self.segments is not None:
            raise OptionError("segments", self.segments, f"give shrink (now {self.shrink}) or segments, not both")
        if self.end_tokens is not None:
            check_number("end_tokens", self.end_tokens, 0, whole=True)
        check_number("prompt_mask_ratio", self.prompt_mask_ratio, 0, 1)

    @property
    def varies(self) -> bool:  # type: ignore[override]
        """Only the prompt's mask differs between updates."""
        return self.prompt_mask_ratio > 0

    def passes(self, rows: Rows, *, seed: int, step: int, update: int) -> list[Pass]:
        """See `Estimator.passes`; rows with fewer slices than others score nothing in the last passes."""
        if rows.reveal_step is None:
            raise ValueError("the estimator trajectory needs reveal_step, the step at which each token was revealed")
        maskable = self.maskable(rows)
        slices = self._slices(rows, rows.reveal_step, maskable)
        scored = maskable & self._kept(rows)
        clean = mask_prompt(
            self.clean(rows),
            rows.prompt,
            self.prompt_mask_ratio,
            seed=combine_seed(seed, step, update),
            keys=rows.keys,
            mask_token_id=rows.mask_token_id,
        )
        count = int(slices.max()) + 1 if slices.numel() else 0
        return [
            make_pass(clean.masked_fill(maskable & (slices >= n), rows.mask_token_id), scored & (slices == n))
            for n in range(max(count, 1))
        ]

    def _slices(self, rows: Rows, reveal_step: Tensor, maskable: Tensor) -> Tensor:
        """(B, L) int64, the slice of each maskable token, of its row or, where there are blocks, of its block."""

        def slices(steps: Tensor, inside: Tensor) -> Tensor:
            if self.segments is None:
                return merge_steps(steps, inside, self.shrink or 1)
            return segment_steps(steps, inside, self.segments, self.steps)

        if rows.block_length is None:
            return slices(reveal_step, maskable)
        steps = by_block(reveal_step.long(), -1, rows)
        inside = by_block(maskable, False, rows)
        first = steps.masked_fill(~inside | (steps < 0), torch.iinfo(torch.int64).max).amin(-1, keepdim=True)
        found = slices(torch.where(steps < 0, steps, steps - first), inside)
        return torch.where(maskable, by_token(found, rows), -1)

    def _kept(self, rows: Rows) -> Tensor:
        """(B, L) bool, response tokens that may be scored: from the first end token on, `end_tokens` of them."""
        if self.end_tokens is None:
            return rows.response
        stops = torch.isin(rows.tokens, torch.tensor(list(rows.stop_token_ids), device=rows.tokens.device))
        after = ((stops & rows.response).long().cumsum(-1) > 0) & rows.response
        return rows.response & (after.long().cumsum(-1) <= self.end_tokens)


def merge_steps(reveal_step: Tensor, maskable: Tensor, shrink: int) -> Tensor:
    """Number the slices of each row: `shrink` of its distinct steps at a time, in their order.

    Args:
        reveal_step: (B, L) int64; a negative step (never revealed) counts as the last.
        maskable: (B, L) bool, the positions that count.
        shrink: distinct steps per slice.

    Returns:
        (B, L) int64, the slice from 0 of each maskable position, −1 elsewhere. The steps [5, 0, 5, 2] are the distinct
        steps 0, 2, 5: with shrink 2 the slices [1, 0, 1, 0].
    """
    last = torch.iinfo(torch.int64).max
    steps = torch.where(reveal_step < 0, last, reveal_step.long())
    steps = torch.where(maskable, steps, -1)
    ordered, order = steps.sort(dim=1, stable=True)
    new = torch.ones_like(ordered)
    new[:, 1:] = (ordered[:, 1:] != ordered[:, :-1]).long()
    new = new * (ordered >= 0)
    rank = torch.empty_like(new).scatter_(1, order, new.cumsum(1) - 1)
    return torch.where(maskable, rank // shrink, -1)


def segment_steps(reveal_step: Tensor, maskable: Tensor, segments: int, steps: int | None) -> Tensor:
    """Number the segments of each row's steps: segment i holds the steps from ⌊i·T/N⌋ to below ⌊(i + 1)·T/N⌋.

    Args:
        reveal_step: (B, L) int64; a negative step (never revealed) counts as the last.
        maskable: (B, L) bool, the positions that count.
        segments: N.
        steps: T; None: each row's last step plus 1.

    Returns:
        (B, L) int64, the segment from 0 of each maskable position, −1 elsewhere.
    """
    reveal_step = reveal_step.long()
    if steps is None:
        total = (torch.where(maskable, reveal_step, 0).amax(1, keepdim=True) + 1).clamp(min=1)
    else:
        total = torch.full_like(reveal_step[:, :1], steps)
    starts = torch.arange(1, segments, device=reveal_step.device) * total // segments
    own = torch.where(reveal_step < 0, total - 1, reveal_step)
    number = (own.unsqueeze(-1) >= starts.unsqueeze(1)).sum(-1)
    return torch.where(maskable, number, -1)
