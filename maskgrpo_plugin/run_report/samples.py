"""The samples of a run by step and group, from the dumps of training and validation."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from maskgrpo_plugin.run_report.metrics import finite

LONGEST = 20_000  # characters of a text that the page shows
OWN = {  # keys of a row that are no reward
    *("input", "output", "gts", "score", "step", "uid", "group", "row", "data_source", "modality", "rewards"),
    *("advantage", "length", "pieces", "reveal_step"),
}


@dataclass
class Samples:
    """The samples of one kind.

    Attributes:
        groups: dictionaries `kind`, `step`, `prompt`, `truth`, `source`, `row` and `samples`, a list of `answer`,
            `score`, `rewards` by name, `advantage`, `length`, `image` (whether an image was asked for), and of texts
            `pieces` and `reveal` where the dump has them.
        notes: what was left out.
    """

    groups: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def read_samples(folder: Path, kind: str, most: int, started: float = 0.0) -> Samples:
    """The samples of a folder with one `<step>.jsonl` per step.

    Args:
        folder: of the dumps.
        kind: `training` or `validation`.
        most: samples that are read; of a run with more, those of evenly chosen steps.
        started: files last written before it, in seconds since 1970, are of another run and left out.
    """
    found = Samples()
    files = _files(folder, started, found.notes)
    chosen = evenly_chosen([(step, file) for step, file, _ in files], [count for *_, count in files], most)
    if len(chosen) < len(files):
        found.notes.append(f"{kind} samples of {len(chosen)} of {len(files)} steps are shown")
    for step, file in chosen:
        _read(file, step, kind, most, found)
    return found


def evenly_chosen(items: list[Any], counts: list[int], most: int) -> list[Any]:
    """Items, evenly spread with the first and the last among them, whose counts come to at most `most`; one at least.

    With five items of 10 and most 30: the first, the third and the fifth.
    """
    if sum(counts) <= most or len(items) < 2:
        return items
    kept = max(1, min(len(items), most // max(1, *counts)))
    if kept == 1:
        return items[-1:]
    return [items[round(n * (len(items) - 1) / (kept - 1))] for n in range(kept)]


def _files(folder: Path, started: float, notes: list[str]) -> list[tuple[int, Path, int]]:
    """(step, file, rows) by step."""
    files, older = [], 0
    for path in folder.glob("*.jsonl"):
        if re.fullmatch(r"\d+", path.stem) is None:
            continue
        if path.stat().st_mtime < started:
            older += 1
            continue
        with path.open("rb") as lines:
            files.append((int(path.stem), path, sum(1 for _ in lines)))
    if older:
        notes.append(f"{older} files in {folder.name} are older than the run and were left out")
    return sorted(files)


def _read(path: Path, step: int, kind: str, most: int, found: Samples) -> None:
    groups: dict[str, dict[str, Any]] = {}
    lines = [line for line in path.read_text(encoding="utf-8", errors="replace").split("\n") if line]
    if len(lines) > most:
        found.notes.append(f"{path.parent.name}/{path.name}: {most} of {len(lines)} samples are shown")
    for number, line in enumerate(lines[:most], start=1):
        try:
            row = json.loads(line)
            if not isinstance(row, dict):
                raise ValueError("no object")
        except ValueError:
            found.notes.append(f"{path.parent.name}/{path.name}: line {number} cannot be read; it was left out")
            continue
        name = _group_name(row)
        if name not in groups:
            groups[name] = {
                "kind": kind,
                "step": step,
                "prompt": _text(row.get("input")),
                "truth": _text(row.get("gts")),
                "source": _text(row.get("data_source")),
                "row": row["row"] if isinstance(row.get("row"), int) else None,
                "samples": [],
            }
        groups[name]["samples"].append(_sample(row))
    found.groups += groups.values()


def _group_name(row: Mapping[str, Any]) -> str:
    if "group" in row:
        return f"group {row['group']}"
    if "uid" in row:
        return f"uid {str(row['uid']).rsplit('_', 2)[0]}"
    return f"prompt {row.get('input')}"


def _sample(row: Mapping[str, Any]) -> dict[str, Any]:
    rewards = {str(name): value for name, value in row.items() if name not in OWN}
    if isinstance(row.get("rewards"), dict):
        rewards |= row["rewards"]
    told: dict[str, Any] = {
        "answer": _text(row.get("output")),
        "score": finite(row.get("score")),
        "rewards": {str(name): _reward(value) for name, value in rewards.items() if value is not None},
        "advantage": finite(row.get("advantage")),
        "length": finite(row.get("length")),
    }
    if row.get("modality") == "t2i":
        told["image"] = True
    pieces, reveal = row.get("pieces"), row.get("reveal_step")
    if isinstance(pieces, list):
        told["pieces"] = [str(piece) for piece in pieces]
        if isinstance(reveal, list) and len(reveal) == len(pieces) and all(type(n) is int for n in reveal):
            told["reveal"] = reveal
    return told


def _reward(value: Any) -> Any:
    if isinstance(value, bool):
        return float(value)
    if isinstance(value, int | float):
        number = finite(value)
        return "not finite" if number is None else number
    return _text(value)


def _text(value: Any) -> str:
    if value is None:
        return ""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}… ({len(text)} characters)"
