"""Rows for SFT and for RL out of shards of image codes with conversations."""

import contextlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from maskgrpo_plugin.data.code_shards import CODE_FIELDS
from maskgrpo_plugin.data.faults import Faults
from maskgrpo_plugin.data.question_records import MESSAGES
from maskgrpo_plugin.data.records import BadRecord, DataError
from maskgrpo_plugin.data.rows import Row, verl_row
from maskgrpo_plugin.data.splits import is_in_share
from maskgrpo_plugin.errors import OptionError
from maskgrpo_plugin.files import written_whole

logger = logging.getLogger(__name__)

SPLITS = ("train", "validation")
CODES = pa.list_(pa.int32())


class RowKind(Protocol):
    """What rows are made for."""

    @property
    def schema(self) -> pa.Schema:
        """Their columns."""

    def row(self, record: Mapping[str, Any], split: str, index: int) -> Row:
        """A row of a shard's record, the split's `index`-th.

        Raises:
            BadRecord: no such row can be made of it.
        """


class SFTRows:
    """Rows to learn from: the whole conversation."""

    schema = pa.schema([("messages", MESSAGES), *CODE_FIELDS, ("source", pa.string())])

    def row(self, record: Mapping[str, Any], split: str, index: int) -> Row:
        """See `RowKind`."""
        return {name: record[name] for name in self.schema.names}


class RLRows:
    """Rows in verl's format: the conversation without its last answer, which is judged by a task of the text rewards.

    The ground truth is the accepted answer, or a JSON list where there are several.

    Args:
        task: name of the task.
        data_source: name of the data set.

    Raises:
        OptionError: there is no such task.
    """

    schema = pa.schema(
        [
            ("data_source", pa.string()),
            ("prompt", MESSAGES),
            ("ability", pa.string()),
            ("reward_model", pa.struct([("style", pa.string()), ("ground_truth", pa.string())])),
            (
                "extra_info",
                pa.struct(
                    [
                        ("split", pa.string()),
                        ("index", pa.int64()),
                        ("task", pa.string()),
                        ("modality", pa.string()),
                        ("image_codes", CODES),
                        ("source", pa.string()),
                    ]
                ),
            ),
        ]
    )

    def __init__(self, task: str, data_source: str):
        import verl  # noqa: F401  (loads the plugin and the user's extensions)

        import maskgrpo_plugin.registration  # noqa: F401
        from maskgrpo_plugin.data.reward_checks import row_problem
        from maskgrpo_plugin.rewards.text import get_task

        try:
            get_task(task)
        except OptionError as error:
            raise OptionError("--task", task, error.allowed) from None
        self.task, self.data_source, self._problem = task, data_source, row_problem

    def row(self, record: Mapping[str, Any], split: str, index: int) -> Row:
        """See `RowKind`."""
        *prompt, last = record["messages"]
        if last["role"] != "assistant":
            raise BadRecord("conversation that does not end with an answer")
        answers = record["answers"]
        row = verl_row(
            data_source=self.data_source,
            task=self.task,
            content="",
            ground_truth=answers[0] if len(answers) == 1 else json.dumps(answers),
            split=split,
            index=index,
            ability="image_question",
            modality="mmu",
            image_codes=record["image_codes"],
            source=record["source"],
        ) | {"prompt": prompt}
        problem = self._problem(row, {})
        if problem:
            raise BadRecord(f"answer that the task {self.task} cannot judge", problem)
        return row


def write_rows(
    shards: Sequence[Path], kind: RowKind, folder: Path, *, share: float, seed: int, skip_bad: bool
) -> dict[Path, int]:
    """Write train.parquet and, with a share, validation.parquet, each whole, a row group per shard.

    Args:
        shards: of `write_codes`.
        kind: what the rows are for.
        folder: is made.
        share: of the images that are held out, by a hash of their codes: rows of one image are on one side.
        seed: of the images that are held out.
        skip_bad: whether records of which no such row can be made are left out, with a warning that counts them.

    Returns:
        number of rows of each file.

    Raises:
        OptionError: validation.parquet of an earlier call would stay.
        DataError: a record of which no row can be made, or a file without rows.
    """
    splits = SPLITS if share else SPLITS[:1]
    stale = folder / "validation.parquet"
    if not share and stale.exists():
        raise OptionError("--validation-share", share, f"{stale} of an earlier call would stay; remove it")
    folder.mkdir(parents=True, exist_ok=True)
    counts, faults = dict.fromkeys(splits, 0), Faults()
    with contextlib.ExitStack() as stack:
        files = {split: stack.enter_context(written_whole(folder / f"{split}.parquet")) for split in splits}
        writers = {split: stack.enter_context(pq.ParquetWriter(file, kind.schema)) for split, file in files.items()}
        for shard in shards:
            rows: dict[str, list[Row]] = {split: [] for split in splits}
            for record in _records(shard):
                content = np.asarray(record["image_codes"], np.int32).tobytes()
                split = SPLITS[is_in_share(content, share, seed)]
                try:
                    rows[split].append(kind.row(record, split, counts[split] + len(rows[split])))
                except DataError as error:
                    faults.add(record["source"], error)
            for split, some in rows.items():
                counts[split] += len(some)
                if some:
                    writers[split].write_table(pa.Table.from_pylist(some, kind.schema))
        faults.refuse_unless(skip_bad)
        for split, count in counts.items():
            if not count:
                raise DataError(f"no row for {folder / split}.parquet; choose another --validation-share or --seed")
    if faults.total:
        logger.warning("left out of %s: %s", folder, faults.report())
    return {folder / f"{split}.parquet": count for split, count in counts.items()}


def _records(shard: Path) -> Iterator[dict[str, Any]]:
    with pq.ParquetFile(shard) as file:
        for batch in file.iter_batches(256):
            yield from batch.to_pylist()
