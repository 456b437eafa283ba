"""The metrics of a run by step, from the JSONL files of verl's `file` logger."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

NOT_FINITE = "nan"  # stands in the page for a value that is no finite number
DIGITS = 7


@dataclass
class Metrics:
    """The metrics of one run.

    Attributes:
        rows: by step, in order, the values by name; None for a value that is no finite number.
        notes: what was left out.
    """

    rows: dict[int, dict[str, float | None]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def names(self) -> list[str]:
        """Of all metrics, in the order in which they were first logged."""
        return list(dict.fromkeys(name for row in self.rows.values() for name in row))

    def columns(self) -> dict[str, Any]:
        """For the page: `steps`, and by name one value per step, null where none was logged and `nan` where the value
        is no finite number."""
        values = {name: [_told(row, name) for row in self.rows.values()] for name in self.names}
        return {"steps": list(self.rows), "values": values}


def read_metrics(paths: Sequence[Path]) -> Metrics:
    """Metrics of the parts of a run; where two tell of one step, the later part counts.

    A line that cannot be read is left out and noted, such as the last one of a run that was killed.
    """
    metrics = Metrics()
    for path in paths:
        try:
            lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
        except OSError as error:
            metrics.notes.append(f"{path} cannot be read: {error.strerror or error}")
            continue
        last = len(lines) if lines[-1] else len(lines) - 1
        for number, line in enumerate(lines[:last], start=1):
            row = _row(line)
            if row is None:
                what = "the last line is torn" if number == last else f"line {number} is no line of verl's file logger"
                metrics.notes.append(f"{path.name}: {what}; it was left out")
            else:
                metrics.rows.setdefault(row[0], {}).update(row[1])
    metrics.rows = dict(sorted(metrics.rows.items()))
    return metrics


def _row(line: str) -> tuple[int, dict[str, float | None]] | None:
    try:
        record = json.loads(line)
        step, data = int(record["step"]), dict(record["data"])
    except (ValueError, KeyError, TypeError, OverflowError):
        return None
    numbers = {
        name: finite(value)
        for name, value in data.items()
        if value is None or (isinstance(value, int | float) and not isinstance(value, bool))
    }
    return step, numbers


def finite(value: Any) -> float | None:
    """A number with as many digits as a plot shows; None for one that is not finite, and for what is no number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return float(f"{number:.{DIGITS}g}") if math.isfinite(number) else None


def _told(row: dict[str, float | None], name: str) -> float | str | None:
    if name not in row:
        return None
    value = row[name]
    return NOT_FINITE if value is None else value
