"""`python -m maskgrpo_plugin.data.image_prompts`: text-to-image prompts as verl's train.parquet and validation.parquet.

Reads GenEval's metadata, DPG-Bench's and HPSv2's prompts (JSON Lines with `prompt`; every other key is kept as the
sample's metadata), a plain text file with one prompt per line, and webdataset archives (`.tar`) of captions.
"""

import argparse
import json
import logging
import random
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from maskgrpo_plugin.data.records import DataError, as_object, read_file
from maskgrpo_plugin.data.rows import Row, make_rows, write_parquet

CAPTION_KEYS = ("prompt", "caption", "text")


def read_prompts(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield ("file:place", record) where a record is a dict with `prompt`, or a DataError in its place.

    Args:
        path: `.jsonl` or `.jsonl.gz` with a prompt under `prompt`, `caption` or `text`; `.tar` with members `<key>.txt`
            (a caption) or `<key>.json`; anything else: text with one prompt per line; empty lines are skipped.

    Raises:
        DataError: the file cannot be read.
    """
    if path.name.endswith((".jsonl", ".jsonl.gz")):
        yield from read_file(path)
    elif path.suffix == ".tar":
        yield from _read_archive(path)
    else:
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"cannot read {path}: {error}") from error
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield f"{path}:{number}", {"prompt": line.strip()}


def _read_archive(path: Path) -> Iterator[tuple[str, Any]]:
    try:
        archive = tarfile.open(path)
    except (OSError, tarfile.TarError) as error:
        raise DataError(f"cannot read {path}: {error}") from error
    with archive:
        for member in archive:
            suffix = Path(member.name).suffix
            if not member.isfile() or suffix not in (".txt", ".json"):
                continue
            place = f"{path}:{member.name}"
            file = archive.extractfile(member)
            content = file.read() if file is not None else b""
            try:
                text = content.decode("utf-8")
                yield place, {"prompt": text.strip()} if suffix == ".txt" else json.loads(text)
            except ValueError as error:
                yield place, DataError(f"not readable ({error})")


def prompt_row(record: Any, data_source: str, split: str, index: int) -> Row:
    """One row in verl's format.

    Args:
        record: a dict with the prompt under one of `CAPTION_KEYS`; its other keys become the metadata.
        data_source: name of the data set.
        split: `train` or `validation`.
        index: number of the row.

    Raises:
        DataError: the record holds no prompt.
    """
    record = as_object(record)
    key = next((name for name in CAPTION_KEYS if isinstance(record.get(name), str) and record[name].strip()), None)
    if key is None:
        raise DataError(f"no text under {', '.join(CAPTION_KEYS)}; it has {', '.join(map(str, record)) or 'no keys'}")
    metadata = {name: value for name, value in record.items() if name != key}
    prompt = record[key].strip()
    return {
        "data_source": data_source,
        "prompt": [{"role": "user", "content": prompt}],
        "ability": "image",
        "reward_model": {"style": "model", "ground_truth": ""},
        "extra_info": {
            "split": split,
            "index": index,
            "modality": "t2i",
            "prompt": prompt,
            "metadata": json.dumps(metadata),
        },
    }


def prompt_rows(path: Path, data_source: str, split: str, *, strict: bool = False) -> list[Row]:
    """Rows of a file; records without a prompt are logged by place and left out.

    Raises:
        DataError: nothing usable, or, with `strict`, a record without a prompt.
    """

    def convert(record: Any, split: str, index: int) -> Row:
        return prompt_row(record, data_source, split, index)

    return make_rows(read_prompts(path), split, convert, strict=strict, noun=f"prompt in {path}")


def split_rows(rows: list[Row], validation_rows: int, seed: int) -> dict[str, list[Row]]:
    """Draw validation rows at random and number both parts anew.

    Raises:
        DataError: no row is left to train on.
    """
    if validation_rows >= len(rows):
        raise DataError(f"{validation_rows} validation rows asked, but there are {len(rows)} prompts in all")
    drawn = set(random.Random(seed).sample(range(len(rows)), validation_rows))
    parts: dict[str, list[Row]] = {"train": [], "validation": []}
    for number, row in enumerate(rows):
        split = "validation" if number in drawn else "train"
        info = row["extra_info"] | {"split": split, "index": len(parts[split])}
        parts[split].append(row | {"extra_info": info})
    return parts


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status: 0, or 1 where the data cannot be used."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s: %(message)s")
    parser = argparse.ArgumentParser(prog="python -m maskgrpo_plugin.data.image_prompts", description=__doc__)
    parser.add_argument("--train", type=Path, required=True, help="file of prompts: .jsonl, .tar or text")
    parser.add_argument("--validation", type=Path, help="the same for validation; without it rows are held out")
    parser.add_argument("--validation-rows", type=int, default=100, help="held out of --train (default 100)")
    parser.add_argument("--data-source", help="name of the data set; default: the file's name")
    parser.add_argument("--seed", type=int, default=0, help="of the held-out rows")
    parser.add_argument("--strict", action="store_true", help="refuse records without a prompt instead of skipping")
    parser.add_argument("--output-dir", type=Path, required=True)
    options = parser.parse_args(arguments)
    source = options.data_source or options.train.stem
    try:
        train = prompt_rows(options.train, source, "train", strict=options.strict)
        if options.validation is None:
            splits = split_rows(train, options.validation_rows, options.seed)
        else:
            validation = prompt_rows(options.validation, source, "validation", strict=options.strict)
            splits = {"train": train, "validation": validation}
    except DataError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    for split, rows in splits.items():
        if rows:
            write_parquet(rows, options.output_dir / f"{split}.parquet")
        sys.stdout.write(f"{options.output_dir / split}.parquet: {len(rows)} rows\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
