"""What a checkpoint's folder says of its weights, read from safetensors headers without loading them."""

import json
import re
import struct
from collections.abc import Mapping
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import Any

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
LARGEST_HEADER = 100_000_000


class WeightFileError(ValueError):
    """A file of weights that cannot be read; the message names it."""


class MissingWeightsError(ValueError):
    """A checkpoint that does not hold a model's parameters; the message names some of them."""


def check_loaded(name: str, info: Mapping[str, Any], *, shapes: bool = True) -> None:
    """Check that a model was loaded whole.

    Args:
        name: of the checkpoint, for the message.
        info: transformers' `loading_info`: `missing_keys`, and `mismatched_keys` with name and both shapes.
        shapes: whether parameters of another shape are refused as well.

    Raises:
        MissingWeightsError: parameters were missing, or had another shape.
    """
    missing = sorted(info.get("missing_keys") or ())
    if missing:
        raise MissingWeightsError(f"{name}: the checkpoint lacks {len(missing)} parameters: {_shown(missing)}")
    other = sorted(info.get("mismatched_keys") or ()) if shapes else ()
    if other:
        parameter, stored, wanted = other[0]
        raise MissingWeightsError(
            f"{name}: {len(other)} parameters have another shape in the checkpoint: {parameter} is {tuple(stored)} "
            f"there, {tuple(wanted)} by the config"
        )


def stored_shapes(folder: str) -> dict[str, tuple[int, ...]] | None:
    """Shapes of the tensors of a checkpoint by name; None where it has other files than safetensors.

    Raises:
        WeightFileError: no file of weights, one that an index names and is not there, or one that is torn.
    """
    paths = _files(Path(folder))
    if paths is None:
        return None
    shapes: dict[str, tuple[int, ...]] = {}
    for path in paths:
        stat = path.stat()
        shapes.update(_header(str(path), stat.st_size, stat.st_mtime_ns))
    return shapes


def parameter_count(folder: str) -> int | None:
    """Number of parameters of a checkpoint; None where there is no such folder, or it has other files."""
    try:
        shapes = stored_shapes(folder)
    except (WeightFileError, OSError):
        return None
    return None if shapes is None else sum(prod(shape) for shape in shapes.values())


def shape_problem(stored: Mapping[str, tuple[int, ...]], model: Mapping[str, tuple[int, ...]]) -> str | None:
    """What is wrong with the stored tensors of a model, or None; `model` has the names that it needs.

    >>> shape_problem({"a.0.w": (2, 2)}, {"a.0.w": (2, 2), "a.1.w": (2, 2)})
    'the checkpoint lacks 1 of 2 parameters: a.1.w'
    """
    missing = [name for name in model if name not in stored]
    if missing:
        return f"the checkpoint lacks {len(missing)} of {len(model)} parameters: {_shown(missing)}"
    other = [name for name in model if tuple(stored[name]) != tuple(model[name])]
    if other:
        name = other[0]
        return (
            f"{len(other)} of {len(model)} parameters have another shape in the checkpoint: {name} is "
            f"{tuple(stored[name])} there, {tuple(model[name])} by the config"
        )
    patterns = {_pattern(name) for name in model}
    further = [name for name in stored if name not in model and _pattern(name) in patterns]
    if further:
        return (
            f"the checkpoint holds {len(further)} parameters of further layers than the config has: {_shown(further)}"
        )
    return None


def _shown(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")


def _pattern(name: str) -> str:
    return re.sub(r"\d+", "#", name)


def _files(folder: Path) -> list[Path] | None:
    index = folder / INDEX
    if index.is_file():
        try:
            names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise WeightFileError(f"{index} is no index of weights: {error}") from None
        lost = [name for name in names if not (folder / name).is_file()]
        if lost:
            raise WeightFileError(f"{INDEX} names {_shown(lost)}, which is not there")
        return [folder / name for name in names]
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    if any(folder.glob("*.bin")) or any(folder.glob("*.safetensors")):
        return None
    raise WeightFileError(f"the folder holds no weights ({SINGLE}, or {INDEX} and its files)")


@lru_cache(maxsize=256)
def _header(path: str, size: int, modified: int) -> dict[str, tuple[int, ...]]:
    """Shapes of a safetensors file; size and time are of the file, so that a new one is read again."""
    with open(path, "rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= length <= min(LARGEST_HEADER, size - 8):
            raise WeightFileError(f"{path} is no safetensors file, or it is torn ({size} bytes)")
        text = file.read(length)
    try:
        entries: dict[str, Any] = json.loads(text)
        entries.pop("__metadata__", None)
        ends = [entry["data_offsets"][1] for entry in entries.values()]
        shapes = {name: tuple(entry["shape"]) for name, entry in entries.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightFileError(f"{path} is no safetensors file: {error}") from None
    needed = 8 + length + max(ends, default=0)
    if needed > size:
        raise WeightFileError(f"{path} is torn: it holds {size} bytes of {needed}")
    return shapes
