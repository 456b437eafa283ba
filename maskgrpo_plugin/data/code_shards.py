"""Image codes in shards that are written whole: computed once, and taken up again where a call was interrupted.

A folder holds `codes-00000.parquet`, `codes-00001.parquet`, … and `manifest.json`. Each shard says in its metadata how
far the inputs were read for it and which records were left out until then, so that a second call of the same command
goes on after the last whole shard, and its files are those of a call that was not interrupted.
"""

import hashlib
import itertools
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from maskgrpo_plugin.data.faults import Faults
from maskgrpo_plugin.data.image_records import ImageRecord, Records
from maskgrpo_plugin.data.records import BadRecord, DataError
from maskgrpo_plugin.data.square_images import square_image
from maskgrpo_plugin.differences import first_difference, flat
from maskgrpo_plugin.errors import OptionError, first_line
from maskgrpo_plugin.files import written_whole
from maskgrpo_plugin.threads import map_in_order

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
PATTERN = "codes-*.parquet"
PROGRESS = b"maskgrpo_progress"
CODE_FIELDS = [("image_codes", pa.list_(pa.int32())), ("height", pa.int32()), ("width", pa.int32())]

Encode = Callable[[Sequence[np.ndarray]], np.ndarray]


@dataclass(frozen=True)
class Input:
    """One input.

    Attributes:
        name: as the command names it.
        digest: of what is in it; another one is another input.
        read: its records from the beginning, the same ones at each call.
    """

    name: str
    digest: str
    read: Callable[[], Records]


@dataclass(frozen=True)
class CodeJob:
    """What codes are computed of, and how.

    Attributes:
        inputs: read one after the other.
        fields: name and type of the columns that a record's `fields` fill.
        encode: images (S, S, 3) uint8, at most `batch_size` of them, to codes (B, h·w).
        grid: rows and columns of tokens (h, w).
        side: S, in pixels.
        settings: what else decides the codes, as plain data; another value is refused in a folder that was begun.
        described: what else the manifest says.
        batch_size: images that are encoded at a time.
        rows_per_shard: rows of every shard but the last.
        workers: threads that decode images.
        skip_bad: whether unusable records are left out.
    """

    inputs: Sequence[Input]
    fields: Sequence[tuple[str, pa.DataType]]
    encode: Encode
    grid: tuple[int, int]
    side: int
    settings: Mapping[str, Any]
    described: Mapping[str, Any]
    batch_size: int
    rows_per_shard: int
    workers: int = 1
    skip_bad: bool = False

    @property
    def schema(self) -> pa.Schema:
        """Columns of the shards."""
        return pa.schema([*self.fields, *CODE_FIELDS, ("source", pa.string())])


@dataclass
class Progress:
    """How far the inputs are read.

    Attributes:
        input: number of the input that is read.
        taken: records of it that were taken, bad ones too.
        rows: rows that were made in all.
        faults: records that were left out in all.
    """

    input: int = 0
    taken: int = 0
    rows: int = 0
    faults: Faults = field(default_factory=Faults)

    def to_json(self) -> str:
        """As a shard keeps it."""
        return json.dumps({"input": self.input, "taken": self.taken, "rows": self.rows, **self.faults.as_dict()})

    @classmethod
    def from_json(cls, text: str | bytes) -> "Progress":
        """The inverse of `to_json`."""
        values = json.loads(text)
        return cls(values["input"], values["taken"], values["rows"], Faults.from_dict(values))


