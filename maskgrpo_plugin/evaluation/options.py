"""Options of the evaluation command, and the rollout's section on images that they say."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maskgrpo_plugin.arguments import positive
from maskgrpo_plugin.data import prepare
from maskgrpo_plugin.data.templates import DEFAULT_STYLE, STYLES
from maskgrpo_plugin.evaluation.image_files import LAYOUTS
from maskgrpo_plugin.sampler_arguments import add_sampler_arguments

if TYPE_CHECKING:  # imports of verl, left to where they are needed, so that --help is quick
    from maskgrpo_plugin.config import ImageSettings

DEFAULT_LENGTHS = (128, 256, 512)
TASKS = (*prepare.DATA_SETS, "arithmetic")


def make_parser(description: str | None) -> argparse.ArgumentParser:
    """The command's options."""
    parser = argparse.ArgumentParser(prog="python -m maskgrpo_plugin.evaluate", description=description)
    add = parser.add_argument
    add_model_arguments(add)
    add("--output-dir", type=Path, required=True, help="folder for generations, summary, images and merged model")
    add("--overwrite", action="store_true", help="begin anew in a folder made with other settings")

    data = parser.add_argument_group("what is asked (at least one)")
    data.add_argument("--data", type=Path, nargs="+", default=[], help="parquet files of maskgrpo_plugin.data.prepare")
    data.add_argument(
        "--tasks", nargs="+", default=[], choices=TASKS, metavar="TASK", help=f"prepared first: {', '.join(TASKS)}"
    )
    data.add_argument(
        "--style", choices=STYLES, default=DEFAULT_STYLE, help=f"prompts of --tasks (default {DEFAULT_STYLE})"
    )
    data.add_argument("--prompts", type=Path, nargs="+", default=[], help="prompts of images: .jsonl, .tar or text")
    data.add_argument("--limit", type=positive, help="number of rows per data source, the first ones")

    how = parser.add_argument_group("generation")
    how.add_argument(
        "--lengths", type=positive, nargs="+", default=list(DEFAULT_LENGTHS), help="tokens of a text (128 256 512)"
    )
    how.add_argument(
        "--steps",
        type=positive,
        nargs="+",
        default=[],
        help="one, or one for each length; default: half of the length, for images the sampler's",
    )
    add_sampler_arguments(how.add_argument)
    how.add_argument("--samples", type=positive, default=1, help="generations per prompt")
    how.add_argument(
        "--answer-prefix",
        metavar="TEXT",
        help="beginning of each text, given to the model and scored with it; default: <reasoning> for rows of the "
        "style published, else nothing",
    )
    how.add_argument("--seed", type=int, default=0)
    how.add_argument("--batch-size", type=positive, default=32)
    how.add_argument("--replicas", type=positive, default=1, help="servers with a GPU each, as Ray actors")
    how.add_argument("--token-ids", action="store_true", help="write the responses' tokens too")

    scores = parser.add_argument_group("scores")
    scores.add_argument("--k", type=positive, nargs="+", default=[], help="of pass@k; default: 1 and --samples")
    scores.add_argument(
        "--set",
        dest="overrides",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="keys of a run's config on rewards and the sampler, such as reward.sandbox.timeout_s=10",
    )

    images = parser.add_argument_group("images")
    add_image_arguments(images.add_argument)
    images.add_argument(
        "--scorers", nargs="+", default=[], help="such as clip hpsv2; their options: reward.image.scorers.<name>.…"
    )
    images.add_argument(
        "--layout", choices=LAYOUTS, default="prompts", help="folders for GenEval's or DPG-Bench's scorer"
    )
    return parser


def add_model_arguments(add: Any) -> None:
    """Add what names a checkpoint and how it is loaded; `add` is the `add_argument` of a parser or group."""
    add(
        "--model",
        required=True,
        help="published folder or hub name; verl's checkpoints, global_step_N or actor; or a LoRA adapter",
    )
    add("--base-model", help="what a LoRA adapter goes onto; default: the base that it names")
    add("--dtype", choices=("float32", "bfloat16", "float16"), help="default: bfloat16; CPU: float32")


def add_image_arguments(add: Any) -> None:
    """Add the image tokenizer and the size of its images; `add` is the `add_argument` of a parser or group."""
    add("--image-tokenizer", help="folder of the MAGVIT-v2 or diffusers VQModel checkpoint")
    add("--image-size", type=positive, nargs=2, metavar=("HEIGHT", "WIDTH"), help="pixels")


def image_settings(options: argparse.Namespace) -> "ImageSettings":
    """The rollout's section on images."""
    from maskgrpo_plugin.config import ImageSettings

    height, width = options.image_size or (None, None)
    return ImageSettings(tokenizer_path=options.image_tokenizer, height=height, width=width)
