"""The folder of a run's checkpoints: what a failed write or read says, a torn pointer, references that nobody needs."""

import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from maskgrpo_plugin.errors import last_line
from maskgrpo_plugin.run_files import POINTER

logger = logging.getLogger(__name__)

STEP = "global_step_"
REFERENCE = "reference"  # folder beside the actor's
UNITS = ("bytes", "kB", "MB", "GB", "TB")


class CheckpointError(RuntimeError):
    """A checkpoint could not be written or read."""


@contextmanager
def explained(what: str, folder: Path, advice: str) -> Iterator[None]:
    """Have whatever goes wrong inside, here or in a worker, name the folder and the space that is left there.

    Args:
        what: such as "could not be written".
        folder: of the checkpoint.
        advice: what the user can do.

    Raises:
        CheckpointError: something went wrong.
    """
    try:
        yield
    except Exception as error:
        place = f"the checkpoint {folder} {what} ({space_left(folder)})"
        raise CheckpointError(f"{place}; {advice}. {last_line(error)}") from error


def space_left(folder: Path) -> str:
    """Free space of the nearest folder above that exists, and whether it can be written to."""
    there = existing_ancestor(folder)
    there = there if there.exists() else there.parent  # a link to nowhere
    usage = shutil.disk_usage(there)
    writable = "" if os.access(there, os.W_OK) else f", {there} cannot be written to"
    return f"{readable(usage.free)} free of {readable(usage.total)}{writable}"


def readable(count: float) -> str:
    """A number of bytes with three digits: 312128 is "312 kB"."""
    unit = 0
    while count >= 999.5 and unit + 1 < len(UNITS):
        count, unit = count / 1000, unit + 1
    return f"{count:.3g} {UNITS[unit]}"


def existing_ancestor(folder: str | Path) -> Path:
    """The folder itself where it is there, else the nearest folder or file above it that is."""
    path = Path(folder).expanduser().absolute()
    while not os.path.lexists(path) and path != path.parent:
        path = path.parent
    return path


def whole_checkpoints(root: Path) -> list[int]:
    """Steps of the checkpoints that were written to their end and still have their actor, ascending: `data.pt` comes
    after the actor, and stays where `trainer.max_actor_ckpt_to_keep` has removed it.
    """
    steps = [path.name.removeprefix(STEP) for path in root.glob(f"{STEP}*") if (path / "data.pt").is_file()]
    return sorted(int(step) for step in steps if step.isdigit() and has_actor(root, step))


def has_actor(root: Path, step: str) -> bool:
    """Whether the checkpoint of a step has the actor's weights, whole or not."""
    return (root / f"{STEP}{step}" / "actor").is_dir()


def repair_pointer(root: Path) -> None:
    """Where the file that names the last checkpoint is torn (verl empties it before it writes), or names a checkpoint
    whose actor is not there, have it name the last whole one. A folder without such a file stays as it is.
    """
    pointer = root / POINTER
    if not pointer.exists():
        return
    said = pointer.read_text().strip()
    if said.isdigit() and has_actor(root, said):
        return
    whole = whole_checkpoints(root)
    if not whole:
        pointer.unlink()
        logger.warning("%s says %r and there is no whole checkpoint: training starts anew", pointer, said)
        return
    logger.warning("%s says %r: it now names the last whole checkpoint, step %d", pointer, said, whole[-1])
    write_atomically(pointer, str(whole[-1]))


def write_atomically(path: Path, text: str) -> None:
    """Write a file so that a reader finds the old or the new text, whenever the power fails."""
    beside = path.with_name(f".{path.name}.new")
    with beside.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(beside, path)


def prune_references(root: Path) -> None:
    """Remove the reference of checkpoints whose actor verl has removed (`trainer.max_actor_ckpt_to_keep`)."""
    for folder in root.glob(f"{STEP}*/{REFERENCE}"):
        if not (folder.parent / "actor").exists():
            shutil.rmtree(folder)
            logger.info("removed %s", folder)
