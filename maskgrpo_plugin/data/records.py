"""Reading of data sets: records with the place they come from, out of local files or the Hugging Face hub."""

import csv
import gzip
import io
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

from maskgrpo_plugin.errors import first_line

csv.field_size_limit(1 << 24)
PARQUET_BATCH = 64  # rows that are held at a time: they may be images


class DataError(Exception):
    """A data file or record that cannot be used; the message says which, where and why."""


class BadRecord(DataError):
    """A record that cannot be used, for a reason by which such records are counted.

    Attributes:
        reason: the same words for all records with this fault.
        detail: what is particular to this record; may be empty.
    """

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(f"{reason} ({detail})" if detail else reason)
        self.reason, self.detail = reason, detail


class HubSource(NamedTuple):
    """One split of a data set on the hub; `config` names a part of the data set, or is None where it has no parts."""

    name: str
    split: str
    config: str | None = None


def read_file(path: str | Path) -> Iterator[tuple[str, Any]]:
    """Yield ("file:line", record) of a file: JSON Lines unless its name ends in .csv or .parquet; .gz is unpacked.

    A .json file may also be one list of records; records of a list and of parquet are numbered from 1. Blank lines are
    skipped. A line that cannot be read gives a DataError in place of the record, and the caller decides what becomes of
    it.

    Raises:
        DataError: the file cannot be opened or unpacked, or is no JSON or parquet as a whole.
    """
    suffixes = Path(path).suffixes
    try:
        if ".parquet" in suffixes:
            yield from _parquet_records(path)
        else:
            read = _csv_records if ".csv" in suffixes else _list_or_lines if ".json" in suffixes else _json_records
            with _open(path) as file:
                yield from read(file, path)
    except (OSError, EOFError) as error:
        raise DataError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error


def read_hub(source: HubSource) -> Iterator[tuple[str, Any]]:
    """Yield ("name[split]:row", record) of a data set of the Hugging Face hub.

    Raises:
        DataError: `datasets` is missing or the data set cannot be loaded.
    """
    try:
        from datasets import load_dataset

        data = load_dataset(source.name, source.config, split=source.split)
    except Exception as error:
        raise DataError(
            f"cannot load {source.name} from the hub ({error}); give local files by --train and --test"
        ) from error
    for number, record in enumerate(data, start=1):
        yield f"{source.name}[{source.split}]:{number}", record


def text_field(record: Any, *names: str) -> str:
    """The text under the first of `names` that holds one, without the white space around it.

    Raises:
        DataError: the record is no object, or none of the fields holds text.
    """
    for name in names:
        value = as_object(record).get(name)
        if isinstance(value, str) and value.strip():
            return value.strip()
    wanted = " or ".join(map(repr, names))
    raise DataError(f"no text under {wanted}; {shown_keys(record)}")


def text_list_field(record: Any, name: str, *, may_be_empty: bool = False) -> list[str]:
    """The field `name` as a list of strings.

    Raises:
        DataError: the field is no list of strings, or is empty and may not be.
    """
    value = as_object(record).get(name)
    if value is None and may_be_empty:
        return []
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise DataError(f"no list of texts under {name!r}")
    if not value and not may_be_empty:
        raise DataError(f"nothing under {name!r}")
    return value


def first_key(record: Mapping[str, Any], names: Iterable[str]) -> str | None:
    """The first of `names` under which the record has something, or None."""
    return next((name for name in names if record.get(name) is not None), None)


def shown_keys(record: Mapping[str, Any]) -> str:
    """The record's keys, for a message."""
    return f"it has {', '.join(map(str, record)) or 'no keys'}"


def as_object(record: Any) -> dict[str, Any]:
    """`record`, if it is an object.

    Raises:
        DataError: the record is no object; a DataError in place of the record is raised as it is.
    """
    if isinstance(record, DataError):
        raise record
    if not isinstance(record, dict):
        raise DataError(f"not an object but {type(record).__name__}")
    return record


def _open(path: str | Path) -> IO[bytes]:
    return cast(IO[bytes], gzip.open(path, "rb")) if str(path).endswith(".gz") else open(path, "rb")


def _parquet_records(path: str | Path) -> Iterator[tuple[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(PARQUET_BATCH):
                for record in batch.to_pylist():
                    number += 1
                    yield f"{path}:{number}", record
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {path} after row {number}: {first_line(error)}") from error


def _list_or_lines(file: IO[bytes], path: str | Path) -> Iterator[tuple[str, Any]]:
    """Records of one JSON list, or of JSON Lines."""
    content = file.read()
    if not content.lstrip().startswith(b"["):
        yield from _json_records(io.BytesIO(content), path)
        return
    try:
        records = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise DataError(f"cannot read {path}: not JSON in UTF-8 ({error})") from error
    for number, record in enumerate(records, start=1):
        yield f"{path}:{number}", record


def _json_records(file: IO[bytes], path: str | Path) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(file, start=1):
        if not line.strip():
            continue
        place = f"{path}:{number}"
        try:
            yield place, json.loads(line.decode("utf-8"))
        except (ValueError, RecursionError) as error:
            yield place, BadRecord("not JSON in UTF-8", str(error))


def _csv_records(file: IO[bytes], path: str | Path) -> Iterator[tuple[str, Any]]:
    rows = csv.reader(line.decode("utf-8", "replace") for line in file)
    header = next(rows, [])
    try:
        for row in rows:
            if not row:
                continue
            place = f"{path}:{rows.line_num}"
            if len(row) == len(header):
                yield place, dict(zip(header, row, strict=True))
            else:
                yield (
                    place,
                    BadRecord("another number of fields than the header", f"{len(row)} instead of {len(header)}"),
                )
    except csv.Error as error:
        raise DataError(f"cannot read {path}:{rows.line_num}: {error}") from error
