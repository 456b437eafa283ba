"""Options of the generation command, and the checks of what goes together and of where files go."""

import argparse
import tempfile
from pathlib import Path

from maskgrpo_plugin.arguments import CommandParser, positive
from maskgrpo_plugin.errors import OptionError, first_line
from maskgrpo_plugin.evaluation.options import add_image_arguments, add_model_arguments
from maskgrpo_plugin.sampler_arguments import SAMPLER_KEY, add_sampler_arguments, check_modality, sampler_flags

DEFAULT_LENGTH = 128
DEFAULT_TRACE_STEPS = 32


def make_parser(description: str | None) -> argparse.ArgumentParser:
    """The command's options."""
    parser = CommandParser(prog="python -m maskgrpo_plugin.generate", description=description)
    add_model_arguments(parser.add_argument)
    parser.add_argument("--merged-dir", type=Path, help="folder for a merged model; default: in the temporary folder")

    asked = parser.add_argument_group("what is asked; without a prompt: a chat in the terminal")
    asked.add_argument("--prompt", metavar="TEXT", help="one prompt")
    asked.add_argument("--prompts", type=Path, metavar="FILE", help=".jsonl (prompt, image), or text: one per line")
    asked.add_argument("--to", choices=("text", "image"), default="text", help="what is made (default text)")
    asked.add_argument("--image", type=Path, metavar="FILE", help="a picture that the prompts are about")
    asked.add_argument("--samples", type=positive, default=1, help="completions per prompt")

    how = parser.add_argument_group("sampling")
    how.add_argument("--length", type=positive, help=f"tokens of a text (default {DEFAULT_LENGTH})")
    how.add_argument("--steps", type=positive, help="default: half of the length, for images the sampler's")
    add_sampler_arguments(how.add_argument)
    how.add_argument(
        "--set",
        dest="overrides",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="keys of a run's config on the sampler, such as rollout.sampler.options.steps=64",
    )
    how.add_argument("--seed", type=int, default=0)
    how.add_argument("--batch-size", type=positive, default=8, help="completions that are made together (default 8)")
    how.add_argument("--device", help="such as cpu or cuda:1; default: a GPU where torch can use one")

    images = parser.add_argument_group("images")
    add_image_arguments(images.add_argument)
    images.add_argument("--output-dir", type=Path, help="folder for PNG files, and a grid of each prompt's samples")

    shown = parser.add_argument_group("what is shown")
    shown.add_argument("--json", action="store_true", help="one JSON object per completion on stdout")
    shown.add_argument("--no-live", action="store_true", help="do not show a completion while it is denoised")
    shown.add_argument("--trace", type=Path, metavar="FILE.html", help="a page that replays the denoising")
    shown.add_argument(
        "--trace-steps", type=positive, help=f"most steps of an image in the page (default {DEFAULT_TRACE_STEPS})"
    )
    return parser


def check_options(options: argparse.Namespace, *, terminal: bool) -> None:
    """Check what goes together, before anything is loaded.

    Args:
        options: the command's.
        terminal: whether a chat is possible.

    Raises:
        OptionError: options that cannot work together, or have no effect.
    """
    images = options.to == "image"
    chat = options.prompt is None and options.prompts is None
    if options.prompt is not None and options.prompts is not None:
        raise OptionError("--prompts", str(options.prompts), "give a file of prompts or --prompt, not both")
    if chat and not terminal:
        raise OptionError("--prompt", None, "give a prompt, or --prompts FILE; a chat needs a terminal")
    if chat and options.json:
        raise OptionError("--json", True, "it is for --prompt and --prompts, not for a chat")
    if chat and not images and options.samples > 1:
        raise OptionError("--samples", options.samples, "a chat goes on from one answer; use 1")
    for override in options.overrides:
        if not override.startswith(SAMPLER_KEY) or "=" not in override:
            raise OptionError("--set", override, f"allowed: {SAMPLER_KEY}name=…, {SAMPLER_KEY}options.<option>=…")
    if options.trace_steps is not None and options.trace is None:
        raise OptionError("--trace-steps", options.trace_steps, "it is for --trace")
    if images:
        _check_images(options)
    elif options.output_dir is not None:
        raise OptionError("--output-dir", str(options.output_dir), "it is for images; use --to image")
    check_modality(options.sampler, images=images)


def check_autoregressive(options: argparse.Namespace) -> None:
    """Check that nothing is asked of an autoregressive checkpoint that it does not have.

    Raises:
        OptionError: an image, the replay of a denoising, or an option of a sampler of masks.
    """
    given = {f"--{name.replace('_', '-')}": getattr(options, name) for name in ("sampler", "steps", *sampler_flags())}
    given |= {"--set": options.overrides or None, "--trace": options.trace, "--image": options.image}
    given |= {"--to": None if options.to == "text" else options.to}
    for flag, value in given.items():
        if value is not None:
            shown = str(value) if isinstance(value, Path) else value
            raise OptionError(flag, shown, f"{options.model} is autoregressive: it writes texts, without a sampler")


def check_folder(flag: str, folder: Path) -> None:
    """Make a folder and see that files can be written to it.

    Raises:
        OptionError: it cannot be made, or not be written to; names the flag.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OptionError(
            flag, str(folder), f"a folder that can be written to is needed: {first_line(error)}"
        ) from None


def check_page(flag: str, file: Path) -> None:
    """See that a file can be written.

    Raises:
        OptionError: it is a folder, or its folder cannot be written to.
    """
    if file.is_dir():
        raise OptionError(flag, str(file), "it is a folder; name a file")
    check_folder(flag, file.parent)


def _check_images(options: argparse.Namespace) -> None:
    if options.image is not None:
        raise OptionError("--image", str(options.image), "pictures are for texts about them; leave out --to image")
    if options.length is not None:
        raise OptionError("--length", options.length, "an image has its own number of tokens; see --image-size")
    if options.output_dir is None:
        raise OptionError("--output-dir", None, "name a folder for the images")
