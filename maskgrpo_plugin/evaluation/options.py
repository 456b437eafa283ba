"""Options of the evaluation command, and the sections of a rollout that they say."""

import argparse
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from maskgrpo_plugin.arguments import positive
from maskgrpo_plugin.data import prepare
from maskgrpo_plugin.data.templates import DEFAULT_STYLE, STYLES
from maskgrpo_plugin.diffusion.samplers import SAMPLERS, Sampler, get_sampler, option_names
from maskgrpo_plugin.errors import OptionError
from maskgrpo_plugin.evaluation.image_files import LAYOUTS

if TYPE_CHECKING:  # imports of verl, left to where they are needed, so that --help is quick
    from maskgrpo_plugin.config import ImageSettings, SamplerSettings

DEFAULT_LENGTHS = (128, 256, 512)
DEFAULT_BLOCK = 32
DEFAULT_SAMPLERS = {"text": "semi_autoregressive", "t2i": "emerge"}
SAMPLER_KEY = "rollout.sampler."
TASKS = (*prepare.DATA_SETS, "arithmetic")


def make_parser(description: str | None) -> argparse.ArgumentParser:
    """The command's options."""
    parser = argparse.ArgumentParser(prog="python -m maskgrpo_plugin.evaluate", description=description)
    add = parser.add_argument
    add(
        "--model",
        required=True,
        help="published folder or hub name; verl's checkpoints, global_step_N or actor; or a LoRA adapter",
    )
    add("--base-model", help="what a LoRA adapter goes onto; default: the base that it names")
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
    how.add_argument("--sampler", help=f"{', '.join(SAMPLERS)}; default: semi_autoregressive, for images emerge")
    how.add_argument("--temperature", type=_not_negative, default=0.0)
    for name, text in sampler_flags().items():
        how.add_argument(f"--{name.replace('_', '-')}", metavar="VALUE", help=text)
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
    how.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="default: bfloat16; CPU: float32")
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
    images.add_argument("--image-tokenizer", help="folder of the MAGVIT-v2 checkpoint")
    images.add_argument("--image-size", type=positive, nargs=2, metavar=("HEIGHT", "WIDTH"), help="pixels")
    images.add_argument(
        "--scorers", nargs="+", default=[], help="such as clip hpsv2; their options: reward.image.scorers.<name>.…"
    )
    images.add_argument(
        "--layout", choices=LAYOUTS, default="prompts", help="folders for GenEval's or DPG-Bench's scorer"
    )
    return parser


def image_settings(options: argparse.Namespace) -> "ImageSettings":
    """The rollout's section on images."""
    from maskgrpo_plugin.config import ImageSettings

    height, width = options.image_size or (None, None)
    return ImageSettings(tokenizer_path=options.image_tokenizer, height=height, width=width)


def sampler_settings(options: argparse.Namespace, length: int, steps: int | None, *, images: bool) -> "SamplerSettings":
    """The rollout's section on the sampler: its own defaults but for texts, whose blocks have at most 32 tokens; then
    the command's flags, and what `--set` says.

    Args:
        options: the command's.
        length: tokens of a response.
        steps: of the sampler; None: its default.
        images: whether images are asked for.

    Raises:
        OptionError: a key of `--set` that the section does not have.
    """
    from maskgrpo_plugin.config import SamplerSettings

    values: dict[str, Any] = {"name": options.sampler or DEFAULT_SAMPLERS["t2i" if images else "text"], "options": {}}
    for override in options.overrides:
        if override.startswith(SAMPLER_KEY):
            part = OmegaConf.to_container(OmegaConf.from_dotlist([override]).rollout.sampler)
            if not isinstance(part, dict) or set(part) - {"name", "options"}:
                raise OptionError("--set", override, "allowed: rollout.sampler.name, rollout.sampler.options.<option>")
            values |= {str(key): value for key, value in part.items() if key != "options"}
            values["options"] |= part.get("options", {})
    flags = {name: _value(text) for name, text in vars(options).items() if name in sampler_flags() and text is not None}
    defaults = {"steps": steps, "block_length": None if images else min(DEFAULT_BLOCK, length)}
    known = option_names(values["name"]) if values["name"] in SAMPLERS else ()
    defaults = {name: value for name, value in defaults.items() if name in known and value is not None}
    return SamplerSettings(name=values["name"], options=defaults | flags | values["options"])


def check_sampler(settings: "SamplerSettings", length: int, temperature: float, samples: int) -> Sampler:
    """The sampler, built to see that it can be.

    Raises:
        OptionError: an option that it refuses, by the command's flag, or several samples that would be one.
    """
    try:
        sampler = settings.build(response_length=length, temperature=temperature)
    except OptionError as error:
        name = {"response_length": "lengths", "name": "sampler"}.get(error.key, error.key)
        allowed = f"{error.allowed} (at length {length})"
        raise OptionError(f"--{name.replace('_', '-')}", error.value, allowed) from error
    if samples > 1 and not sampler.draws:
        raise OptionError("--temperature", temperature, "all samples of a prompt would be the same; use more than 0")
    return sampler


def sampler_flags() -> Mapping[str, str]:
    """The samplers' options that have a flag of their name, all but `steps`, each with its help."""
    owners: dict[str, list[str]] = {}
    for name in SAMPLERS:
        for option in option_names(name):
            owners.setdefault(option, []).append(name)
    defaults = {each.name: each.default for name in SAMPLERS for each in fields(get_sampler(name))}
    defaults["block_length"] = f"{DEFAULT_BLOCK}, or the length where shorter"
    return {
        option: f"of {', '.join(names)}; default: {defaults[option]}"
        for option, names in owners.items()
        if option != "steps"
    }


def _value(text: str) -> Any:
    """A flag's value as a config would read it."""
    value = OmegaConf.from_dotlist([f"value={text}"]).value
    return OmegaConf.to_container(value) if OmegaConf.is_config(value) else value


def _not_negative(text: str) -> float:
    value = float(text)
    if not value >= 0:
        raise argparse.ArgumentTypeError(f"must be 0 or more, got {value}")
    return value
