"""What the screen shows of verl's metrics: rows of its `file` logger, read while they are written, and their lines."""

import json
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

NUMBERS = {  # label on the screen → the first of these metrics that is there
    "reward": ("critic/score/mean",),
    "accuracy": ("reward/acc",),
    "KL": ("actor/kl_loss", "actor/ppo_kl"),
    "clipped": ("actor/pg_clipfrac",),
    "lost": ("reward/lost_samples",),
    "failed": ("reward/failed_samples",),
}
ONLY_ABOVE_ZERO = ("lost", "failed")
STAGES = {
    "rollout": "timing_s/gen",
    "old": "timing_s/old_log_prob",
    "reference": "timing_s/ref",
    "update": "timing_s/update_actor",
    "sync": "timing_s/update_weights",
    "validation": "timing_s/testing",
    "checkpoint": "timing_s/save_checkpoint",
}
VALIDATION = re.compile(r"val-core/(.+)/([^/]+)/(mean@\d+)$")
MOST_VALIDATIONS = 4  # data sources in a line


class Row(NamedTuple):
    """One line of verl's `file` logger.

    Attributes:
        step: of the training, 0 for what comes before it.
        data: the metrics that are finite numbers.
    """

    step: int
    data: dict[str, float]


class MetricsFile:
    """Reads the rows that verl appends to a file which it begins anew.

    Args:
        path: the file, which need not be there yet.
        before: what `stamp` said of it before the run; it is not read as long as it is the same.
    """

    def __init__(self, path: Path, before: list[int] | None):
        self.path, self.before = path, before
        self._offset = 0

    def read(self) -> list[Row]:
        """The rows that were completed since the last call; lines of another form are passed over."""
        now = stamp(self.path)
        if now is None or now == self.before:
            return []
        self.before = None
        if now[1] < self._offset:
            self._offset = 0
        with self.path.open("rb") as file:
            file.seek(self._offset)
            lines = file.read().split(b"\n")[:-1]
        self._offset += sum(len(line) + 1 for line in lines)
        return [row for line in lines if (row := _row(line)) is not None]


def stamp(path: Path) -> list[int] | None:
    """Identity, size and time of a file, which change when it is written; None where it is not there."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return [found.st_ino, found.st_size, found.st_mtime_ns]


def _row(line: bytes) -> Row | None:
    try:
        record = json.loads(line)
        numbers = {key: float(value) for key, value in record["data"].items() if isinstance(value, int | float)}
        return Row(int(record["step"]), {key: value for key, value in numbers.items() if math.isfinite(value)})
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def step_parts(data: Mapping[str, float]) -> dict[str, str]:
    """What is shown of a training step, by label: `{"reward": "0.414", "clipped": "0.4 %", …}`."""
    parts = {}
    for label, names in NUMBERS.items():
        value = next((data[name] for name in names if name in data), None)
        if value is None or (label in ONLY_ABOVE_ZERO and value == 0):
            continue
        parts[label] = f"{100 * value:.1f} %" if label == "clipped" else f"{value:.3g}"
    seconds, tokens = data.get("timing_s/step"), data.get("perf/total_num_tokens")
    if seconds:
        parts["tokens/s"] = f"{tokens / seconds:,.0f}" if tokens else "–"
        stages = [f"{label} {data[name]:.1f}" for label, name in STAGES.items() if data.get(name, 0) >= 0.05]
        parts["step"] = f"{seconds:.1f} s" + (f" ({', '.join(stages)})" if stages else "")
    return parts


def validation_text(data: Mapping[str, float]) -> str:
    """The results of a validation in one line, such as `gsm8k acc 0.412`; empty where the row holds none."""
    found = []
    for name, value in data.items():
        if match := VALIDATION.match(name):
            found.append(f"{match[1]} {match[2]} {value:.3f}")
    more = f", and {len(found) - MOST_VALIDATIONS} more" if len(found) > MOST_VALIDATIONS else ""
    return ", ".join(found[:MOST_VALIDATIONS]) + more


def duration(seconds: float) -> str:
    """Seconds as people say them: 50 s, 12 min, 3 h 05 min."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"


def is_training(row: Row) -> bool:
    """Whether a row tells of a training step, and not of a validation alone."""
    return any(name.startswith(("critic/", "actor/", "timing_s/")) for name in row.data)


def facts_lines(facts: Mapping[str, Any], log: Path) -> list[str]:
    """What a run is, as the first lines of the screen."""
    data = [f"{facts[key]:,} {what}" for key, what in ROWS.items() if facts.get(key) is not None]
    data.append(f"{facts['prompts']} × {facts['completions']} completions per step")
    lines = [
        f"config   {facts['name']}",
        f"model    {facts['model']} ({facts['model_type']})",
        f"data     {', '.join(data)}",
        f"steps    {facts['steps'] or 'not known'}",
        f"folder   {facts['folder']}",
        f"log      {log}",
    ]
    return lines + [f"added    {override}" for override in facts.get("added", [])]


ROWS = {"train_rows": "rows to train on", "validation_rows": "for validation"}
