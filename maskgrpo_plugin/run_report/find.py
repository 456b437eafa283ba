"""Which files belong to a run: its record, metrics, samples and contact sheets, found by what is in a folder."""

import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from maskgrpo_plugin.errors import OptionError
from maskgrpo_plugin.run_files import RECORD

logger = logging.getLogger(__name__)

DEPTH = 2  # folders below the given one in which records are looked for: runs/quickstart/sft/checkpoints
SAMPLES = {"training": "rollout_data_dir", "validation": "validation_data_dir"}
SAMPLE_FOLDERS = {"training": "rollouts", "validation": "validation"}


@dataclass(frozen=True)
class RunFiles:
    """The files of a run.

    Attributes:
        name: shown in the report.
        folder: where it was found.
        metrics: JSONL files of verl's `file` logger, the parts of a resumed run in their order.
        samples: folders of dumps by kind, `training` and `validation`.
        images: folder of contact sheets.
        started: when it began, in seconds since 1970; what is older in its folders is of another run; 0: unknown.
        versions, config: of its record.
        notes: what a reader should know, such as files that are missing.
    """

    name: str
    folder: Path
    metrics: tuple[Path, ...] = ()
    samples: dict[str, Path] = field(default_factory=dict)
    images: Path | None = None
    started: float = 0.0
    versions: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def is_empty(self) -> bool:
        """Whether it left nothing that can be shown."""
        return not (self.metrics or self.samples or self.images)


def find_runs(paths: Sequence[Path]) -> list[RunFiles]:
    """The runs of folders, and of JSONL files of metrics, each with a name of its own.

    Raises:
        OptionError: a path that is not there, or in which there is no run.
    """
    runs: list[RunFiles] = []
    for path in paths:
        found = _runs_of(path)
        runs += [run for run in found if not any(_same(run, other) for other in runs)]
    return _named_apart(runs)


def _runs_of(path: Path) -> list[RunFiles]:
    if path.is_file():
        if not is_metrics(path):
            raise OptionError("RUN", str(path), "allowed: a run's folder, or the JSONL file of verl's file logger")
        for record in _records(path.parent):
            run = _of_record(record)
            if path.resolve() in [part.resolve() for part in run.metrics]:
                return [run]
        return [RunFiles(path.stem, path.parent, (path,))]
    if not path.is_dir():
        raise OptionError("RUN", str(path), "there is no such file or folder")
    runs = [_of_record(record) for record in _records(path)]
    claimed = {file.resolve() for run in runs for file in run.metrics}
    logs = [file for file in sorted(path.glob("*.jsonl")) if is_metrics(file) and file.resolve() not in claimed]
    runs += [RunFiles(file.stem, path, (file,)) for file in logs]
    if not any(run.samples or run.images for run in runs):
        runs = _with_dumps(runs, path)
    runs = [run for run in runs if not run.is_empty]
    if not runs:
        allowed = f"it holds no run: no {RECORD}, no metrics of verl's file logger, no samples and no contact sheets"
        raise OptionError("RUN", str(path), allowed)
    return runs


def is_metrics(path: Path) -> bool:
    """Whether a file's first line is one of verl's file logger."""
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            first = json.loads(file.readline())
    except (OSError, ValueError):
        return False
    return isinstance(first, dict) and isinstance(first.get("data"), dict) and "step" in first


def _records(folder: Path) -> Iterator[Path]:
    for depth in range(DEPTH + 1):
        yield from sorted(folder.glob("*/" * depth + RECORD))


def _of_record(path: Path) -> RunFiles:
    """The run of a record; one that cannot be read leaves what lies beside it."""
    folder = path.parent
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        starts, config = list(record["starts"]), dict(record["config"])
        named = [Path(start["metrics"]) for start in starts if start.get("metrics")]
        started = float(starts[0]["time"])
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        run = RunFiles(folder.name, folder, notes=(f"{RECORD} cannot be read ({type(error).__name__})",))
        return _with_dumps([run], folder)[0]
    parts = [(file, _moved(file, folder)) for file in dict.fromkeys(named)]
    missing = tuple(f"the metrics {file} are missing" for file, found in parts if found is None)
    if not named:
        missing = ("the run wrote no metrics to a file: trainer.logger has no file",)
    trainer = config.get("trainer") or {}
    samples = {}
    for kind, key in SAMPLES.items():
        place = _folder(trainer.get(key), folder / SAMPLE_FOLDERS[kind])
        if place is not None:
            samples[kind] = place
    return RunFiles(
        name=str(record.get("name") or folder.name),
        folder=folder,
        metrics=tuple(found for _, found in parts if found is not None),
        samples=samples,
        images=_folder(None, folder / "images"),
        started=started,
        versions=dict(record.get("versions") or {}),
        config=config,
        notes=missing,
    )


def _moved(file: Path, folder: Path) -> Path | None:
    """A file, or where the run's folder was moved, the one of its name in the folder or near above it."""
    places = [file, *(above / file.name for above in (folder, *list(folder.resolve().parents)[:DEPTH]))]
    return next((place for place in places if place.is_file()), None)


def _folder(configured: Any, usual: Path) -> Path | None:
    """The folder that a config names where it is there, else the usual one, else None."""
    places = [Path(str(configured)).expanduser()] if configured else []
    return next((place for place in (*places, usual) if place.is_dir()), None)


def _with_dumps(runs: list[RunFiles], folder: Path) -> list[RunFiles]:
    """What lies in a folder without a record, entered in its only run."""
    samples = {}
    places = (folder, folder / "checkpoints")
    for kind, name in SAMPLE_FOLDERS.items():
        found = [place / name for place in places if any((place / name).glob("*.jsonl"))]
        if found:
            samples[kind] = found[0]
    images = next((place / "images" for place in places if any((place / "images").glob("step_*.png"))), None)
    if not samples and images is None:
        return runs
    if len(runs) > 1:
        note = f"the samples in {folder} have no {RECORD} that says of which run they are"
        return [*runs, RunFiles(folder.name, folder, samples=samples, images=images, notes=(note,))]
    run = runs[0] if runs else RunFiles(folder.name, folder)
    return [replace(run, samples=samples, images=images)]


def _same(one: RunFiles, other: RunFiles) -> bool:
    return one.folder.resolve() == other.folder.resolve() and one.metrics == other.metrics


def _named_apart(runs: list[RunFiles]) -> list[RunFiles]:
    """Runs of one name told apart by their folders, then by number."""
    names = [run.name for run in runs]
    named = [
        replace(run, name=f"{run.name} ({_short(run.folder)})") if names.count(run.name) > 1 else run for run in runs
    ]
    seen: dict[str, int] = {}
    apart = []
    for run in named:
        seen[run.name] = seen.get(run.name, 0) + 1
        apart.append(replace(run, name=f"{run.name} #{seen[run.name]}") if seen[run.name] > 1 else run)
    return apart


def _short(folder: Path) -> str:
    """The last parts of a folder that say more than `checkpoints`."""
    parts = [part for part in folder.resolve().parts if part != "checkpoints"]
    return "/".join(parts[-2:])
