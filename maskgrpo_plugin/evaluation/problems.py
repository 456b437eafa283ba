"""What is asked of the model: rows of verl's parquet files, files of image prompts, and the requests made of them."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maskgrpo_plugin.data.checks import conversation_problem
from maskgrpo_plugin.data.image_prompts import prompt_rows
from maskgrpo_plugin.data.reward_checks import reward_problem
from maskgrpo_plugin.data.templates import ANSWER_PREFIXES
from maskgrpo_plugin.errors import OptionError
from maskgrpo_plugin.files import file_digest
from maskgrpo_plugin.workers.rollout.requests import RequestBuilder, RowRequest


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


def read_problems(data: Sequence[Path], prompts: Sequence[Path], limit: int | None = None) -> list[Problem]:
    """Problems of parquet files as `maskgrpo_plugin.data.prepare` writes them, and of files of image prompts.

    Args:
        data: parquet files.
        prompts: `.jsonl`, `.tar` or text, see `data.image_prompts.read_prompts`.
        limit: number of rows that are taken of each data source, the first ones; None: all.

    Raises:
        OptionError: a file that does not exist or is of another kind, no file at all, a row that cannot be asked or
            scored, or texts and images together.
        DataError: a file of prompts that holds none.
    """
    import pyarrow.parquet as pq

    rows: list[Mapping[str, Any]] = []
    for option, files in (("--data", data), ("--prompts", prompts)):
        for file in files:
            if not file.is_file():
                raise OptionError(option, str(file), "the file does not exist; see `maskgrpo_plugin.data.prepare`")
    for file in data:
        try:
            found = pq.read_table(file).to_pylist()
        except (OSError, ValueError) as error:
            raise OptionError("--data", str(file), f"a parquet file is needed: {error}") from error
        missing = {"data_source", "prompt", "reward_model"} - set(found[0] if found else ())
        if missing:
            raise OptionError("--data", str(file), f"it lacks {', '.join(sorted(missing))}, or has no rows")
        for number, row in enumerate(found):
            problem = conversation_problem(row["prompt"]) or reward_problem(row, needs_truth=False)
            if problem:
                raise OptionError("--data", f"{file}, row {number}", problem)
        rows += found
    for file in prompts:
        rows += prompt_rows(file, file.stem, "validation")
    problems = _number(rows, limit)
    kinds = {problem.is_image for problem in problems}
    if len(kinds) != 1:
        raise OptionError("--data", [str(file) for file in data], "name texts or images, one of them in a run")
    return problems


def digests(files: Iterable[Path]) -> dict[str, str]:
    """SHA-256 of each file by its name, the first 12 digits."""
    return {file.name: file_digest(file) for file in files}


def make_request(
    problem: Problem, builder: RequestBuilder, length: int, answer_prefix: str | None = None
) -> RowRequest:
    """The request of a problem, as a run would make it of the row.

    Args:
        problem: the problem.
        builder: of the checkpoint.
        length: tokens of a text response; not used for an image.
        answer_prefix: the beginning of a text response, given to the model; None: the problem's own.

    Raises:
        OptionError: the problem does not fit the checkpoint.
    """
    prefix = problem.answer_prefix if answer_prefix is None else answer_prefix
    try:
        return builder.build(problem.messages, problem.extra_info, length, answer_prefix=prefix)
    except (ValueError, KeyError) as error:
        raise OptionError("--data", problem.id, str(error)) from error


def _number(rows: Sequence[Mapping[str, Any]], limit: int | None) -> list[Problem]:
    counts: Counter[str] = Counter()
    problems = []
    for row in rows:
        source = str(row["data_source"])
        if limit is None or counts[source] < limit:
            problems.append(Problem(f"{source}/{counts[source]}", counts[source], row))
        counts[source] += 1
    return problems
