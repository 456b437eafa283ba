"""`python -m maskgrpo_plugin.data.image_questions`: images, questions and answers as rows for SFT and for RL.

The images' codes are computed once, into `<output-dir>/codes` (see `maskgrpo_plugin.data.captions`), and the rows are
made of them: `sft/train.parquet` with `messages`, `image_codes`, `height`, `width` and `source`, and `rl/train.parquet`
in verl's format with the modality `mmu`.
"""

import argparse
import logging
import sys
import warnings
from pathlib import Path

from PIL import Image

from maskgrpo_plugin.data.code_options import add_code_options, make_job
from maskgrpo_plugin.data.code_shards import write_codes
from maskgrpo_plugin.data.image_records import IMAGE_KEYS
from maskgrpo_plugin.data.question_records import ANSWER_KEYS, FIELDS, QUESTION_KEYS, QuestionKeys, question_reader
from maskgrpo_plugin.data.question_rows import RLRows, SFTRows, write_rows
from maskgrpo_plugin.data.records import DataError
from maskgrpo_plugin.errors import OptionError, check_number

USES = ("sft", "rl")


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status: 0, or 1 where an option or the data cannot be used."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s: %(message)s")
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # such images are counted
    options = _parser().parse_args(arguments)
    try:
        counts = prepare(options)
    except (DataError, OptionError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    for path, rows in counts.items():
        sys.stdout.write(f"{path}: {rows} rows\n")
    return 0


def prepare(options: argparse.Namespace) -> dict[Path, int]:
    """Compute the codes that are missing and write the rows; returns the number of rows of each file.

    Raises:
        OptionError: an option that cannot work.
        DataError: no usable record, or an unusable one that is not to be left out.
    """
    check_number("--validation-share", options.validation_share, 0, 1)
    kinds = {use: _rows(use, options) for use in dict.fromkeys(options.uses)}
    keys = QuestionKeys.of(options.question_key, options.answer_key, options.image_key)
    readers = [(path, question_reader(path, keys, options.image_dir)) for path in options.input]
    settings = {
        "kind": "image_questions",
        "question_key": options.question_key,
        "answer_key": options.answer_key,
        "image_key": options.image_key,
        "image_dir": options.image_dir and str(options.image_dir),
    }
    job = make_job(options, readers, FIELDS, settings)
    shards = write_codes(job, options.output_dir / "codes", overwrite=options.overwrite)
    counts: dict[Path, int] = {}
    for use, rows in kinds.items():
        counts |= write_rows(
            shards,
            rows,
            options.output_dir / use,
            share=options.validation_share,
            seed=options.seed,
            skip_bad=options.skip_bad,
        )
    return counts


def _rows(use: str, options: argparse.Namespace) -> SFTRows | RLRows:
    if use == "sft":
        return SFTRows()
    if not options.task:
        raise OptionError("--task", options.task, "--for rl needs the task of a text reward, such as short_answer")
    return RLRows(options.task, options.data_source or options.input[0].stem)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m maskgrpo_plugin.data.image_questions", description=__doc__)
    add = parser.add_argument
    add(
        "--input",
        type=Path,
        nargs="+",
        required=True,
        help=".jsonl, .json or .parquet whose records have an image (bytes, or a path), a question and its answer or a "
        "list of accepted ones, or `conversations` or `messages` with <image> in the user's first turn",
    )
    add("--for", dest="uses", nargs="+", choices=USES, required=True, help="which rows are written")
    add("--task", help="task that judges the answers in RL, such as short_answer")
    add("--data-source", help="name of the data set in RL's rows; default: the first input's")
    add("--image-dir", type=Path, help="folder that the images' paths are relative to; default: that of each input")
    add("--question-key", help=f"field of the question; default: {' or '.join(QUESTION_KEYS)}")
    add("--answer-key", help=f"field of the answer; default: {' or '.join(ANSWER_KEYS)}")
    add("--image-key", help=f"field of the image; default: the first of {', '.join(IMAGE_KEYS)}")
    add("--validation-share", type=float, default=0.0, help="of the images, held out as validation.parquet (default 0)")
    add("--seed", type=int, default=0, help="of the images that are held out")
    add_code_options(parser)
    return parser


if __name__ == "__main__":
    sys.exit(main())
