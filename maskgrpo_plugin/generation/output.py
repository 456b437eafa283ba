"""Where completions go: the terminal, lines of JSON, and PNG files."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from PIL import Image

from maskgrpo_plugin.files import written_whole
from maskgrpo_plugin.generation.completions import Completion
from maskgrpo_plugin.generation.live import heading
from maskgrpo_plugin.generation.terminal import visible
from maskgrpo_plugin.pixels import to_pixels, write_contact_sheet


@dataclass
class ImageFolder:
    """PNG files of a command: `00003-01.png` is the second sample of the fourth prompt, `00003-grid.png` all of them.

    Attributes:
        path: of the folder.
        written: files that were written.
        replaced: those of them that took the place of another.
    """

    path: Path
    written: int = field(default=0, init=False)
    replaced: int = field(default=0, init=False)

    def next_row(self) -> int:
        """The first number of a prompt that no file of the folder has."""
        rows = [file.name[:5] for file in self.path.glob("[0-9][0-9][0-9][0-9][0-9]-*.png")]
        return max((int(row) for row in rows), default=-1) + 1

    def write(self, completion: Completion) -> Path:
        """Write a completion's image; returns its file."""
        assert completion.image is not None
        file = self._new(completion, f"{completion.job.sample:02d}")
        with written_whole(file) as unfinished:
            Image.fromarray(completion.image).save(unfinished, format="PNG")
        return file

    def write_grid(self, completions: Sequence[Completion]) -> Path:
        """Write the samples of a prompt as one image, about as many rows as columns; returns its file."""
        file = self._new(completions[0], "grid")
        images = to_pixels([each.image for each in completions if each.image is not None])
        write_contact_sheet(images, file, columns=math.ceil(math.sqrt(len(images))))
        return file

    def _new(self, completion: Completion, name: str) -> Path:
        file = self.path / f"{completion.job.question.row:05d}-{name}.png"
        self.written += 1
        self.replaced += file.exists()
        return file


class Output:
    """Writes completions to stdout, and images to their folder.

    Args:
        stream: stdout.
        as_json: one JSON object per completion, else text for people.
        headings: whether each completion is told from the others by a line.
        folder: for images.
    """

    def __init__(self, stream: TextIO, *, as_json: bool, headings: bool, folder: ImageFolder | None):
        self.stream, self.as_json, self.headings, self.folder = stream, as_json, headings, folder

    def add(self, completions: Sequence[Completion]) -> None:
        """Write completions."""
        for completion in completions:
            file = None if self.folder is None else self.folder.write(completion)
            self.stream.write((self._json(completion, file) if self.as_json else self._text(completion, file)) + "\n")
        self.stream.flush()

    def add_grid(self, completions: Sequence[Completion]) -> None:
        """Write the grid of a prompt's images where there are several."""
        if self.folder is not None and len(completions) > 1:
            file = self.folder.write_grid(completions)
            if not self.as_json:
                self.stream.write(f"{file}\n")

    def _json(self, completion: Completion, file: Path | None) -> str:
        job = completion.job
        told: dict[str, Any] = {"row": job.question.row, "sample": job.sample, "seed": job.seed}
        told["prompt"] = job.question.text
        if job.question.picture is not None:
            told["picture"] = str(job.question.picture)
        told |= {"text": completion.text} if file is None else {"image": str(file)}
        return json.dumps(told | {"tokens": completion.tokens, "model_calls": completion.model_calls})

    def _text(self, completion: Completion, file: Path | None) -> str:
        text = str(completion.text if file is None else file)
        if self.headings:
            text = f"{heading(completion.job)}\n{text}"
        return visible(text) if self.stream.isatty() else text
