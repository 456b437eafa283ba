"""`python -m maskgrpo_plugin.data.captions`: images with captions as shards of image codes, to learn to draw from.

Each row of `codes-*.parquet` holds `caption`, `image_codes` (from 0, row by row from the top left), `height` and
`width` in tokens, and `source`. The same command takes up after the last whole shard where it was interrupted.
"""

import argparse
import logging
import sys
import warnings
from pathlib import Path

import pyarrow as pa
from PIL import Image

from maskgrpo_plugin.data.captioned_images import ARCHIVES, CAPTION_FILES, CAPTION_KEYS, caption_reader
from maskgrpo_plugin.data.code_options import add_code_options, make_job
from maskgrpo_plugin.data.code_shards import write_codes
from maskgrpo_plugin.data.image_records import IMAGE_KEYS, LISTS
from maskgrpo_plugin.data.records import DataError
from maskgrpo_plugin.errors import OptionError


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status: 0, or 1 where an option or the data cannot be used."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s: %(message)s")
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # such images are counted
    options = _parser().parse_args(arguments)
    try:
        readers = [(path, caption_reader(path, options.caption_key, options.image_key)) for path in options.input]
        settings = {"kind": "captions", "caption_key": options.caption_key, "image_key": options.image_key}
        job = make_job(options, readers, [("caption", pa.string())], settings)
        shards = write_codes(job, options.output_dir, overwrite=options.overwrite)
    except (DataError, OptionError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    sys.stdout.write(f"{options.output_dir}: {len(shards)} shards\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m maskgrpo_plugin.data.captions", description=__doc__)
    parser.add_argument(
        "--input",
        type=Path,
        nargs="+",
        required=True,
        help=f"webdataset archives ({', '.join(ARCHIVES)}), .parquet, lists of image files ({', '.join(LISTS)}), "
        f"or folders with {' or '.join(CAPTION_FILES)}",
    )
    parser.add_argument(
        "--caption-key",
        help=f"field of the caption; default: the first of {', '.join(CAPTION_KEYS)}; of an archive .txt before .json",
    )
    parser.add_argument("--image-key", help=f"field of the image; default: the first of {', '.join(IMAGE_KEYS)}")
    add_code_options(parser)
    return parser


if __name__ == "__main__":
    sys.exit(main())
