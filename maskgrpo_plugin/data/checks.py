"""Checks of the data section and of its rows on the driver before Ray starts."""

import ast
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from maskgrpo_plugin.data.row_files import FILE_KEYS, SUFFIXES, DataFile, data_files, file_names, is_remote, rows_used
from maskgrpo_plugin.errors import OptionError
from maskgrpo_plugin.tables import COUNT, COUNT_OR_NULL, Range, check_choices, check_ranges

logger = logging.getLogger(__name__)

NUMBERS = {
    "max_prompt_length": COUNT,
    "max_response_length": COUNT,
    "train_max_samples": Range(1, also=(-1,)),
    "val_max_samples": Range(1, also=(-1,)),
    "seed": Range(0, 2**32 - 1, null=True),
    "filter_overlong_prompts_workers": COUNT_OR_NULL,
}
CHOICES = {"truncation": ("error", "left", "right", "middle")}
INDEX = "extra_info.index"


def check_files(config: DictConfig) -> None:
    """Check the numbers of the data section, and that its files are there; those with a scheme are taken on trust.

    Raises:
        OptionError: the first value that cannot work.
    """
    check_ranges(config, "data", NUMBERS)
    check_choices(config, "data", CHOICES)
    for key in FILE_KEYS:
        names = file_names(config, key)
        if not names:
            raise OptionError(f"data.{key}", [], "name at least one file; see `maskgrpo_plugin.data.prepare`")
        for name in names:
            if is_remote(name):
                continue
            if not Path(os.path.expanduser(name)).is_file():
                raise OptionError(f"data.{key}", name, "the file does not exist; see `maskgrpo_plugin.data.prepare`")
            if not name.endswith(SUFFIXES):
                raise OptionError(f"data.{key}", name, f"allowed: files that end in {', '.join(SUFFIXES)}")
    check_python_object(config, "data.custom_cls")


def check_rows(config: DictConfig) -> None:
    """Check the rows of a run's data files: there are enough, and each has a conversation and a usable index.

    Raises:
        OptionError: a file that cannot be read, that lacks a column, or the first row that cannot work.
    """
    prompt = config.data.prompt_key
    for file in data_files(config):
        if file.content.total == 0:
            raise OptionError(file.key, file.name, "the file has no rows")
        if prompt not in file.content.columns:
            columns = ", ".join(file.content.columns)
            raise OptionError("data.prompt_key", prompt, f"{file.name} has no such column; it has {columns}")
        for number, row in file.numbered():
            problem = conversation_problem(row.get(prompt)) or _info_problem(row.get("extra_info"))
            if problem:
                raise file.refuse(number, problem.replace("prompt", prompt, 1))
        _check_indices(file)
    check_row_count(config, {})


def check_row_count(config: DictConfig, left_out: Mapping[str, int]) -> None:
    """Check that there are rows for one training step, and for a validation.

    Args:
        config: the whole config.
        left_out: rows by key (`data.train_files`) that verl filters out.

    Raises:
        OptionError: too few.
    """
    for key in FILE_KEYS:
        if any(is_remote(name) for name in file_names(config, key)):
            continue
        full = f"data.{key}"
        total = sum(file.content.total for file in data_files(config) if file.key == full)
        kept = rows_used(config, key, total) - left_out.get(full, 0)
        batch = config.data.train_batch_size
        if key == "train_files" and kept < batch:
            why = f" ({left_out[full]} are left out as too long)" if left_out.get(full) else ""
            raise OptionError("data.train_batch_size", batch, f"{full} has {max(kept, 0)} rows for it{why}")
        if kept <= 0:
            raise OptionError(full, file_names(config, key), "all rows are left out as too long")


