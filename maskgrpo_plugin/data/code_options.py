"""Options that the commands which compute image codes share, and the job that they say."""

import argparse
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

from maskgrpo_plugin.arguments import positive
from maskgrpo_plugin.data.code_shards import CodeJob, Input
from maskgrpo_plugin.data.faults import SKIP_OPTION
from maskgrpo_plugin.data.image_encoder import DEFAULT_RESOLUTION, DTYPES, ImageEncoder
from maskgrpo_plugin.data.image_records import LISTS, Records, input_digest
from maskgrpo_plugin.errors import OptionError, first_line


def add_code_options(parser: argparse.ArgumentParser) -> None:
    """Declare the options that `make_job` reads."""
    parser.add_argument("--output-dir", type=Path, required=True)
    parser.add_argument(SKIP_OPTION, action="store_true", help="leave out unusable records instead of refusing them")
    add = parser.add_argument_group("codes").add_argument
    add("--image-tokenizer", type=Path, required=True, metavar="FOLDER", help="MAGVIT-v2, or diffusers' VQModel")
    add("--model", type=Path, metavar="FOLDER", help="checkpoint that the codes are for: its codebook must fit")
    add(
        "--resolution",
        type=positive,
        help=f"pixels per side of the square that is cut out; default: what --model takes, else {DEFAULT_RESOLUTION}",
    )
    add("--batch-size", type=positive, default=16, help="images that are encoded at a time (default 16)")
    add("--rows-per-shard", type=positive, default=4096, help="rows that an interruption can cost (default 4096)")
    add("--device", help="cpu, cuda or cuda:N; default: a GPU that torch can use, else the CPU")
    add("--dtype", choices=DTYPES, default="float32", help="of the image tokenizer (default float32)")
    add("--workers", type=positive, default=min(os.cpu_count() or 1, 16), help="threads that decode images")
    add("--overwrite", action="store_true", help="begin anew in a folder of codes made with other settings")


def make_job(
    options: argparse.Namespace,
    readers: Sequence[tuple[Path, Callable[[], Records]]],
    fields: Sequence[tuple[str, pa.DataType]],
    settings: Mapping[str, Any],
) -> CodeJob:
    """The job that the options say.

    Args:
        options: the command's.
        readers: each input with what reads it.
        fields: see `CodeJob`.
        settings: what the command's own options decide of the rows.

    Raises:
        OptionError: see `ImageEncoder`, or a device that is not there.
        DataError: a list that cannot be read.
    """
    device = options.device or _default_device()
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise OptionError("--device", device, first_line(error)) from None
    encoder = ImageEncoder(options.image_tokenizer, options.model, options.resolution, device, options.dtype)
    inputs = []
    for path, read in readers:
        names_files = path.is_dir() or path.suffix in LISTS
        inputs.append(Input(str(path), input_digest(path, read if names_files else None), read))
    return CodeJob(
        inputs=inputs,
        fields=fields,
        encode=encoder,
        grid=encoder.grid,
        side=encoder.side,
        settings={**settings, **encoder.settings()},
        described={"codebook_size": encoder.config.codebook_size},
        batch_size=options.batch_size,
        rows_per_shard=options.rows_per_shard,
        workers=options.workers,
        skip_bad=options.skip_bad,
    )


def _default_device() -> str:
    import verl  # noqa: F401  (registers the platform of the CPU)
    from verl.utils.device import get_device_name

    return get_device_name()
