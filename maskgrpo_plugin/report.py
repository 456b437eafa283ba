"""`python -m maskgrpo_plugin.report`: one HTML page of training runs, their curves, samples, images and configs."""

import argparse
import logging
import sys
from pathlib import Path

from maskgrpo_plugin.arguments import CommandParser, positive
from maskgrpo_plugin.errors import OptionError
from maskgrpo_plugin.files import written_whole
from maskgrpo_plugin.run_report.find import find_runs
from maskgrpo_plugin.run_report.page import page, report_data

MOST_SAMPLES = 2000
MOST_SHEETS = 24


def make_parser() -> CommandParser:
    """The command's options."""
    parser = CommandParser(
        prog="python -m maskgrpo_plugin.report",
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "runs", nargs="+", type=Path, metavar="RUN", help="folder of one run or several, or a JSONL file of metrics"
    )
    parser.add_argument("--output", type=Path, required=True, metavar="FILE.html", help="the page; it loads nothing")
    parser.add_argument(
        "--samples", type=positive, default=MOST_SAMPLES, help="samples of training, and of validation, of each run"
    )
    parser.add_argument("--sheets", type=positive, default=MOST_SHEETS, help="contact sheets of images of each run")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status: 0, or 2 where a run or the output cannot be used."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    options = make_parser().parse_args(arguments)
    try:
        write_report(options)
    except OptionError as error:
        sys.stderr.write(f"error: {' '.join(str(error).split())}\n")
        return 2
    return 0


def write_report(options: argparse.Namespace) -> None:
    """Write the page, and say on standard output what is in it.

    Raises:
        OptionError: a path in which there is no run, or an output that cannot be written.
    """
    output: Path = options.output
    if output.is_dir() or not output.absolute().parent.is_dir():
        raise OptionError("--output", str(output), "allowed: a file in a folder that is there")
    data = report_data(find_runs(options.runs), samples=options.samples, sheets=options.sheets)
    try:
        with written_whole(output) as file:
            file.write_text(page(data), encoding="utf-8")
    except OSError as error:
        raise OptionError("--output", str(output), f"it cannot be written: {error.strerror or error}") from error
    for run in data["runs"]:
        steps = len(run["metrics"]["steps"])
        count = sum(len(group["samples"]) for group in run["groups"])
        sys.stdout.write(f"{run['name']}: {steps} steps, {count} samples, {len(run['sheets'])} contact sheets\n")
        for note in run["notes"]:
            sys.stdout.write(f"  {note}\n")
    sys.stdout.write(f"wrote {output}\n")


if __name__ == "__main__":
    sys.exit(main())
