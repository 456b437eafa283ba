"""Checks of the rollout section and of the rows that it is asked for, on the driver before Ray starts."""

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, ListConfig, OmegaConf
from transformers import AutoTokenizer

from maskgrpo_plugin.config import ImageSettings, SamplerSettings
from maskgrpo_plugin.diffusion.samplers import SAMPLERS, get_sampler
from maskgrpo_plugin.errors import OptionError
from maskgrpo_plugin.models.families import ImageFamily, load_family
from maskgrpo_plugin.models.image_tokenizers import image_tokenizer_config
from maskgrpo_plugin.workers.rollout import ROLLOUTS
from maskgrpo_plugin.workers.rollout.model_weights import serves_adapter
from maskgrpo_plugin.workers.rollout.requests import RequestBuilder

logger = logging.getLogger(__name__)

ROLLOUT = "actor_rollout_ref.rollout"
SAMPLER = f"{ROLLOUT}.sampler"
BY_RUN = {"response_length": "data.max_response_length", "temperature": f"{ROLLOUT}.temperature"}
AGENT_LOOP = "maskgrpo_single_turn"

Row = tuple[list[dict[str, str]], dict[str, Any]]


def check_rollout(config: DictConfig) -> None:
    """Check the rollout section of the plugin's rollouts.

    Raises:
        OptionError: the first value that cannot work.
    """
    rollout = config.actor_rollout_ref.rollout
    if rollout.name not in ROLLOUTS:
        return
    ranks = config.trainer.n_gpus_per_node * config.trainer.nnodes
    for key in ("tensor_model_parallel_size", "data_parallel_size", "pipeline_model_parallel_size"):
        if rollout[key] != 1:
            raise OptionError(f"{ROLLOUT}.{key}", rollout[key], f"use 1: each of the {ranks} ranks has its own server")
    if serves_adapter(config.actor_rollout_ref.model) and rollout.layered_summon and rollout.load_format == "dummy":
        raise OptionError(f"{ROLLOUT}.layered_summon", True, "it needs rollout.load_format=auto: it sends no base")
    if rollout.max_num_seqs < 1:
        raise OptionError(f"{ROLLOUT}.max_num_seqs", rollout.max_num_seqs, "allowed: 1 or more")
    if rollout.agent.default_agent_loop != AGENT_LOOP:
        key = f"{ROLLOUT}.agent.default_agent_loop"
        raise OptionError(key, rollout.agent.default_agent_loop, f"the plugin's rollouts are seeded by {AGENT_LOOP}")
    if rollout.name == "masked_diffusion":
        check_sampler(config)


def check_sampler(config: DictConfig) -> None:
    """Check `rollout.sampler` by building it as training and validation will; old keys are named in a warning.

    Raises:
        OptionError: the first value that cannot work.
    """
    rollout = config.actor_rollout_ref.rollout
    settings = sampler_settings(rollout.sampler)
    _check_old_keys(settings)
    for temperature in (rollout.temperature, rollout.val_kwargs.temperature):
        try:
            sampler = settings.build(
                response_length=rollout.response_length, temperature=temperature, stop_token_ids=()
            )
        except OptionError as error:
            raise full_key(error, settings.options) from None
        if rollout.compile and not sampler.takes_compiled_models:
            raise OptionError(f"{ROLLOUT}.compile", True, f"needs {SAMPLER}.options.cache=none")


def sampler_settings(section: DictConfig) -> SamplerSettings:
    """The section `rollout.sampler` as its dataclass.

    Raises:
        OptionError: a key that it does not have.
    """
    values = {str(key): section[key] for key in section if key != "_target_"}
    known = [name for name in SamplerSettings.__dataclass_fields__ if not name.startswith("_")]
    for key, value in values.items():
        if key not in known:
            raise OptionError(f"{SAMPLER}.{key}", value, "allowed: name, options")
    options = OmegaConf.to_container(section.get("options") or OmegaConf.create({}), resolve=True)
    return SamplerSettings(**(values | {"options": options}))


def full_key(error: OptionError, options: Mapping[str, Any]) -> OptionError:
    """The error of a sampler with these `options`, by the full key of the run's config."""
    if error.key == "name":
        return error.under(SAMPLER)
    if error.key in BY_RUN and error.key not in options:
        return OptionError(BY_RUN[error.key], error.value, error.allowed)
    return error.under(f"{SAMPLER}.options")


def _check_old_keys(settings: SamplerSettings) -> None:
    """Warn of old keys; OptionError where the command line sets an option by both keys to two values."""
    given = _command_line()
    for key, value in settings.old_options().items():
        new = f"{SAMPLER}.options.{key}"
        if {f"{SAMPLER}.{key}", new} <= given and settings.options.get(key) != value:
            raise OptionError(
                f"{SAMPLER}.{key}", value, f"{new}={settings.options.get(key)!r} says otherwise; drop one"
            )
        logger.warning("%s.%s=%r: the key is now %s; the old one goes with the next release", SAMPLER, key, value, new)


