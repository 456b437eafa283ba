"""`python -m maskgrpo_plugin.data.prepare`: write a data set as verl's train.parquet and validation.parquet."""

import argparse
import functools
import logging
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from maskgrpo_plugin.arguments import positive
from maskgrpo_plugin.data import chats, competition_math, countdown, gsm8k, programs, sudoku
from maskgrpo_plugin.data.arithmetic import draw_sums
from maskgrpo_plugin.data.chat_files import read_chats, split_rows
from maskgrpo_plugin.data.faults import SKIP_OPTION
from maskgrpo_plugin.data.records import DataError, HubSource, read_file, read_hub
from maskgrpo_plugin.data.rows import Convert, Row, make_rows, verl_row, write_parquet
from maskgrpo_plugin.data.templates import DEFAULT_STYLE, STYLES, TaskTemplates, Template
from maskgrpo_plugin.errors import OptionError

logger = logging.getLogger(__name__)

SPLITS = ("train", "validation")
FILE_OPTION = {"train": "--train", "validation": "--test"}


@dataclass(frozen=True)
class DataSet:
    """A data set of problems, recorded or drawn at random.

    Args:
        help: one line for the command's help.
        fields: fields of a record of a local file, for the help.
        convert: function from a record of a local file to a row.
        hub: place of each split on the hub; a split without one is not written.
        hub_convert: the same as `convert` for a record of the hub, where that differs.
        split_train: function from a record of one source that holds both splits to a row, or None for a record of the
            other split; used where only `--train`, or the hub's one split, is there.
        templates: prompts in several styles; None for a data set with one prompt. With them `convert` and `hub_convert`
            take the keyword `template`.
        draw: source of random records for `convert`, without end, called as draw(held_out=…, seed=…); None for
            recorded problems alone.
        key: name of a row's problem, so that none is in both splits; needed with `draw`.
    """

    help: str
    fields: str
    convert: Callable[..., Row | None]
    hub: Mapping[str, HubSource] = field(default_factory=dict)
    hub_convert: Callable[..., Row | None] | None = None
    split_train: Convert | None = None
    templates: TaskTemplates | None = None
    draw: Callable[..., Iterator[dict[str, Any]]] | None = None
    key: Callable[[Row], Any] = repr


DATA_SETS: dict[str, DataSet] = {
    "gsm8k": DataSet(
        "grade-school word problems",
        "question and answer",
        gsm8k.gsm8k_row,
        gsm8k.HUB,
        templates=gsm8k.TEMPLATES,
    ),
    "math": DataSet(
        "competition problems; validation is MATH-500",
        "problem and answer or solution",
        competition_math.math_row,
        competition_math.HUB,
        templates=competition_math.TEMPLATES,
    ),
    "countdown": DataSet(
        "reach a target with given numbers",
        "input and output, or nums and target",
        countdown.countdown_row,
        countdown.HUB,
        countdown.hub_row,
        templates=countdown.TEMPLATES,
        draw=countdown.draw_records,
        key=countdown.problem_key,
    ),
    "sudoku": DataSet(
        "4x4 Sudoku",
        "Puzzle and Solution",
        sudoku.sudoku_row,
        templates=sudoku.TEMPLATES,
        draw=sudoku.draw_records,
        key=sudoku.problem_key,
    ),
    "acecode": DataSet(
        "programming problems to train on",
        "question and test_cases",
        programs.acecode_file_row,
        {"train": programs.ACECODE_HUB},
        split_train=programs.acecode_row,
    ),
    "apps": DataSet(
        "programs that read input, and functions, with pairs of input and output; TACO has the same form",
        "question and input_output",
        programs.apps_row,
        programs.APPS_HUB,
    ),
    "livecodebench": DataSet(
        "recent contest problems, for validation",
        "question_content, public_test_cases, private_test_cases and metadata",
        programs.livecodebench_row,
        programs.LIVECODEBENCH_HUB,
    ),
    "mbpp": DataSet(
        "basic programming problems; one file holds both splits, told apart by task_id",
        "text, test_list and task_id",
        programs.mbpp_row,
        programs.MBPP_HUB,
        split_train=programs.mbpp_row,
    ),
    "humaneval": DataSet(
        "functions to complete, for validation only",
        "prompt, test and entry_point",
        programs.humaneval_row,
        programs.HUMANEVAL_HUB,
    ),
}


def with_template(data_set: DataSet, options: argparse.Namespace) -> DataSet:
    """The data set with the prompt that `--style` or `--template` asks for.

    Raises:
        DataError: a template file that cannot be used.
    """
    if data_set.templates is None:
        return data_set
    template = _template(data_set.templates, options)
    hub_convert = data_set.hub_convert
    return replace(
        data_set,
        convert=functools.partial(data_set.convert, template=template),
        hub_convert=functools.partial(hub_convert, template=template) if hub_convert else None,
    )