def write_codes(job: CodeJob, folder: Path, *, overwrite: bool = False) -> list[Path]:
    """Write the shards that are missing, and the manifest.

    Args:
        job: what is computed.
        folder: is made; shards that it has are kept.
        overwrite: remove them first.

    Returns:
        all shards, in order.

    Raises:
        OptionError: the folder was begun with other inputs or settings, or a shard is missing or torn.
        DataError: no usable record, or, unless `job.skip_bad`, an unusable one; the shards before it stay.
    """
    manifest = _begun(job, folder, overwrite)
    shards = _shards(folder)
    if manifest["complete"]:
        if len(shards) != manifest["shards"]:
            allowed = f"it has {len(shards)} shards of {manifest['shards']}; add --overwrite to begin anew"
            raise OptionError("--output-dir", str(folder), allowed)
        Faults.from_dict(manifest).refuse_unless(job.skip_bad)
        logger.info("%s: all codes are there", folder)
        return shards
    progress = _progress(shards[-1]) if shards else Progress()
    shard, looked_at = Shard(job), 0
    for number, taken, place, record in _decoded(job, progress.input, progress.taken):
        progress.input, progress.taken = number, taken
        looked_at += 1
        if isinstance(record, DataError):
            progress.faults.add(place, record)
        elif job.skip_bad or not progress.faults.total:
            shard.add(place, record)
            progress.rows += 1
        if looked_at >= job.rows_per_shard:
            progress.faults.refuse_unless(job.skip_bad)
        if len(shard) == job.rows_per_shard:
            shards.append(shard.write(folder, len(shards), progress))
            shard, looked_at = Shard(job), 0
    progress.faults.refuse_unless(job.skip_bad)
    if not progress.rows:
        raise DataError(f"no usable record in {', '.join(each.name for each in job.inputs)}")
    if len(shard):
        shards.append(shard.write(folder, len(shards), progress))
    if progress.faults.total:
        logger.warning("left out: %s", progress.faults.report())
    counts = {"rows": progress.rows, "shards": len(shards), **progress.faults.as_dict()}
    _write_manifest(job, folder, {"complete": True, **counts})
    return shards


class Decoded(NamedTuple):
    """A record whose image is decoded: (S, S, 3) uint8, and its columns."""

    pixels: np.ndarray
    fields: Mapping[str, Any]


class Shard:
    """Rows of one shard on their way into its file; equal images among them are encoded once.

    Batches begin anew with each shard, so that a shard's codes do not depend on where a call began.

    Args:
        job: see `CodeJob`.
    """

    def __init__(self, job: CodeJob):
        self.job = job
        self._rows: list[dict[str, Any]] = []
        self._images: list[int] = []  # of each row the number of its image
        self._known: dict[bytes, int] = {}
        self._waiting: list[np.ndarray] = []
        self._codes: list[np.ndarray] = []

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, place: str, record: Decoded) -> None:
        """Add a row; its image is encoded with others, at the latest in `write`."""
        key = hashlib.sha256(record.pixels.tobytes()).digest()
        if key not in self._known:
            self._known[key] = len(self._known)
            self._waiting.append(record.pixels)
        self._images.append(self._known[key])
        self._rows.append({**record.fields, "source": place})
        if len(self._waiting) == self.job.batch_size:
            self._encode()

    def write(self, folder: Path, number: int, progress: Progress) -> Path:
        """Write the shard whole; returns its path."""
        self._encode()
        codes = np.concatenate(self._codes)[self._images]
        rows, count = codes.shape
        height, width = self.job.grid
        offsets = np.arange(0, (rows + 1) * count, count, dtype=np.int32)
        columns = {
            **{name: pa.array([row[name] for row in self._rows], kind) for name, kind in self.job.fields},
            "image_codes": pa.ListArray.from_arrays(offsets, codes.astype(np.int32).reshape(-1)),
            "height": np.full(rows, height, np.int32),
            "width": np.full(rows, width, np.int32),
            "source": [row["source"] for row in self._rows],
        }
        table = pa.table(columns, self.job.schema).replace_schema_metadata({PROGRESS: progress.to_json()})
        path = folder / f"codes-{number:05d}.parquet"
        with written_whole(path) as file:
            pq.write_table(table, file)
        logger.info("%s: %d rows, %d in all", path, rows, progress.rows)
        return path

    def _encode(self) -> None:
        if self._waiting:
            self._codes.append(self.job.encode(self._waiting))
            self._waiting = []