def _command_line() -> set[str]:
    """The keys that the command line sets; none where Hydra's command line was not used."""
    overrides: Sequence[str] = HydraConfig.get().overrides.task if HydraConfig.initialized() else ()
    return {override.partition("=")[0].lstrip("+") for override in overrides}


def rows_by_modality(config: DictConfig) -> dict[str, list[Row]]:
    """Rows of the data by modality other than text, as (prompt messages, extra_info)."""
    import pyarrow.parquet as pq

    rows: dict[str, list[Row]] = {}
    for key in ("train_files", "val_files"):
        value = config.data[key]
        for name in value if isinstance(value, ListConfig) else [value]:
            if "://" in str(name) or not str(name).endswith(".parquet"):
                continue
            table = pq.read_table(os.path.expanduser(str(name)))
            if not {"extra_info", config.data.prompt_key} <= set(table.column_names):
                continue
            infos = table["extra_info"].to_pylist()
            if not any((info or {}).get("modality") for info in infos):
                continue
            for messages, info in zip(table[config.data.prompt_key].to_pylist(), infos, strict=True):
                modality = info.get("modality") or "text"
                if modality != "text":
                    rows.setdefault(modality, []).append((messages, info))
    return rows


def check_images(config: DictConfig) -> None:
    """Where rows ask for images: a family that has them, a sampler and a tokenizer that fit it, and rows that fit both.

    Raises:
        OptionError: the first value that cannot work.
    """
    rows = rows_by_modality(config)
    path = os.path.expanduser(str(config.actor_rollout_ref.model.path))
    if not rows or not os.path.isdir(path):
        return
    _check_modalities(config.actor_rollout_ref.rollout.sampler.name, list(rows))
    family = _image_family(config.actor_rollout_ref.model, list(rows))
    grid = _image_grid(config, family) if "t2i" in rows else None
    _check_rows(config, family, rows, grid)


def _check_modalities(name: str, modalities: list[str]) -> None:
    """The sampler can be asked for images, and for answers about images, where rows ask for them."""
    for modality, what in (("t2i", "images"), ("mmu", "answers about images")):
        served = "t2i" if modality == "t2i" else "text"
        if modality in modalities and served not in get_sampler(name).modalities:
            names = [other for other, sampler in SAMPLERS.items() if served in sampler.modalities]
            raise OptionError(f"{SAMPLER}.name", name, f"for {what}: {', '.join(names)}")


def _image_family(model: DictConfig, modalities: list[str]) -> ImageFamily:
    """The checkpoint's family, which has images."""
    key, path = "actor_rollout_ref.model.path", os.path.expanduser(str(model.path))
    try:
        family = load_family(model, AutoTokenizer.from_pretrained(path))
    except ValueError as error:
        raise OptionError(key, path, str(error)) from None
    if not isinstance(family, ImageFamily):
        raise OptionError(key, path, f"the data asks for {', '.join(modalities)}; {family.name} has none")
    return family


def _image_grid(config: DictConfig, family: ImageFamily) -> tuple[int, int]:
    """Rows and columns of image tokens, of an image tokenizer that fits the checkpoint."""
    rollout = config.actor_rollout_ref.rollout
    image = ImageSettings(**{key: rollout.image[key] for key in rollout.image if key != "_target_"})
    key, path = f"{ROLLOUT}.image.tokenizer_path", image.tokenizer_path
    if not path or not (Path(path).expanduser() / "config.json").is_file():
        raise OptionError(key, path, "the folder of the image tokenizer's checkpoint, with its config.json")
    try:
        tokenizer_config = image_tokenizer_config(path)
    except ModuleNotFoundError as error:
        raise OptionError(key, path, str(error)) from None
    if tokenizer_config.codebook_size != family.image.codebook_size:
        allowed = f"it has {tokenizer_config.codebook_size} codes, the model's config {family.image.codebook_size}"
        raise OptionError(key, path, allowed)
    try:
        return image.grid(family, tokenizer_config)
    except ValueError as error:
        raise OptionError(f"{ROLLOUT}.image.height", image.height, str(error)) from None


def _check_rows(
    config: DictConfig, family: ImageFamily, rows: dict[str, list[Row]], grid: tuple[int, int] | None
) -> None:
    """Each row's prompt can be laid out, and prompt and response are as long as the data section says."""
    template = config.data.get("apply_chat_template_kwargs") or {}
    builder = RequestBuilder(family.tokenizer, family, grid=grid, template_kwargs=template)
    length = config.data.max_response_length
    for modality, found in rows.items():
        for messages, info in found:
            try:
                request = builder.build(messages, info, length)
            except (ValueError, KeyError) as error:
                key = "data.train_files"
                raise OptionError(key, info.get("index"), f"a row of modality {modality}: {error}") from None
            tokens = len(request.prompt_ids)
            if tokens > config.data.max_prompt_length:
                key = "data.max_prompt_length"
                raise OptionError(key, config.data.max_prompt_length, f"a prompt has {tokens} tokens")
            if len(request.response_mask) != length:
                allowed = f"an image takes {len(request.response_mask)} tokens with its end"
                raise OptionError("data.max_response_length", length, allowed)
