"""What is asked: one prompt, or those of a file."""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maskgrpo_plugin.data.image_prompts import CAPTION_KEYS, read_prompts
from maskgrpo_plugin.data.records import DataError, text_field
from maskgrpo_plugin.errors import OptionError

Message = dict[str, str]


@dataclass(frozen=True)
class Question:
    """One prompt.

    Attributes:
        row: its number, from 0; a part of the seeds.
        messages: the conversation, whose last message is the prompt.
        picture: what it is about, or None.
        place: the option, and file and line, that it comes from.
    """

    row: int
    messages: tuple[Message, ...]
    picture: Path | None = None
    place: str = "--prompt"

    @property
    def text(self) -> str:
        """The prompt."""
        return self.messages[-1]["content"]


def user(text: str) -> Message:
    """A user's turn."""
    return {"role": "user", "content": text}


def read_questions(options: argparse.Namespace) -> list[Question]:
    """The prompts that `--prompt` or `--prompts` gives.

    A line of .jsonl holds the prompt under `prompt`, `caption` or `text`, and in `image` a picture that it is about,
    relative to the file; any other file holds one prompt per line.

    Raises:
        OptionError: no prompts, or a line that holds none, named by its number.
    """
    if options.prompt is not None:
        return [Question(0, (user(options.prompt),), options.image)]
    file: Path = options.prompts
    questions: list[Question] = []
    try:
        for place, record in read_prompts(file):
            questions.append(_question(len(questions), place, record, file.parent, options.image))
    except DataError as error:
        raise OptionError("--prompts", str(file), str(error)) from error
    if not questions:
        raise OptionError("--prompts", str(file), "it holds no prompts")
    return questions


def _question(row: int, place: str, record: Any, folder: Path, picture: Path | None) -> Question:
    try:
        if isinstance(record, DataError):
            raise record
        text = text_field(record, *CAPTION_KEYS)
    except DataError as error:
        raise OptionError("--prompts", place, str(error)) from error
    named = record.get("image")
    if named is not None and not isinstance(named, str):
        raise OptionError("--prompts", place, "`image` must be the path of a picture")
    return Question(row, (user(text),), picture if named is None else folder / named, f"--prompts {place}")
