"""Where the golden numbers lie: the folder named by GOLDEN_DIR, else tests/golden; its README describes the form."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

GOLDEN_DIR = Path(os.environ.get("GOLDEN_DIR") or Path(__file__).parent / "golden").resolve()
FILES = {
    "llada_tiny": (
        "config.json",
        "model.safetensors",
        "golden.safetensors",
        "decode.json",
        "decode.safetensors",
    ),
    "magvitv2": ("shapes.json", "golden.safetensors"),
    "estimators": ("meta.json", "batch.safetensors", "model.safetensors"),
}  # of each family; `estimators` holds a file for each method besides


def problem_of(folder: Path) -> str | None:
    """What keeps a folder from being one of golden numbers; None where it has a whole family and no part of one."""
    if not folder.is_dir():
        return f"no folder {folder}"
    families = [name for name in FILES if (folder / name).is_dir()]
    if not families:
        return f"{folder} holds none of {', '.join(FILES)}"
    lacking = [f"{name}/{file}" for name in families for file in FILES[name] if not (folder / name / file).is_file()]
    return f"{folder} lacks {', '.join(lacking)}" if lacking else None


def missing(*parts: str) -> str | None:
    """Why the tests of a family are skipped, or None where it is there.

    Args:
        parts: name of the family's folder, and of a method's file in `estimators`.
    """
    path = GOLDEN_DIR.joinpath(*parts)
    return None if path.exists() else f"no golden numbers at {path}"


def tolerance(expected: Tensor, at_five: float, config: Any = None) -> float:
    """Absolute tolerance for float32 numbers, which grows as their rounding does: with them, and with a model's layers
    and the square root of its width.

    Args:
        expected: the golden numbers.
        at_five: tolerance where they reach 5 at most, of a model of three layers of width 48 or a smaller one.
        config: the model's, where its size counts.
    """
    size = 1.0 if config is None else config.num_hidden_layers * config.hidden_size**0.5 / (3 * 48**0.5)
    return at_five * max(1.0, expected.abs().max().item() / 5) * max(1.0, size)


def golden_runs(family: str) -> list[Any]:
    """The runs of a published sampler, as parameters of a test: (name, settings).

    `decode.json` holds settings common to all runs and a list `runs` of those that differ. The outputs of entry 2 are
    called `run2` in `decode.safetensors`.

    Args:
        family: name of the family's folder.
    """
    if reason := missing(family):
        return [pytest.param("run", {}, marks=pytest.mark.skip(reason=reason))]
    file = GOLDEN_DIR / family / "decode.json"
    common = json.loads(file.read_text())
    runs = common.pop("runs")
    if not runs:
        raise ValueError(f"{file} names no runs")
    return [pytest.param(f"run{n}", common | run, id=f"run{n}") for n, run in enumerate(runs)]