def recorded_rows(data_set: DataSet, options: argparse.Namespace) -> dict[str, list[Row]]:
    """Rows of each split from the files that `options` name or, where they name none, from the hub.

    Raises:
        DataError: nothing usable, or, with `options.strict`, a malformed record.
    """
    limits = {"max_rows": options.max_rows, "strict": options.strict}
    return {
        split: make_rows(records, split, convert, **limits)
        for split, (records, convert) in _sources(data_set, options).items()
    }


def drawn_rows(
    data_set: DataSet, draw: Callable[..., Iterator[dict[str, Any]]], options: argparse.Namespace
) -> dict[str, list[Row]]:
    """Rows of each split from the file that `options` name for it, else from the hub with `options.hub`, else drawn;
    training rows whose problem is in validation too are left out.

    Args:
        data_set: the data set.
        draw: its `draw`.
        options: the command's.

    Raises:
        DataError: nothing usable, or, with `options.strict`, a malformed record.
    """
    wanted = {"train": options.train_rows, "validation": options.validation_rows}
    limits = {"max_rows": options.max_rows, "strict": options.strict}
    rows: dict[str, list[Row]] = {}
    for split in reversed(SPLITS):
        path = {"train": options.train, "validation": options.test}[split]
        taken = {data_set.key(row) for row in rows.get("validation", [])}
        if path:
            rows[split] = make_rows(read_file(path), split, data_set.convert, **limits)
        elif options.hub and split in data_set.hub:
            convert = data_set.hub_convert or data_set.convert
            rows[split] = make_rows(read_hub(data_set.hub[split]), split, convert, **limits)
        else:
            drawn = draw(held_out=split == "validation", seed=options.seed)
            rows[split] = _take(drawn, wanted[split], split, data_set, taken)
        if split == "train":
            rows[split] = _without(rows[split], taken, data_set)
    return {split: rows[split] for split in SPLITS}


