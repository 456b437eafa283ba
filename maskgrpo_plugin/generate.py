"""`python -m maskgrpo_plugin.generate`: texts and images of a checkpoint, by a prompt, a file of prompts or a chat.

In a terminal a completion is shown while it is denoised; `--trace` writes a page that replays it.
"""

import argparse
import logging
import sys
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from maskgrpo_plugin.errors import OptionError, first_line
from maskgrpo_plugin.evaluation.checkpoints import resolve_checkpoint, temporary_merged_dir
from maskgrpo_plugin.evaluation.options import image_settings
from maskgrpo_plugin.generation.options import (
    DEFAULT_LENGTH,
    check_autoregressive,
    check_folder,
    check_options,
    check_page,
    make_parser,
)
from maskgrpo_plugin.generation.questions import Question, read_questions
from maskgrpo_plugin.generation.terminal import is_terminal
from maskgrpo_plugin.sampler_arguments import check_sampler, sampler_settings

if TYPE_CHECKING:  # imports of verl, left to where they are needed, so that --help is quick
    from maskgrpo_plugin.diffusion.samplers import Sampler
    from maskgrpo_plugin.generation.checkpoint import Checkpoint


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status: 0, 2 where an option or a file cannot be used, 130 after Ctrl-C."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    options = make_parser(__doc__).parse_args(arguments)
    try:
        generate(options)
    except OptionError as error:
        sys.stderr.write(f"error: {' '.join(str(error).split())}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("\n")
        return 130
    return 0


def generate(options: argparse.Namespace) -> None:
    """Generate as the command's options say.

    Raises:
        OptionError: an option or a file that cannot be used, named with its value and what is allowed.
    """
    check_options(options, terminal=is_terminal())
    chat = options.prompt is None and options.prompts is None
    questions = [] if chat else read_questions(options)
    if options.output_dir is not None:
        check_folder("--output-dir", options.output_dir)
    if options.trace is not None:
        check_page("--trace", options.trace)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # verl's, on engines that nobody asked for
        import verl  # noqa: F401  (loads the plugin into its registries)

        import maskgrpo_plugin.registration  # noqa: F401
    from maskgrpo_plugin.generation.checkpoint import Checkpoint
    from maskgrpo_plugin.generation.session import Session

    path = _resolve(options)
    checkpoint = Checkpoint(path, device=options.device, dtype=options.dtype, image=image_settings(options))
    _check_use(options, questions, checkpoint)
    session = Session(options, checkpoint, *build_sampler(options, checkpoint))
    if chat:
        session.chat()
    else:
        session.run(questions)


def _resolve(options: argparse.Namespace) -> str:
    """The folder or name of the checkpoint, merged where it must be."""
    try:
        merged_dir = options.merged_dir or temporary_merged_dir(options.model)
        return resolve_checkpoint(options.model, merged_dir, options.base_model)
    except OptionError:
        raise
    except Exception as error:  # the libraries that read checkpoints raise errors of many kinds
        raise OptionError("--model", options.model, first_line(error)) from error


def build_sampler(options: argparse.Namespace, checkpoint: "Checkpoint") -> "tuple[Sampler | None, str, int | None]":
    """The sampler that the options say, its name, and the tokens of a text (None: images).

    Raises:
        OptionError: an option that the sampler refuses.
    """
    images = options.to == "image"
    length = options.length or DEFAULT_LENGTH
    if checkpoint.family is None:
        if options.samples > 1 and options.temperature == 0:
            raise OptionError("--temperature", 0.0, "all samples of a prompt would be the same; use more than 0")
        return None, "", length
    by_run: dict[str, Any] = {"temperature": options.temperature, "stop_token_ids": tuple(checkpoint.stop_token_ids)}
    if images:
        rows, columns = checkpoint.grid()
        length = rows * columns
        by_run["vocab_slice"] = checkpoint.image_family("--to", "image").image.vocab_slice
    steps = options.steps or (None if images else max(1, length // 2))
    settings = sampler_settings(options, length, steps, images=images, block_length=checkpoint.block_length)
    check_sampler(settings, length, options.temperature, options.samples, length_flag="--length")
    return settings.build(response_length=length, **by_run), settings.name, None if images else length


def _check_use(options: argparse.Namespace, questions: Sequence[Question], checkpoint: "Checkpoint") -> None:
    """Check that the checkpoint can do what is asked, and that no option is without effect."""
    if checkpoint.family is None:
        check_autoregressive(options)
    if options.to == "image" or options.image is not None or any(question.picture for question in questions):
        return
    for flag, value in (("--image-tokenizer", options.image_tokenizer), ("--image-size", options.image_size)):
        if value is not None:
            raise OptionError(flag, value, "no image is asked for, or about; see --to image and --image")


if __name__ == "__main__":
    sys.exit(main())
