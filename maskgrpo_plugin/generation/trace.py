"""The page that replays denoisings step by step: one HTML file with its data in it, which loads nothing."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from maskgrpo_plugin.files import written_whole
from maskgrpo_plugin.generation.checkpoint import Checkpoint
from maskgrpo_plugin.generation.completions import Completion
from maskgrpo_plugin.generation.recording import Frame, canvas_after, evenly
from maskgrpo_plugin.pages import embedded, filled, part
from maskgrpo_plugin.token_text import token_pieces


@dataclass
class Trace:
    """The completions of a page so far.

    Attributes:
        path: of the page.
        checkpoint: the model.
        settings: what the page tells of the sampler, by name.
        most_steps: of an image, whose pixels are in the page for each of them.
    """

    path: Path
    checkpoint: Checkpoint
    settings: dict[str, Any]
    most_steps: int

    def __post_init__(self) -> None:
        self._entries: list[dict[str, Any]] = []

    def add(self, completion: Completion, frames: Sequence[Frame]) -> None:
        """Put a completion and the frames of its denoising into the page; `write` writes it."""
        job = completion.job
        entry: dict[str, Any] = {
            "messages": list(job.question.messages),
            "row": job.question.row,
            "sample": job.sample,
            "seed": str(job.seed),  # JavaScript's numbers hold 53 bits
            "calls": completion.model_calls,
            "picture": None if job.picture is None else png(job.picture),
        }
        entry |= self._image(completion, frames) if job.is_image else self._text(completion, frames)
        self._entries.append(entry)

    def write(self) -> None:
        """Write the page, whole or not at all."""
        data = {"model": self.checkpoint.path, "settings": self.settings, "completions": self._entries}
        with written_whole(self.path) as file:
            file.write_text(page(data), encoding="utf-8")

    def _text(self, completion: Completion, frames: Sequence[Frame]) -> dict[str, Any]:
        tokenizer = self.checkpoint.tokenizer
        ids = completion.token_ids
        pieces = token_pieces(lambda part: tokenizer.decode(part, clean_up_tokenization_spaces=False), ids)
        special = set(tokenizer.all_special_ids) | set(self.checkpoint.stop_token_ids)
        return {
            "kind": "text",
            "end": completion.tokens,
            "pieces": pieces,
            "special": [n for n, token in enumerate(ids) if token in special],
            "written": completion.job.writes,
            "steps": len(frames),
            "frames": [
                {"step": frame.step, "set": [self._change(each, frame.step, ids) for each in frame.changes]}
                for frame in frames
            ],
        }

    def _change(self, change: Any, step: int, final: list[int]) -> list[Any]:
        """[place, probability, step], and the token's text where it did not stay."""
        told = [change.place, round(change.probability, 4), step]
        if change.token != final[change.place]:
            told.append(self.checkpoint.tokenizer.decode([change.token]))
        return told

    def _image(self, completion: Completion, frames: Sequence[Frame]) -> dict[str, Any]:
        """The grid, and of evenly chosen steps the pixels and what was revealed since the one before."""
        job, grid = completion.job, self.checkpoint.grid()
        assert job.request.canvas is not None and completion.image is not None
        number = {place: n for n, place in enumerate(job.writes)}
        chosen = evenly(len(frames), self.most_steps)
        told, canvases = [], []
        for first, last in zip([0, *(n + 1 for n in chosen)], chosen, strict=False):
            since = frames[first : last + 1]
            changes = [(frame.step, each) for frame in since for each in frame.changes if each.place in number]
            told.append(
                {
                    "step": frames[last].step,
                    "set": [[number[each.place], round(each.probability, 4), step] for step, each in changes],
                }
            )
            canvas = canvas_after(job.request.canvas.canvas_ids, frames[: last + 1])
            canvases.append([canvas[place] for place in job.writes])
        pixels = self._decode(torch.tensor(canvases), grid)
        return {
            "kind": "image",
            "grid": list(grid),
            "size": list(completion.image.shape[:2]),
            "steps": len(frames),
            "frames": [frame | {"png": png(image)} for frame, image in zip(told, pixels, strict=True)],
        }

    def _decode(self, tokens: Tensor, grid: tuple[int, int]) -> list[np.ndarray]:
        """Pixels of canvases (N, rows · columns) of image tokens, one at a time."""
        hidden = tokens == self.checkpoint.mask_token_id
        filled = torch.stack([fill_hidden(row, gone, grid) for row, gone in zip(tokens, hidden, strict=True)])
        filled = filled.to(self.checkpoint.device)
        return [self.checkpoint.image_tokenizer.decode(row[None], grid)[0] for row in filled]


def fill_hidden(tokens: Tensor, hidden: Tensor, grid: tuple[int, int]) -> Tensor:
    """Give each hidden token the value of the nearest one that is not hidden, the first among equals.

    In a grid of 1 × 4, `7 m m 8` becomes `7 7 8 8`.

    Args:
        tokens: (rows · columns,), row by row; at least one is not hidden.
        hidden: (rows · columns,) bool.
        grid: rows and columns.
    """
    places = torch.stack(torch.meshgrid(*map(torch.arange, grid), indexing="ij"), -1).view(-1, 2).float()
    known = (~hidden).nonzero().squeeze(-1)
    nearest = torch.cdist(places, places[known]).argmin(-1)
    return torch.where(hidden, tokens[known][nearest], tokens)


def page(data: dict[str, Any]) -> str:
    """The page with its data, as JSON in which nothing can end the element that holds it."""
    parts = {"@LOOK@": part("maskgrpo_plugin.pages", "look.css"), "@SHARED@": part("maskgrpo_plugin.pages", "look.js")}
    parts |= {"@STYLE@": _part("trace.css"), "@SCRIPT@": _part("trace.js"), "@DATA@": embedded(data)}
    return filled(_part("trace.html"), parts)


def _part(name: str) -> str:
    return part("maskgrpo_plugin.generation", name)


def png(image: np.ndarray) -> str:
    """An image (H, W, 3) uint8 as a data URI."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
