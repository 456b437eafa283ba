"""What is asked of the model: rows of verl's parquet files, prompt files for images, and the requests made of them."""

import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maskgrpo_plugin.data.image_prompts import prompt_rows
from maskgrpo_plugin.data.templates import ANSWER_PREFIXES
from maskgrpo_plugin.errors import ConfigError
from maskgrpo_plugin.models.families import Family, Prompt
from maskgrpo_plugin.workers.agent_loop import build_prompt, image_request, render_chat, visible


@dataclass(frozen=True)
class Problem:
    """One row of the data.

    Attributes:
        id: `<data source>/<number>`, the number counted within the data source from 0.
        row: that number.
        values: the row with verl's columns (`data_source`, `prompt`, `reward_model`, `extra_info`).
    """

    id: str
    row: int
    values: Mapping[str, Any]

    @property
    def data_source(self) -> str:
        """The data set's name, by which its scorer is found."""
        return str(self.values["data_source"])

    @property
    def messages(self) -> list[dict[str, str]]:
        """The conversation."""
        return list(self.values["prompt"])

    @property
    def extra_info(self) -> dict[str, Any]:
        """What else the row holds of the problem."""
        return dict(self.values.get("extra_info") or {})

    @property
    def is_image(self) -> bool:
        """Whether an image is asked for."""
        return self.extra_info.get("modality") == "t2i"

    @property
    def text(self) -> str:
        """The last message."""
        return str(self.messages[-1]["content"])

    @property
    def answer_prefix(self) -> str:
        """What published evaluation writes before the model goes on, by the row's style of prompt; else empty."""
        return ANSWER_PREFIXES.get(str(self.extra_info.get("style")), "")


@dataclass(frozen=True)
class Query:
    """A problem as a request to a rollout server.

    Attributes:
        prompt_ids: tokens of the prompt, unpadded; an answer's prefix is their end.
        request: further arguments of the server's `generate`; for an image its canvas and unconditional prompt.
        new_tokens: tokens to be generated; for a text the response's length.
        prefix_ids: tokens of the answer's prefix, which are scored with what the model writes after them.
    """

    prompt_ids: list[int]
    request: Mapping[str, Any]
    new_tokens: int
    prefix_ids: tuple[int, ...] = ()


def read_problems(data: Sequence[Path], prompts: Sequence[Path], limit: int | None = None) -> list[Problem]:
    """Problems of parquet files as `maskgrpo_plugin.data.prepare` writes them, and of files of image prompts.

    Args:
        data: parquet files.
        prompts: `.jsonl`, `.tar` or text, see `data.image_prompts.read_prompts`.
        limit: the first so many of each data source; None: all.

    Raises:
        ConfigError: a file that is not there or not of that kind, none at all, or texts and images together.
        DataError: a file of prompts without any.
    """
    import pyarrow.parquet as pq

    rows: list[Mapping[str, Any]] = []
    for option, files in (("--data", data), ("--prompts", prompts)):
        for file in files:
            if not file.is_file():
                raise ConfigError(option, str(file), "the file does not exist; see `maskgrpo_plugin.data.prepare`")
    for file in data:
        try:
            found = pq.read_table(file).to_pylist()
        except (OSError, ValueError) as error:
            raise ConfigError("--data", str(file), f"a parquet file is needed: {error}") from error
        missing = {"data_source", "prompt", "reward_model"} - set(found[0] if found else ())
        if missing:
            raise ConfigError("--data", str(file), f"it lacks {', '.join(sorted(missing))}, or has no rows")
        rows += found
    for file in prompts:
        rows += prompt_rows(file, file.stem, "validation")
    problems = _number(rows, limit)
    kinds = {problem.is_image for problem in problems}
    if len(kinds) != 1:
        raise ConfigError("--data", [str(file) for file in data], "name texts or images, one of them in a run")
    return problems


def digests(files: Iterable[Path]) -> dict[str, str]:
    """SHA-256 of each file by its name, the first 12 digits."""
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest()[:12] for file in files}


def make_query(
    problem: Problem,
    tokenizer: Any,
    family: Family | None,
    length: int,
    grid: tuple[int, int] | None,
    answer_prefix: str | None = None,
) -> Query:
    """The request of a problem.

    Args:
        problem: the problem.
        tokenizer: the checkpoint's.
        family: the checkpoint's; None where it is autoregressive.
        length: tokens of a text response; not used for an image.
        grid: rows and columns of an image's tokens; None: the checkpoint's square.
        answer_prefix: the beginning of a text response, given to the model; None: the problem's own.

    Raises:
        ConfigError: the problem does not fit the checkpoint.
    """
    prefix = problem.answer_prefix if answer_prefix is None else answer_prefix
    prefix_ids = tuple(tokenizer(prefix, add_special_tokens=False)["input_ids"]) if prefix else ()
    if (problem.extra_info.get("modality") or "text") == "text":
        return Query([*render_chat(tokenizer, problem.messages), *prefix_ids], {}, length, prefix_ids)
    if family is None:
        raise ConfigError("--model", os.fspath(problem.id), "an autoregressive checkpoint takes texts alone")
    try:
        prompt = build_prompt(family, problem.messages, problem.extra_info, length, grid)
    except ValueError as error:
        raise ConfigError("--data", problem.id, str(error)) from error
    if problem.is_image:
        return _image_query(prompt)
    return Query([*visible(prompt.prompt_ids, prompt.prompt_mask), *prefix_ids], {}, length, prefix_ids)


def _image_query(prompt: Prompt) -> Query:
    ids = visible(prompt.prompt_ids, prompt.prompt_mask)
    return Query(ids, image_request(prompt), sum(prompt.response_mask))


def _number(rows: Sequence[Mapping[str, Any]], limit: int | None) -> list[Problem]:
    counts: Counter[str] = Counter()
    problems = []
    for row in rows:
        source = str(row["data_source"])
        if limit is None or counts[source] < limit:
            problems.append(Problem(f"{source}/{counts[source]}", counts[source], row))
        counts[source] += 1
    return problems
