"""`python -m maskgrpo_plugin.data.prepare`: write a data set as verl's train.parquet and validation.parquet."""

import argparse
import json
import logging
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from maskgrpo_plugin.data.arithmetic import draw_sums
from maskgrpo_plugin.rewards.scorers.gsm8k import parse_ground_truth

logger = logging.getLogger(__name__)

GSM8K_HUB_NAME = "openai/gsm8k"
GSM8K_INSTRUCTION = (
    "Solve the problem step by step. When you are done, write the final result as one integer between <answer> and "
    "</answer>, for example <answer>42</answer>."
)


class DataError(Exception):
    """A data file that cannot be used; the message says which, where and why."""


def read_jsonl(path: str | Path) -> Iterator[tuple[str, Any]]:
    """Yield ("file:line", record) of a JSON Lines file; blank lines are passed over, unreadable ones give a DataError
    in the record's place, so that the caller decides.

    Raises:
        DataError: the file cannot be opened.
    """
    try:
        file = open(path, "rb")
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    with file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            place = f"{path}:{number}"
            try:
                yield place, json.loads(line.decode("utf-8"))
            except ValueError as error:
                yield place, DataError(f"not JSON in UTF-8 ({error})")


def read_hub(name: str, split: str) -> Iterator[tuple[str, Any]]:
    """Yield ("name[split]:row", record) of a data set of the Hugging Face hub.

    Raises:
        DataError: `datasets` is missing or the data set cannot be loaded.
    """
    try:
        from datasets import load_dataset

        data = load_dataset(name, "main", split=split)
    except Exception as error:
        raise DataError(f"cannot load {name} from the hub ({error}); give local files by --train and --test") from error
    for number, record in enumerate(data, start=1):
        yield f"{name}[{split}]:{number}", record


def gsm8k_row(record: Any, split: str, index: int) -> dict[str, Any]:
    """One row in verl's format from one GSM8K record with `question` and `answer`.

    Raises:
        DataError: a field is missing or the answer has no number after `####`.
    """
    if isinstance(record, DataError):
        raise record
    if not isinstance(record, dict):
        raise DataError(f"not an object but {type(record).__name__}")
    for key in ("question", "answer"):
        if not isinstance(record.get(key), str) or not record[key].strip():
            raise DataError(f"no text under {key!r}; it has {', '.join(map(str, record)) or 'no keys'}")
    if "####" not in record["answer"]:
        raise DataError("the answer has no '####'")
    try:
        number = parse_ground_truth(record["answer"])
    except ValueError as error:
        raise DataError("what follows '####' in the answer is not one number") from error
    return verl_row(
        data_source=GSM8K_HUB_NAME,
        task="gsm8k",
        content=f"{record['question'].strip()}\n\n{GSM8K_INSTRUCTION}",
        ground_truth=f"{number:f}",
        split=split,
        index=index,
    )


def verl_row(*, data_source: str, task: str, content: str, ground_truth: str, split: str, index: int) -> dict[str, Any]:
    """A row with the columns that verl reads: one user message, a rule-based reward, and the plugin's task name."""
    return {
        "data_source": data_source,
        "prompt": [{"role": "user", "content": content}],
        "ability": "math",
        "reward_model": {"style": "rule", "ground_truth": ground_truth},
        "extra_info": {"split": split, "index": index, "task": task},
    }


def gsm8k_rows(
    records: Iterable[tuple[str, Any]], split: str, *, max_rows: int | None = None, strict: bool = False
) -> list[dict[str, Any]]:
    """Rows in verl's format; malformed records are logged by place and left out.

    Args:
        records: (place, record) as `read_jsonl` and `read_hub` give them.
        split: `train` or `validation`; it goes into `extra_info`.
        max_rows: stop after so many rows.
        strict: refuse a malformed record.

    Raises:
        DataError: nothing usable, or, with `strict`, a malformed record.
    """
    rows: list[dict[str, Any]] = []
    skipped = 0
    for place, record in records:
        if max_rows is not None and len(rows) >= max_rows:
            break
        try:
            rows.append(gsm8k_row(record, split, len(rows)))
        except DataError as error:
            if strict:
                raise DataError(f"{place}: {error}") from error
            skipped += 1
            logger.warning("skipped %s: %s", place, error)
    if not rows:
        raise DataError(f"no usable row for {split} ({skipped} malformed)")
    if skipped:
        logger.warning("%s: %d malformed rows skipped", split, skipped)
    return rows


def arithmetic_rows(
    digits: int, rows: int, split: str, *, seed: int, carry_share: float | None = None
) -> list[dict[str, Any]]:
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


def write_parquet(rows: list[dict[str, Any]], path: Path) -> None:
    """Write rows as one parquet file, whole or not at all; the folder is made."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".parquet.tmp")
    pq.write_table(pa.Table.from_pylist(rows), unfinished)
    unfinished.replace(path)


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


def _build_gsm8k(options: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    given = {"train": options.train, "validation": options.test}
    if any(given.values()):
        sources = {split: read_jsonl(path) for split, path in given.items() if path}
        for split in given.keys() - sources.keys():
            logger.warning("no file for %s, so %s.parquet is not written", split, split)
    else:
        sources = {"train": read_hub(GSM8K_HUB_NAME, "train"), "validation": read_hub(GSM8K_HUB_NAME, "test")}
    return {
        split: gsm8k_rows(records, split, max_rows=options.max_rows, strict=options.strict)
        for split, records in sources.items()
    }


def _build_arithmetic(options: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    wanted = {"train": options.train_rows, "validation": options.validation_rows}
    return {
        split: arithmetic_rows(options.digits, rows, split, seed=options.seed, carry_share=options.carry_share)
        for split, rows in wanted.items()
    }


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, got {value}")
    return value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m maskgrpo_plugin.data.prepare", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="{gsm8k,arithmetic}")

    gsm8k = commands.add_parser("gsm8k", help="grade-school word problems, from local files or the hub")
    gsm8k.add_argument("--train", type=Path, help="JSON Lines with question and answer; without files: the hub")
    gsm8k.add_argument("--test", type=Path, help="the same for validation.parquet")
    gsm8k.add_argument("--max-rows", type=_positive, help="the first so many rows of each file")
    gsm8k.add_argument("--strict", action="store_true", help="refuse malformed rows instead of skipping them")
    gsm8k.set_defaults(build=_build_gsm8k)

    arithmetic = commands.add_parser("arithmetic", help="sums such as 12+34=")
    arithmetic.add_argument("--digits", type=_positive, default=2, help="digits of each operand (default 2)")
    arithmetic.add_argument("--train-rows", type=_positive, default=6000)
    arithmetic.add_argument("--validation-rows", type=_positive, default=512)
    arithmetic.add_argument("--seed", type=int, default=0)
    arithmetic.add_argument("--carry-share", type=float, help="share of sums whose ones carry; default: as they come")
    arithmetic.set_defaults(build=_build_arithmetic)

    for command in (gsm8k, arithmetic):
        command.add_argument("--output-dir", type=Path, required=True)
    return parser


if __name__ == "__main__":
    sys.exit(main())