def conversation_problem(messages: Any) -> str | None:
    """What is wrong with a row's prompt, or None: it is a list of messages, each with a role and a content."""
    if messages is None:
        return "its prompt is null"
    if not isinstance(messages, list | tuple):
        return f"its prompt is {_kind(messages)}, not a list of messages with role and content"
    if not messages:
        return "its prompt has no messages"
    for message in messages:
        if not isinstance(message, Mapping) or not {"role", "content"} <= set(message):
            return "a message of its prompt has no role or no content"
        if not isinstance(message["role"], str):
            return f"a message of its prompt has the role {message['role']!r}"
        if not isinstance(message["content"], str | list):
            return f"a message of its prompt has {_kind(message['content'])} for its content, not a text"
        if isinstance(message["content"], list) and not all(_is_part(part) for part in message["content"]):
            return "a part of a message of its prompt has no type, or no content of that type"
    if not any(message["content"] for message in messages):
        return "all messages of its prompt are empty"
    return None


def _is_part(part: Any) -> bool:
    """Whether it is one part of a message in OpenAI's form, such as {type: text, text: …}."""
    return isinstance(part, Mapping) and isinstance(part.get("type"), str) and part.get(part["type"]) is not None


def check_python_object(config: DictConfig, section: str) -> None:
    """Check that `<section>.path` is a Python file, or a module `pkg://…`, that defines `<section>.name`.

    The file is parsed and not run.

    Raises:
        OptionError: there is no such file, it is no Python, or it has no such name.
    """
    values: Any = config
    for part in section.split("."):
        values = values.get(part) if values is not None else None
    path = values.get("path") if values is not None else None
    if not path:
        return
    name, file = values.get("name"), Path(os.path.expanduser(str(path).removeprefix("file://")))
    if str(path).startswith("pkg://"):
        return
    if not file.is_file():
        raise OptionError(f"{section}.path", str(path), "the file does not exist")
    try:
        tree = ast.parse(file.read_text(), filename=str(file))
    except (SyntaxError, ValueError) as error:
        line = f" (line {error.lineno})" if isinstance(error, SyntaxError) else ""
        cause = error.msg if isinstance(error, SyntaxError) else str(error)
        raise OptionError(f"{section}.path", str(path), f"it is no Python{line}: {cause}") from None
    if not name:
        raise OptionError(f"{section}.name", name, f"allowed: a name that {path} defines")
    names = top_level_names(tree)
    if names is not None and name not in names:
        shown = ", ".join(sorted(one for one in names if not one.startswith("_"))) or "nothing"
        raise OptionError(f"{section}.name", name, f"{path} has no such name; it defines {shown}")


def top_level_names(tree: ast.Module) -> set[str] | None:
    """Names that a module defines or imports; None where it cannot be told without running it (`import *`)."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            imported = [(alias.asname or alias.name).partition(".")[0] for alias in node.names]
            if "*" in imported:
                return None
            names.update(imported)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
    return (
        None
        if "__getattr__" in names or "globals" in {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)}
        else names
    )


def _check_indices(file: DataFile) -> None:
    """All rows have an index that is a whole number, or none has; without one all are of index 0."""
    indices = [(number, (row.get("extra_info") or {}).get("index")) for number, row in file.numbered()]
    given = [index for _, index in indices if index is not None]
    for number, index in indices:
        if index is None and given:
            raise file.refuse(number, f"its {INDEX} is null, that of other rows is not; give each row its number")
        if index is not None and not _is_whole(index):
            raise file.refuse(number, f"its {INDEX} is {index!r}; allowed: whole numbers")
    if any("index" in (row.get("extra_info") or {}) for _, row in file.numbered()) and not given:
        raise file.refuse(indices[0][0], f"its {INDEX} is null, as in all rows; give each row its number")
    if not given:
        logger.warning("%s=%s: no row has an %s, so that all count as row 0", file.key, file.name, INDEX)


def _info_problem(info: Any) -> str | None:
    if info is None or isinstance(info, Mapping):
        return None
    return f"its extra_info is {_kind(info)}, not a struct"


def _is_whole(value: Any) -> bool:
    if isinstance(value, bool):
        return False
    try:
        return int(value) == float(value)
    except (TypeError, ValueError):
        return False


def _kind(value: Any) -> str:
    names = {str: "a text", int: "a number", float: "a number", dict: "a struct", type(None): "null", bytes: "bytes"}
    return names.get(type(value), f"a {type(value).__name__}")
