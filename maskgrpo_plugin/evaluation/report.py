"""The table of an evaluation's summaries."""

from collections.abc import Mapping, Sequence
from typing import Any


def table(summaries: Sequence[Mapping[str, Any]]) -> str:
    """A text table with one line for each summary of `evaluation.statistics.summarise`.

    Columns without any number are left out; accuracy is followed by Wilson's 95 % interval. Where no task has a right
    answer, the reward's components stand in the accuracy's place.
    """
    with_accuracy = any("accuracy" in summary for summary in summaries)
    components = [] if with_accuracy else list(dict.fromkeys(name for s in summaries for name in s["reward"]))
    passes = list(dict.fromkeys(name for summary in summaries for name in summary if name.startswith("pass@")))
    columns: dict[str, list[str]] = {
        "task": [str(s["data_source"]) for s in summaries],
        "length": [str(s["length"]) for s in summaries],
        "prompts": [str(s["prompts"]) for s in summaries],
        "n": [str(s["generations"]) for s in summaries],
        "accuracy": [_number(s.get("accuracy")) for s in summaries],
        "95 %": [_interval(s) for s in summaries],
        **{name: [_number(s.get(name)) for s in summaries] for name in passes},
        "score": [_number(s["score"]) for s in summaries],
        **{name: [_number(s["reward"].get(name)) for s in summaries] for name in components},
        "failures": [str(s["failures"]) for s in summaries],
        "tokens": [_number(s["effective_tokens"], 1) for s in summaries],
        "calls/token": [_number(s["calls_per_token"]) for s in summaries],
    }
    shown = {name: cells for name, cells in columns.items() if any(cells)}
    lines = [list(shown), *map(list, zip(*shown.values(), strict=True))]
    widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
    return "\n".join("  ".join(_fit(cell, widths[n], n) for n, cell in enumerate(line)).rstrip() for line in lines)


def _fit(cell: str, width: int, column: int) -> str:
    return cell.ljust(width) if column == 0 else cell.rjust(width)


def _number(value: float | None, digits: int = 3) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _interval(summary: Mapping[str, Any]) -> str:
    if "accuracy" not in summary:
        return ""
    return f"{summary['accuracy_low']:.3f}–{summary['accuracy_high']:.3f}"
