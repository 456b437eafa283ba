"""A run's data files as its checks read them: all rows of a file, or an even sample of a large one."""

import json
import os
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig, ListConfig

from maskgrpo_plugin.errors import OptionError, first_line

FILE_KEYS = ("train_files", "val_files")
SUFFIXES = (".parquet", ".json", ".jsonl")
MOST_ROWS = 20_000  # of a file that are read one by one; of a larger one so many are, evenly spread
Row = dict[str, Any]


class RowFile(NamedTuple):
    """Rows of one data file.

    Attributes:
        columns: names of all its columns.
        total: number of its rows.
        numbers: of the rows that were read, from 0.
        rows: those rows.
    """

    columns: tuple[str, ...]
    total: int
    numbers: Sequence[int]
    rows: Sequence[Row]


class DataFile(NamedTuple):
    """One data file of a run.

    Attributes:
        key: the key that names it, such as `data.train_files`.
        name: as the config names it.
        content: what was read of it.
    """

    key: str
    name: str
    content: RowFile

    def refuse(self, number: int, problem: str) -> OptionError:
        """The error of one of its rows."""
        return OptionError(self.key, f"{self.name}, row {number}", problem)

    def numbered(self) -> Iterator[tuple[int, Row]]:
        """The rows that were read, with their numbers."""
        return zip(self.content.numbers, self.content.rows, strict=True)


def rows_used(config: DictConfig, key: str, total: int) -> int:
    """How many of the `total` rows of `data.<key>` a run takes: `train_max_samples` or `val_max_samples` of them."""
    most = config.data.get("train_max_samples" if key == "train_files" else "val_max_samples", -1)
    return total if most < 0 else min(total, most)


def file_names(config: DictConfig, key: str) -> list[str]:
    """The files that `data.<key>` names."""
    value = config.data[key]
    return [str(name) for name in (value if isinstance(value, ListConfig) else [value])]


def is_remote(name: str) -> bool:
    """Whether a file has a scheme, such as `hdfs://`; those are taken on trust."""
    return "://" in name


def data_files(config: DictConfig) -> list[DataFile]:
    """The data files of a run that are on this machine.

    Raises:
        OptionError: one that cannot be read.
    """
    found = []
    for key in FILE_KEYS:
        for name in file_names(config, key):
            if not is_remote(name):
                found.append(DataFile(f"data.{key}", name, _read(f"data.{key}", name)))
    return found


def _read(key: str, name: str) -> RowFile:
    path = Path(os.path.expanduser(name))
    try:
        stat = path.stat()
        return _read_file(str(path), stat.st_size, stat.st_mtime_ns)
    except Exception as error:  # pyarrow has errors of many kinds
        raise OptionError(key, name, f"it cannot be read: {first_line(error)}") from None


@lru_cache(maxsize=16)
def _read_file(path: str, size: int, modified: int) -> RowFile:
    """The rows of a file; size and time are of the file, so that a changed one is read again."""
    return _parquet(path) if path.endswith(".parquet") else _json(path)


def _parquet(path: str) -> RowFile:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        columns, total = tuple(file.schema_arrow.names), file.metadata.num_rows
        if total <= MOST_ROWS:
            return RowFile(columns, total, range(total), file.read().to_pylist())
        sizes = [file.metadata.row_group(n).num_rows for n in range(file.num_row_groups)]
        share = max(MOST_ROWS // len(sizes), 1)
        step = max(len(sizes) * share // MOST_ROWS, 1)
        numbers: list[int] = []
        parts = []
        for group in range(0, len(sizes), step):
            wanted = _spread(sizes[group], share)
            parts.append(file.read_row_group(group).take(pa.array(wanted)))
            numbers.extend(sum(sizes[:group]) + n for n in wanted)
        return RowFile(columns, total, numbers, pa.concat_tables(parts).to_pylist())


def json_rows(path: str) -> list[Row]:
    """The rows of a file that holds one JSON list of objects, or an object per line.

    Raises:
        ValueError: a line that is no JSON, or a row that is no object, by its number.
    """
    text = Path(path).read_text()
    if text.lstrip().startswith("["):
        rows = json.loads(text)
    else:
        rows = [_line(number, line) for number, line in enumerate(text.splitlines()) if line.strip()]
    wrong = next((number for number, row in enumerate(rows) if not isinstance(row, dict)), None)
    if wrong is not None:
        raise ValueError(f"row {wrong} is no object")
    return rows


def _json(path: str) -> RowFile:
    rows = json_rows(path)
    numbers = _spread(len(rows), MOST_ROWS)
    columns = dict.fromkeys(key for row in rows for key in row)
    return RowFile(tuple(columns), len(rows), numbers, [rows[number] for number in numbers])


def _line(number: int, line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError as error:
        raise ValueError(f"line {number + 1} is no JSON: {error}") from None


def _spread(total: int, most: int) -> list[int]:
    """Numbers of at most `most` of `total` rows, evenly spread; the first and the last are among them."""
    if total <= most:
        return list(range(total))
    if most == 1:
        return [0]
    return [number * (total - 1) // (most - 1) for number in range(most)]
