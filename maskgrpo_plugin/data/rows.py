"""Rows in verl's format: how one is made, how many are made from records, and how they are written."""

import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from maskgrpo_plugin.data.records import DataError
from maskgrpo_plugin.files import written_whole

__all__ = ["Convert", "Row", "make_rows", "verl_row", "write_parquet"]

logger = logging.getLogger(__name__)

Row = dict[str, Any]
Convert = Callable[[Any, str, int], Row | None]


def verl_row(
    *,
    data_source: str,
    task: str,
    content: str,
    ground_truth: str,
    split: str,
    index: int,
    ability: str = "math",
    **extra: Any,
) -> Row:
    """A row with the columns that verl reads: one user message, a rule-based reward, and the plugin's task name.

    `extra` goes into `extra_info`: what the task's scorer takes besides completion and ground truth.
    """
    return {
        "data_source": data_source,
        "prompt": [{"role": "user", "content": content}],
        "ability": ability,
        "reward_model": {"style": "rule", "ground_truth": ground_truth},
        "extra_info": {"split": split, "index": index, "task": task, **extra},
    }


def make_rows(
    records: Iterable[tuple[str, Any]],
    split: str,
    convert: Convert,
    *,
    max_rows: int | None = None,
    strict: bool = False,
    noun: str = "row",
) -> list[Row]:
    """Rows in verl's format; malformed records are logged by place and left out.

    Args:
        records: (place, record) as `read_file` and `read_hub` give them.
        split: `train` or `validation`; it goes into `extra_info`.
        convert: called as convert(record, split, index of the row); gives a row, None for a record that belongs to
            another split, or raises DataError for a malformed one.
        max_rows: largest number of rows; None: all.
        strict: whether a malformed record is refused.
        noun: name of what is missing where nothing is usable.

    Raises:
        DataError: nothing usable, or, with `strict`, a malformed record.
    """
    rows: list[Row] = []
    skipped = elsewhere = 0
    for place, record in records:
        if max_rows is not None and len(rows) >= max_rows:
            break
        try:
            row = convert(record, split, len(rows))
        except DataError as error:
            if strict:
                raise DataError(f"{place}: {error}") from error
            skipped += 1
            logger.warning("skipped %s: %s", place, error)
            continue
        if row is None:
            elsewhere += 1
        else:
            rows.append(row)
    if not rows:
        raise DataError(f"no usable {noun} for {split} ({skipped} malformed, {elsewhere} of another split)")
    if skipped:
        logger.warning("%s: %d malformed rows skipped", split, skipped)
    return rows


def write_parquet(rows: list[Row], path: Path) -> None:
    """Write rows as one parquet file, whole or not at all; the folder is made."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as file:
        pq.write_table(pa.Table.from_pylist(rows), file)
