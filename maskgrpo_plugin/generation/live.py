"""Completions in the terminal while they are denoised: tokens where they are revealed, in place."""

from collections.abc import Collection, Sequence
from functools import lru_cache
from typing import Any

from torch import Tensor

from maskgrpo_plugin.generation.completions import Job
from maskgrpo_plugin.generation.terminal import Piece, Screen, wrap
from maskgrpo_plugin.token_text import token_pieces

HIDDEN = "░"
_BAR = 32


class LiveView:
    """An observer (`OnStep`) that draws a batch.

    Args:
        screen: where.
        jobs: of the batch.
        tokenizer: the checkpoint's.
        mask_token_id: id of the mask token.
        stop_token_ids: ids that end a text; what follows the first of them is not drawn.
    """

    def __init__(
        self,
        screen: Screen,
        jobs: Sequence[Job],
        *,
        tokenizer: Any,
        mask_token_id: int,
        stop_token_ids: Collection[int],
    ):
        self.screen, self.jobs = screen, jobs
        self.mask_token_id, self.stop_token_ids = mask_token_id, frozenset(stop_token_ids)
        self.length = len(jobs[0].request.response_mask)
        masks = [mask_token_id] * self.length
        canvases = [job.request.canvas for job in jobs]
        self._before = [list(canvas.canvas_ids) if canvas else masks for canvas in canvases]

        @lru_cache(maxsize=4096)
        def pieces(ids: tuple[int, ...]) -> list[str]:
            return token_pieces(lambda part: tokenizer.decode(part, skip_special_tokens=True), list(ids))

        self._pieces = pieces

    def __call__(self, step: int, tokens: Tensor, probability: Tensor) -> None:
        """Draw the canvases after a step, unless the last drawing was a moment ago."""
        if not self.screen.is_due:
            return
        responses = tokens[:, -self.length :].tolist()
        lines: list[list[Piece]] = []
        focus = 0
        for number, (job, ids, before) in enumerate(zip(self.jobs, responses, self._before, strict=True)):
            if len(self.jobs) > 1:
                lines += wrap([Piece(heading(job), "note")], self.screen.columns)
            own = [self._bar(job, ids)] if job.is_image else self._text(ids, before)
            drawn = wrap(own, self.screen.columns)
            if number == 0:
                focus = len(lines) + max((n for n, line in enumerate(drawn) if _has_new(line)), default=0)
            lines += drawn
        self._before = responses
        self.screen.draw(lines, focus)

    def _text(self, ids: list[int], before: list[int]) -> list[Piece]:
        """A text so far: runs of revealed tokens with masks between them."""
        drawn: list[Piece] = []
        start = 0
        for end in range(len(ids) + 1):
            stops = end == len(ids) or ids[end] in self.stop_token_ids
            if not stops and ids[end] != self.mask_token_id:
                continue
            run = zip(self._pieces(tuple(ids[start:end])), before[start:end], ids[start:end], strict=True)
            drawn += [Piece(text, "plain" if old == new else "new") for text, old, new in run if text]
            if stops:
                break
            drawn.append(Piece(HIDDEN, "hidden"))
            start = end + 1
        return drawn

    def _bar(self, job: Job, ids: list[int]) -> Piece:
        """How much of an image is there."""
        places = job.writes
        shown = sum(ids[place] != self.mask_token_id for place in places)
        filled = shown * _BAR // len(places)
        return Piece(f"{'█' * filled}{HIDDEN * (_BAR - filled)} {shown} of {len(places)} image tokens")


def heading(job: Job) -> str:
    """A line that tells a completion from others."""
    return f"[{job.question.row + 1}, sample {job.sample + 1}] {job.question.text}"


def _has_new(line: Sequence[Piece]) -> bool:
    return any(piece.style == "new" for piece in line)
