"""Write the comparison's tables, and its figure, from the lines of train.py.

  python examples/methods/table.py runs/methods/cells.jsonl --figure runs/methods/figure.png

A cell counts where it has come to the last step. Intervals are Wilson's at 95 % for the mean over seeds, with the
validation rows as trials: the seeds answer the same rows, so that they add no trials.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import mean

from cells import ABLATION, BEYOND, RATES, TASKS, Cell, best, end_with, is_done, methods, read_lines, search_of

from maskgrpo_plugin.errors import OptionError
from maskgrpo_plugin.evaluation.statistics import wilson_interval

Cells = dict[Cell, list[dict]]
PANELS = {"rollouts": "rollouts", "passes": "forward passes of training and sampling", "seconds": "seconds"}
HEADER = ["method", "learning rate", "seeds", "start", "accuracy", "95 % interval", "by seed"]
COSTS = ["passes per completion: new, old, reference", "seconds"]


def main(arguments: list[str] | None = None) -> int:
    """Write the tables to standard output; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lines", type=Path, help="what train.py wrote")
    parser.add_argument("--steps", type=int, default=32, help="of a cell")
    parser.add_argument("--search-steps", type=int, default=16, help="of a cell of the search")
    parser.add_argument("--seeds", type=int, default=3, help="that a row should have")
    parser.add_argument("--figure", type=Path, help="file of the figure; default: none")
    options = parser.parse_args(arguments)
    try:
        everything = read_lines(options.lines)
    except OptionError as error:
        return end_with(error)
    found = {cell: rows for cell, rows in everything.items() if not cell.search}
    tasks = [task for task in TASKS if any(cell.task == task for cell in found)]
    for task in tasks:
        done = {c: rows for c, rows in found.items() if c.task == task and is_done(found, c, options.steps)}
        sys.stdout.write(f"### {task}\n\n{method_table(done, options.seeds)}\n{ablation_table(done, options.seeds)}\n")
    if len(found) < len(everything):
        sys.stdout.write(f"### learning rates\n\n{search_table(everything, options.search_steps)}\n")
    if options.figure and tasks:
        draw(found, tasks, options.figure)
    return 0


def method_table(done: Cells, seeds: int) -> str:
    """A row per method and learning rate, the best first, and below them the methods without a finished cell."""
    by_run: dict[tuple[str, float], list[list[dict]]] = {}
    for cell, rows in done.items():
        by_run.setdefault((cell.method, cell.rate), []).append(rows)
    ranked = sorted(by_run.items(), key=lambda run: -mean(rows[-1]["accuracy"] for rows in run[1]))
    table = [[method, f"{rate:g}", *accuracies(runs, seeds), *costs(runs)] for (method, rate), runs in ranked]
    absent = sorted(set(methods()) - {method for method, _ in by_run})
    rest = f"\nNot done: {', '.join(absent)}.\n" if absent else ""
    return markdown([*HEADER, *COSTS], table) + rest


def ablation_table(done: Cells, seeds: int) -> str:
    """MaskGRPO's ablation beside the paper's, whose accuracies are of GSM8K."""
    table = []
    for row, (method, published) in ABLATION.items():
        runs = [rows for cell, rows in done.items() if cell.method == method]
        table.append([row, *(accuracies(runs, seeds) if runs else [f"0 of {seeds}", *[""] * 4]), f"{published}"])
    return markdown(["ablation", *HEADER[2:], "paper, GSM8K"], table)


def search_table(found: Cells, steps: int) -> str:
    """A row per method: its accuracy at the end of the search at each learning rate, the best one in bold."""
    rates = sorted({*RATES, *BEYOND.values()})
    table = []
    for method in sorted({cell.method for cell in found if cell.search}):
        done = search_of(found, method, steps)
        values = {rate: f"{accuracy:.3f}" for rate, accuracy in done.items()}
        if done:
            values[best(done)] = f"**{values[best(done)]}**"
        table.append([method, *(values.get(rate, "") for rate in rates)])
    return markdown(["method", *(f"{rate:g}" for rate in rates)], table)


def accuracies(runs: Sequence[list[dict]], seeds: int) -> list[str]:
    """Seeds, accuracy at the start and at the end, the interval of the latter, and each seed's."""
    ends = [rows[-1] for rows in runs]
    reached = mean(end["accuracy"] for end in ends)
    low, high = wilson_interval(reached, ends[0]["rows"])
    start = mean(rows[0]["accuracy"] for rows in runs)
    by_seed = ", ".join(f"{end['accuracy']:.3f}" for end in sorted(ends, key=lambda end: end["seed"]))
    return [f"{len(runs)} of {seeds}", f"{start:.3f}", f"{reached:.3f}", f"{low:.3f} to {high:.3f}", by_seed]


def costs(runs: Sequence[list[dict]]) -> list[str]:
    """Passes per completion, and seconds of training per seed."""
    ends = [rows[-1] for rows in runs]
    passes = (mean(end[kind] / end["rollouts"] for end in ends) for kind in ("new", "old", "reference"))
    return [", ".join(f"{number:.3g}" for number in passes), f"{mean(end['seconds'] for end in ends):.0f}"]


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    return "".join(f"| {' | '.join(row)} |\n" for row in [header, ["---"] * len(header), *rows])


def passes(row: dict) -> int:
    """Forward passes of a line, those of the sampler among them."""
    return row["sampling"] + row["new"] + row["old"] + row["reference"]


def draw(found: Cells, tasks: Sequence[str], file: Path) -> None:
    """Accuracy by rollouts, by forward passes and by seconds, a row of panels per task; the mean over seeds of the
    evaluations that all of a method's seeds have.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(len(tasks), len(PANELS), figsize=(15, 4.5 * len(tasks)), squeeze=False, sharey="row")
    for of_task, task in zip(axes, tasks, strict=True):
        names = sorted({cell.method for cell in found if cell.task == task})
        for number, method in enumerate(names):
            runs = [rows for cell, rows in found.items() if (cell.task, cell.method) == (task, method)]
            points = list(zip(*runs, strict=False))
            accuracy = [mean(row["accuracy"] for row in point) for point in points]
            for axis, kind in zip(of_task, PANELS, strict=True):
                at = [mean(passes(row) if kind == "passes" else row[kind] for row in point) for point in points]
                style = ("-", "--", ":")[number // 10 % 3]
                axis.plot(at, accuracy, style, color=f"C{number % 10}", label=method, marker=".")
        of_task[0].set_ylabel(f"{task}: greedy accuracy")
        of_task[-1].legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
        for axis, (kind, label) in zip(of_task, PANELS.items(), strict=True):
            axis.set_xlabel(label)
            if kind != "rollouts":
                axis.set_xscale("symlog", linthresh=1e4 if kind == "passes" else 10)
    figure.savefig(file, dpi=110, bbox_inches="tight")
    pyplot.close(figure)


if __name__ == "__main__":
    sys.exit(main())
