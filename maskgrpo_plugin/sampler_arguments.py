"""A sampler on the command line: flags by the names of the config, and the rollout's section that they say."""

import argparse
import logging
from collections.abc import Mapping
from dataclasses import fields
from functools import cache
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from maskgrpo_plugin.arguments import not_negative
from maskgrpo_plugin.diffusion.samplers import SAMPLERS, Sampler, check_attention, get_sampler, option_names
from maskgrpo_plugin.errors import OptionError

if TYPE_CHECKING:  # imports of verl, left to where they are needed, so that --help is quick
    from maskgrpo_plugin.config import SamplerSettings

logger = logging.getLogger(__name__)

DEFAULT_BLOCK = 32
DEFAULT_SAMPLERS = {"text": "semi_autoregressive", "blocks": "block_causal", "t2i": "emerge"}
SAMPLER_KEY = "rollout.sampler."


def add_sampler_arguments(add: Any) -> None:
    """Add `--sampler`, `--temperature` and a flag for each option of a sampler but `steps`.

    Args:
        add: the `add_argument` of a parser or group.
    """
    defaults = "semi_autoregressive, block_causal where the checkpoint attends block by block, for images emerge"
    add("--sampler", help=f"{', '.join(SAMPLERS)}; default: {defaults}")
    add("--temperature", type=not_negative, default=0.0)
    for name, text in sampler_flags().items():
        add(f"--{name.replace('_', '-')}", metavar="VALUE", help=text)


def sampler_flags() -> Mapping[str, str]:
    """The samplers' options that have a flag of their name, all but `steps`, each with its help."""
    owners: dict[str, list[str]] = {}
    for name in SAMPLERS:
        for option in option_names(name):
            owners.setdefault(option, []).append(name)
    defaults = {each.name: each.default for name in SAMPLERS for each in fields(get_sampler(name))}
    defaults["block_length"] = f"{DEFAULT_BLOCK}, or the length where shorter; of block_causal the checkpoint's"
    return {
        option: f"of {', '.join(names)}; default: {defaults[option]}"
        for option, names in owners.items()
        if option != "steps"
    }


def check_modality(sampler: str | None, *, images: bool) -> None:
    """Check that the sampler `--sampler` can be asked for images, or for texts.

    Raises:
        OptionError: it cannot; an unknown name is passed over, see `check_sampler`.
    """
    modality = "t2i" if images else "text"
    if sampler in SAMPLERS and modality not in get_sampler(str(sampler)).modalities:
        names = [name for name, each in SAMPLERS.items() if modality in each.modalities]
        raise OptionError("--sampler", sampler, f"allowed for {'images' if images else 'texts'}: {', '.join(names)}")


def sampler_settings(
    options: argparse.Namespace, length: int, steps: int | None, *, images: bool, block_length: int | None = None
) -> "SamplerSettings":
    """The rollout's section on the sampler: its own defaults but for texts, whose blocks have at most 32 tokens; then
    the command's flags, and what `--set` says.

    Args:
        options: the command's, with `overrides`, the values of `--set`.
        length: tokens of a response.
        steps: of the sampler; None: its default.
        images: whether images are asked for.
        block_length: of a checkpoint that attends block by block.

    Raises:
        OptionError: a key of `--set` that the section does not have, a sampler that is not for the checkpoint's
            attention, or `--steps` of a sampler without them.
    """
    from maskgrpo_plugin.config import SamplerSettings

    kind = "t2i" if images else "text" if block_length is None else "blocks"
    values: dict[str, Any] = {"name": options.sampler or DEFAULT_SAMPLERS[kind], "options": {}}
    for override in options.overrides:
        if override.startswith(SAMPLER_KEY):
            part = OmegaConf.to_container(OmegaConf.from_dotlist([override]).rollout.sampler)
            if not isinstance(part, dict) or set(part) - {"name", "options"}:
                raise OptionError("--set", override, "allowed: rollout.sampler.name, rollout.sampler.options.<option>")
            values |= {str(key): value for key, value in part.items() if key != "options"}
            values["options"] |= part.get("options", {})
    flags = {name: _value(text) for name, text in vars(options).items() if name in sampler_flags() and text is not None}
    blocks = None if images or block_length is not None else min(DEFAULT_BLOCK, length)
    defaults = {"steps": steps, "block_length": blocks}
    known = option_names(values["name"]) if values["name"] in SAMPLERS else ()
    if values["name"] in SAMPLERS:
        try:
            check_attention(values["name"], block_length)
        except OptionError as error:
            raise OptionError("--sampler", error.value, error.allowed) from None
        if options.steps and "steps" not in known:
            raise OptionError("--steps", options.steps, f"{values['name']} has --steps-per-block")
    defaults = {name: value for name, value in defaults.items() if name in known and value is not None}
    settings = SamplerSettings(name=values["name"], options=defaults | flags | values["options"])
    given = (settings.options or {}).get("block_length")
    if block_length is not None and given not in (None, block_length):
        _warn_of_blocks(block_length, given)
    return settings


@cache
def _warn_of_blocks(made_for: int, given: int) -> None:
    """Say once that a checkpoint is decoded in blocks that it was not made for."""
    logger.warning("--block-length=%s: the checkpoint was made for blocks of %d tokens", given, made_for)


def check_sampler(
    settings: "SamplerSettings", length: int, temperature: float, samples: int, *, length_flag: str = "--lengths"
) -> Sampler:
    """The sampler, built to see that it can be.

    Args:
        settings: the rollout's section.
        length: tokens of a response.
        temperature: of the sampler.
        samples: number of responses per prompt.
        length_flag: the flag that `length` is from.

    Raises:
        OptionError: an option that it refuses, by the command's flag, or several samples that would be one.
    """
    try:
        sampler = settings.build(response_length=length, temperature=temperature)
    except OptionError as error:
        name = {"response_length": length_flag.removeprefix("--"), "name": "sampler"}.get(error.key, error.key)
        allowed = f"{error.allowed} (at length {length})"
        raise OptionError(f"--{name.replace('_', '-')}", error.value, allowed) from error
    if samples > 1 and not sampler.draws:
        raise OptionError("--temperature", temperature, "all samples of a prompt would be the same; use more than 0")
    return sampler


def _value(text: str) -> Any:
    """A flag's value as a config would read it."""
    value = OmegaConf.from_dotlist([f"value={text}"]).value
    return OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
