"""Train a small model with a method, in one process without Ray; every evaluation is a line of JSON.

  python examples/methods/train.py --method espo --seed 0 --lr 1e-4 --output runs/methods/cells.jsonl
  python examples/methods/train.py --search --minutes 30 --output runs/methods/cells.jsonl
  python examples/methods/train.py --seed 0 1 2 --minutes 30 --output runs/methods/cells.jsonl

Cells that the output holds are left out, and one that was cut short goes on from its last evaluation. Without --lr a
method's learning rate is that of its search. Further arguments are Hydra overrides.
"""

import json
import sys
import time
from argparse import RawDescriptionHelpFormatter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from cells import TASKS, Cell, end_with, methods, missing, overrides, read_lines, search_cells, searched_rates
from harness import Counts, Run, batches, places, read_config, read_rows
from omegaconf import open_dict

from maskgrpo_plugin.arguments import CommandParser, positive
from maskgrpo_plugin.errors import OptionError

HELD_OUT = 256  # training rows that the search is judged by, and does not train on
SEARCH_SEED = 100


def main(arguments: list[str] | None = None) -> int:
    """Run the cells that are asked for and not done; returns the exit status."""
    options = make_parser().parse_args(arguments)
    try:
        return train_cells(options)
    except OptionError as error:
        return end_with(error)


def make_parser() -> CommandParser:
    """The command's options."""
    parser = CommandParser(
        prog="python examples/methods/train.py", description=__doc__, formatter_class=RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="Hydra overrides, such as data.train_batch_size=4"
    )
    parser.add_argument("--method", nargs="+", help="files of configs/method, or variants; default: all that fit")
    parser.add_argument("--seed", type=int, nargs="+", default=[0])
    parser.add_argument("--task", choices=TASKS, default="sums", help="default sums")
    parser.add_argument(
        "--config", default="quickstart", help="that the task and the method change; default quickstart"
    )
    parser.add_argument("--model", default="runs/quickstart/model", help="start model; {seed} stands for the seed")
    parser.add_argument("--data", default="runs/quickstart/data", help="folder of its rows; likewise")
    parser.add_argument("--output", type=Path, required=True, help="file of JSON lines, which is added to")
    parser.add_argument("--lr", type=float, help="learning rate; default: that of the search in --output")
    parser.add_argument("--search", action="store_true", help="the learning-rate search, in place of the seeds")
    parser.add_argument("--steps", type=positive, default=32)
    parser.add_argument("--search-steps", type=positive, default=16)
    parser.add_argument("--every", type=positive, default=8, help="steps between evaluations")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="no further step after so long")
    return parser


def train_cells(options: Any) -> int:
    """See `main`."""
    end = time.monotonic() + 60 * options.minutes
    steps = options.search_steps if options.search else options.steps
    while cells := missing_cells(options, steps):
        if time.monotonic() >= end or not train_cell(cells[0], options, steps, end):
            break
    return 0


def missing_cells(options: Any, steps: int) -> list[Cell]:
    """The cells that are asked for and not done; of a search, those that are known by now."""
    found = read_lines(options.output)
    return missing(found, asked_cells(options, found), steps)


def asked_cells(options: Any, found: dict[Cell, list[dict]]) -> list[Cell]:
    """The cells of the command line, done or not.

    Args:
        options: the command's.
        found: the lines of its output, see `read_lines`.

    Raises:
        OptionError: a method that has no learning rate.
    """
    names = options.method or methods()
    for name in names:
        overrides(name)
    if options.search:
        return search_cells(found, names, SEARCH_SEED, options.search_steps)
    rates = searched_rates(found, options.search_steps)
    if options.lr is None and (unknown := [name for name in names if name not in rates]):
        raise OptionError("--lr", None, f"no search of {', '.join(unknown)} in --output; run --search, or give a rate")
    return [
        Cell(options.task, name, seed, options.lr if options.lr is not None else rates[name])
        for seed in options.seed
        for name in names
    ]


def make_run(cell: Cell, options: Any) -> Run:
    """A cell's run at its first step. An estimator's blocks are the sampler's, as in the published settings."""
    model, data = (text.format(seed=cell.seed) for text in (options.model, options.data))
    task = [
        *TASKS[cell.task],
        *places(model, data),
        f"algorithm.estimation.seed={cell.seed}",
    ]
    method = [*overrides(cell.method), f"actor_rollout_ref.actor.optim.lr={cell.rate}"]
    evaluation = read_config(options.config, [*task, *options.overrides])
    config = read_config(options.config, [*task, *method, *options.overrides])
    blocks = evaluation.actor_rollout_ref.rollout.sampler.options.get("block_length")
    if blocks is not None and "block_length" in config.algorithm.estimation.options:
        with open_dict(config):
            config.algorithm.estimation.options.block_length = blocks
    return Run(config, evaluation, cell.seed)


def train_cell(cell: Cell, options: Any, steps: int, end: float = float("inf")) -> bool:
    """Train a cell from its last evaluation on; returns whether it came to its last step before `end`."""
    run = make_run(cell, options)
    folder = Path(options.data.format(seed=cell.seed))
    train, judged = read_rows(folder, "train"), read_rows(folder, "validation")
    if cell.search:
        if len(train) <= HELD_OUT:
            raise OptionError("--data", str(folder), f"the search needs more than {HELD_OUT} rows for training")
        train, judged = train[:-HELD_OUT], train[-HELD_OUT:]
    state = options.output.parent / "states" / f"{cell.name}.pt"
    state.parent.mkdir(parents=True, exist_ok=True)
    if state.is_file():
        load(run, state)
    numbered = batches(len(train), run.config.data.train_batch_size, cell.seed)
    for step, numbers in zip(range(steps + 1), numbered, strict=False):
        if step < run.step:
            continue
        if step % options.every == 0 or step == steps:
            evaluate(cell, run, judged, options.output)
            save(run, state)
        if step < steps:
            if time.monotonic() >= end:
                return False
            run.train([train[n] for n in numbers], numbers)
    state.unlink()
    return True


def evaluate(cell: Cell, run: Run, rows: list[dict], output: Path) -> None:
    """Add a line with the greedy accuracy on rows, and what training has cost so far."""
    line = asdict(cell) | {"step": run.step, "rows": len(rows), "accuracy": run.accuracy(rows)} | asdict(run.counts)
    with output.open("a") as file:
        file.write(json.dumps(line) + "\n")


def save(run: Run, file: Path) -> None:
    """Write what a run needs to go on; the rest of it follows from its config and seed."""
    written = file.with_suffix(".new")
    values = {"model": run.model.state_dict(), "optimizer": run.optimizer.state_dict(), "step": run.step}
    torch.save(values | {"counts": asdict(run.counts)}, written)
    written.replace(file)


def load(run: Run, file: Path) -> None:
    """Put a run where `save` left it."""
    values = torch.load(file, weights_only=True)
    run.model.load_state_dict(values["model"])
    run.optimizer.load_state_dict(values["optimizer"])
    run.step, run.counts = values["step"], Counts(**values["counts"])
    run.actor.passes = {True: run.counts.new, False: run.counts.old}
    if run.reference is not None:
        run.reference.passes[False] = run.counts.reference


if __name__ == "__main__":
    sys.exit(main())