def _decoded(job: CodeJob, first: int, taken: int) -> Iterator[tuple[int, int, str, Decoded | DataError]]:
    """Number of the input and records of it taken so far, place, and the record, from the given place on."""

    def decode(item: tuple[int, int, str, ImageRecord | DataError]) -> tuple[int, int, str, Decoded | DataError]:
        number, taken, place, record = item
        if isinstance(record, DataError):
            return number, taken, place, record
        try:
            return number, taken, place, Decoded(square_image(record.image, job.side), record.fields)
        except DataError as error:
            return number, taken, place, error

    return map_in_order(decode, _records(job.inputs, first, taken), job.workers)


def _records(
    inputs: Sequence[Input], first: int, taken: int
) -> Iterator[tuple[int, int, str, ImageRecord | DataError]]:
    for number in range(first, len(inputs)):
        start = taken if number == first else 0
        try:
            for count, (place, record) in enumerate(itertools.islice(inputs[number].read(), start, None), start + 1):
                yield number, count, place, record
        except DataError as error:  # what follows in this input is lost, so the next place is the next input's first
            yield number + 1, 0, inputs[number].name, BadRecord("input that cannot be read to its end", str(error))


# ---- what lies in the folder


def _begun(job: CodeJob, folder: Path, overwrite: bool) -> dict[str, Any]:
    """The folder's manifest, which is made where there is none."""
    path = folder / MANIFEST
    if overwrite:
        for file in [*folder.glob(PATTERN), path]:
            file.unlink(missing_ok=True)
    if not path.is_file():
        if any(folder.glob(PATTERN)):
            allowed = f"it holds codes without a {MANIFEST}; name another folder, or add --overwrite"
            raise OptionError("--output-dir", str(folder), allowed)
        folder.mkdir(parents=True, exist_ok=True)
        return _write_manifest(job, folder, {"complete": False})
    earlier = json.loads(path.read_text())
    difference = first_difference(flat(earlier["settings"]), flat(_settings(job)))
    if difference:
        name, before, now = difference
        allowed = f"its codes were made with {before!r}; give that, another folder, or --overwrite"
        raise OptionError(f"--output-dir {folder}: {name}", now, allowed)
    return earlier


def _settings(job: CodeJob) -> dict[str, Any]:
    """What decides the codes, as it comes back from JSON."""
    return json.loads(
        json.dumps(
            {
                **job.settings,
                "batch_size": job.batch_size,
                "rows_per_shard": job.rows_per_shard,
                "inputs": [each.name for each in job.inputs],
                "input": {each.name: each.digest for each in job.inputs},
            }
        )
    )


def _write_manifest(job: CodeJob, folder: Path, state: Mapping[str, Any]) -> dict[str, Any]:
    manifest = {"settings": _settings(job), "resolution": job.side, "grid": list(job.grid), **job.described, **state}
    with written_whole(folder / MANIFEST) as file:
        file.write_text(json.dumps(manifest, indent=2) + "\n")
    return manifest


def _shards(folder: Path) -> list[Path]:
    """The folder's shards, in order.

    Raises:
        OptionError: one is missing.
    """
    shards = sorted(folder.glob(PATTERN))
    wanted = [folder / f"codes-{number:05d}.parquet" for number in range(len(shards))]
    lost = next((path for path, found in zip(wanted, shards, strict=True) if path != found), None)
    if lost is not None:
        raise OptionError("--output-dir", str(folder), f"{lost.name} is missing; add --overwrite to begin anew")
    return shards


def _progress(shard: Path) -> Progress:
    try:
        return Progress.from_json(pq.read_schema(shard).metadata[PROGRESS])
    except (OSError, ValueError, KeyError, TypeError) as error:
        allowed = f"it is no shard of codes, or torn ({first_line(error)}); remove it"
        raise OptionError("--output-dir", str(shard), allowed) from None