def arithmetic_rows(digits: int, rows: int, split: str, *, seed: int, carry_share: float | None = None) -> list[Row]:
    """Rows `a+b=` with their sums. `train` and `validation` share no sum, not even with its operands swapped.

    Raises:
        ValueError: there are not so many sums; see `draw_sums`.
    """
    pairs = draw_sums(digits, rows, held_out=split == "validation", seed=seed, carry_share=carry_share)
    return [
        verl_row(
            data_source="arithmetic",
            task="arithmetic",
            content=f"{a}+{b}=",
            ground_truth=str(a + b),
            split=split,
            index=index,
        )
        for index, (a, b) in enumerate(pairs)
    ]


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status: 0, or 1 where the data cannot be used."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s: %(message)s")
    options = _parser().parse_args(arguments)
    try:
        splits = options.build(options)
        for split, rows in splits.items():
            path = options.output_dir / f"{split}.parquet"
            write_parquet(rows, path)
            sys.stdout.write(f"{path}: {len(rows)} rows\n")
    except (DataError, ValueError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    return 0


def _sources(data_set: DataSet, options: argparse.Namespace) -> dict[str, tuple[Iterable[tuple[str, Any]], Convert]]:
    """Records and their converter for each split that there is."""
    given = {"train": options.train, "validation": options.test}
    files = {split: path for split, path in given.items() if path}
    if data_set.split_train and not options.test:
        if files:
            return {split: (read_file(options.train), data_set.split_train) for split in SPLITS}
        if len(data_set.hub) == 1:
            return {split: (read_hub(data_set.hub["train"]), data_set.split_train) for split in SPLITS}
    if not files:
        convert = data_set.hub_convert or data_set.convert
        return {split: (read_hub(source), convert) for split, source in data_set.hub.items()}
    for split in SPLITS:
        if split not in files:
            logger.warning("no file for %s (%s), so %s.parquet is not written", split, FILE_OPTION[split], split)
    return {split: (read_file(path), data_set.convert) for split, path in files.items()}


def _take(records: Iterator[dict[str, Any]], count: int, split: str, data_set: DataSet, taken: set[Any]) -> list[Row]:
    """The first `count` rows of drawn records whose problem is not `taken`."""
    rows: list[Row] = []
    for record in records:
        row = data_set.convert(record, split, len(rows))
        if row is not None and data_set.key(row) not in taken:
            rows.append(row)
        if len(rows) == count:
            break
    return rows


def _without(rows: list[Row], taken: set[Any], data_set: DataSet) -> list[Row]:
    """`rows` without those whose problem is `taken`.

    Raises:
        DataError: none is left.
    """
    kept = [row for row in rows if data_set.key(row) not in taken]
    if len(kept) < len(rows):
        logger.warning("train: %d rows left out that are in validation too", len(rows) - len(kept))
    if not kept:
        raise DataError("every training problem is in validation too")
    return kept


def _template(templates: TaskTemplates, options: argparse.Namespace) -> Template:
    return templates.read(options.template) if options.template else templates.styled(options.style)


def _build(data_set: DataSet, options: argparse.Namespace) -> dict[str, list[Row]]:
    data_set = with_template(data_set, options)
    return drawn_rows(data_set, data_set.draw, options) if data_set.draw else recorded_rows(data_set, options)


def _build_arithmetic(options: argparse.Namespace) -> dict[str, list[Row]]:
    wanted = {"train": options.train_rows, "validation": options.validation_rows}
    return {
        split: arithmetic_rows(options.digits, rows, split, seed=options.seed, carry_share=options.carry_share)
        for split, rows in wanted.items()
    }


def _build_chat(options: argparse.Namespace) -> dict[str, list[Row]]:
    template = _template(chats.TEMPLATES, options)
    settings = {"answer_form": options.answer_form, "template": template, "skip_bad": options.skip_bad}
    train = read_chats(options.train, **settings)
    if options.test:
        return {"train": train, "validation": read_chats(options.test, **settings)}
    splits = split_rows(train, options.validation_share, options.seed)
    old = options.output_dir / "validation.parquet"
    if "validation" not in splits and old.exists():
        raise OptionError("--validation-share", 0, f"{old} of an earlier call would stay; remove it")
    return splits


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m maskgrpo_plugin.data.prepare", description=__doc__)
    names = [*DATA_SETS, "arithmetic", "chat"]
    commands = parser.add_subparsers(required=True, metavar="{" + ",".join(names) + "}")
    for name, data_set in DATA_SETS.items():
        _add_recorded(commands.add_parser(name, help=data_set.help), data_set)

    arithmetic = commands.add_parser("arithmetic", help="sums such as 12+34=")
    arithmetic.add_argument("--digits", type=positive, default=2, help="digits of each operand (default 2)")
    arithmetic.add_argument("--carry-share", type=float, help="share of sums whose ones carry; default: as they come")
    arithmetic.set_defaults(build=_build_arithmetic)
    _add_drawn(arithmetic, train_rows=6000)
    _add_chat(commands.add_parser("chat", help="conversations to learn from (SFT)"))

    for command in commands.choices.values():
        command.add_argument("--output-dir", type=Path, required=True)
    return parser


def _add_recorded(command: argparse.ArgumentParser, data_set: DataSet) -> None:
    names = ", ".join(source.name for source in data_set.hub.values())
    otherwise = "drawn at random" if data_set.draw else f"the hub: {names}"
    help = f"JSON Lines, .jsonl.gz or CSV with {data_set.fields}; without files: {otherwise}"
    command.add_argument("--train", type=Path, help=help)
    command.add_argument("--test", type=Path, help="the same for validation.parquet")
    command.add_argument("--max-rows", type=positive, help="the first so many rows of each file")
    command.add_argument("--strict", action="store_true", help="refuse malformed rows instead of skipping them")
    if data_set.templates:
        _add_prompt(command, data_set.templates)
    if data_set.draw:
        _add_drawn(command, train_rows=10_000)
        command.set_defaults(hub=False)
        if data_set.hub:
            command.add_argument("--hub", action="store_true", help=f"train on {names} where --train names no file")
    command.set_defaults(build=functools.partial(_build, data_set))


def _add_chat(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--train", type=Path, required=True, help=f".jsonl, .json or .parquet; each record has {chats.FORMS}"
    )
    command.add_argument("--test", type=Path, help="the same for validation.parquet")
    command.add_argument(
        "--answer-form",
        choices=chats.ANSWER_FORMS,
        default="plain",
        help="what the answer to a question is: its text alone (plain, the default), or s1K's thinking and attempt in "
        "<reasoning> and <answer>",
    )
    command.add_argument(
        "--validation-share",
        type=float,
        default=0.01,
        help="held out of --train without --test (default 0.01; 0: none)",
    )
    command.add_argument("--seed", type=int, default=0, help="of the rows that are held out")
    command.add_argument(SKIP_OPTION, action="store_true", help="leave out unusable records instead of refusing them")
    _add_prompt(command, chats.TEMPLATES)
    command.set_defaults(build=_build_chat)


def _add_prompt(command: argparse.ArgumentParser, templates: TaskTemplates) -> None:
    prompt = command.add_mutually_exclusive_group()
    prompt.add_argument(
        "--style",
        choices=STYLES,
        default=DEFAULT_STYLE,
        help=f"prompts of the project ({DEFAULT_STYLE}, the default) or in the form of the published ones",
    )
    placeholders = " and ".join(f"{{{name}}}" for name in templates.names)
    prompt.add_argument("--template", type=Path, help=f"file with a prompt of your own, with {placeholders}")


def _add_drawn(command: argparse.ArgumentParser, *, train_rows: int) -> None:
    command.add_argument("--train-rows", type=positive, default=train_rows, help=f"drawn (default {train_rows})")
    command.add_argument("--validation-rows", type=positive, default=512, help="drawn (default 512)")
    command.add_argument("--seed", type=int, default=0)


if __name__ == "__main__":
    sys.exit(main())
