"""`python -m maskgrpo_plugin.learning_curve`: a CSV and a PNG of the curves in verl's JSONL metrics."""

import argparse
import csv
import json
import sys
from pathlib import Path
from typing import Any

DEFAULT_METRICS = ("val-core/", "critic/score/mean", "actor/kl_loss", "actor/pg_clipfrac")


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Rows of verl's `file` logger.

    Args:
        path: JSONL with `step` and `data` in each line.

    Returns:
        One dict a line: `step` and every metric that is a number.

    Raises:
        ValueError: a line that is not of that form, named by its number.
    """
    rows = []
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        try:
            record = json.loads(line)
            numbers = {k: v for k, v in record["data"].items() if isinstance(v, int | float)}
            rows.append({"step": int(record["step"]), **numbers})
        except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path}, line {number}: not a line of verl's file logger") from error
    return rows


def series(rows: list[dict[str, Any]], metric: str) -> list[tuple[int, float]]:
    """(step, value) of one metric, in order, where it was logged."""
    return [(row["step"], float(row[metric])) for row in rows if metric in row]


def choose_metrics(rows: list[dict[str, Any]], wanted: tuple[str, ...]) -> list[str]:
    """Names of the logged metrics that equal, or start with, one of `wanted`; in that order."""
    names = list(dict.fromkeys(name for row in rows for name in row if name != "step"))
    return [name for prefix in wanted for name in names if name == prefix or name.startswith(prefix)]


def write_csv(rows: list[dict[str, Any]], metrics: list[str], path: Path) -> None:
    """Write the step and the metrics, a row a step; a metric not logged at a step is empty."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["step", *metrics], extrasaction="ignore", restval="")
        writer.writeheader()
        writer.writerows(rows)


def write_png(runs: dict[str, list[dict[str, Any]]], metrics: list[str], path: Path) -> None:
    """Draw one panel a metric, one line a run."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(metrics), figsize=(5 * len(metrics), 3.6), squeeze=False)
    for axis, metric in zip(axes[0], metrics, strict=True):
        for name, rows in runs.items():
            points = series(rows, metric)
            if points:
                axis.plot(*zip(*points, strict=True), marker="o", markersize=2, label=name)
        axis.set_title(metric, fontsize=9)
        axis.set_xlabel("training step")
        axis.grid(alpha=0.3)
        if len(runs) > 1:
            axis.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def main(argv: list[str] | None = None) -> int:
    """Command line; returns 0, or 2 with one line on stderr where the log cannot be used."""
    parser = argparse.ArgumentParser(prog="python -m maskgrpo_plugin.learning_curve", description=__doc__)
    parser.add_argument("logs", nargs="+", type=Path, help="JSONL files of verl's `file` logger, one a run")
    parser.add_argument("--output", type=Path, required=True, help="folder for learning_curve.csv and .png")
    parser.add_argument("--metric", action="append", help="metric name or prefix; may be given again")
    options = parser.parse_args(argv)
    try:
        runs = {log.stem: read_metrics(log) for log in options.logs}
    except (OSError, ValueError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    rows = [row for run in runs.values() for row in run]
    metrics = choose_metrics(rows, tuple(options.metric or DEFAULT_METRICS))
    if not metrics:
        sys.stderr.write("none of the metrics is in the logs\n")
        return 2
    options.output.mkdir(parents=True, exist_ok=True)
    for name, run in runs.items():
        suffix = f"_{name}" if len(runs) > 1 else ""
        write_csv(run, metrics, options.output / f"learning_curve{suffix}.csv")
    write_png(runs, metrics, options.output / "learning_curve.png")
    for name, run in runs.items():
        for metric in (m for m in metrics if m.startswith("val-core/")):
            points = series(run, metric)
            if points:
                sys.stdout.write(
                    f"{name}: {metric} {points[0][1]:.3f} at step {points[0][0]}, "
                    f"{points[-1][1]:.3f} at step {points[-1][0]}\n"
                )
    sys.stdout.write(f"wrote {options.output / 'learning_curve.png'}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
