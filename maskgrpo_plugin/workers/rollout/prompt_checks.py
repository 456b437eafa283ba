"""Check that the prompts of a run's data fit: in tokens, as the run lays them out, on the driver before Ray starts."""

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf
from verl.utils.config import omega_conf_to_dataclass

from maskgrpo_plugin.config import ImageSettings
from maskgrpo_plugin.data.checks import check_row_count
from maskgrpo_plugin.data.row_files import DataFile, Row, data_files
from maskgrpo_plugin.diffusion.samplers import SAMPLERS, check_attention, get_sampler
from maskgrpo_plugin.errors import OptionError, first_line
from maskgrpo_plugin.models.checks import load_tokenizer
from maskgrpo_plugin.models.families import Family, ImageFamily, load_family
from maskgrpo_plugin.models.image_tokenizers import image_tokenizer_config
from maskgrpo_plugin.models.registry import block_length_of
from maskgrpo_plugin.workers.rollout.requests import MODALITIES, RequestBuilder

logger = logging.getLogger(__name__)

ROLLOUT = "actor_rollout_ref.rollout"
SAMPLER = f"{ROLLOUT}.sampler"
OVERRIDE = "actor_rollout_ref.model.override_config (block_size, of Fast-dLLM v2 bd_size)"
FILTER = "data.filter_overlong_prompts"
MOST_CHARACTERS = 10_000_000  # of prompts whose tokens are counted, some seconds' work


class PromptRow(NamedTuple):
    """A row whose prompt is laid out: its file, its number there, the row, and what it asks for."""

    file: DataFile
    number: int
    row: Row
    modality: str


def check_prompts(config: DictConfig) -> None:
    """Check each prompt's length in tokens, and of rows with images what they need; nothing for a model on the hub.

    A prompt longer than `data.max_prompt_length` ends the run, or is counted where verl filters it out
    (`data.filter_overlong_prompts`); one that the filter would keep and the rollout not take ends it as well.

    Raises:
        OptionError: the first value, or row, that cannot work.
    """
    model = config.actor_rollout_ref.model
    rows = list(prompt_rows(config))
    if not os.path.isdir(os.path.expanduser(str(model.path))):
        return
    tokenizer = load_tokenizer(model)
    family = _family(model, tokenizer) if model.model_type == "masked_diffusion" else None
    if family is not None:
        _check_attention(config, block_length_of(family.config))
    modalities = list(dict.fromkeys(each.modality for each in rows if each.modality != "text"))
    if modalities:
        if family is None:
            first = next(each for each in rows if each.modality != "text")
            problem = f"its extra_info.modality is {first.modality!r}; an autoregressive checkpoint takes texts alone"
            raise first.file.refuse(first.number, problem)
        _check_modalities(config.actor_rollout_ref.rollout.sampler.name, modalities)
        _check_images(model, family, modalities)
    grid = _image_grid(config, family) if "t2i" in modalities else None
    template: Any = OmegaConf.to_container(config.data.get("apply_chat_template_kwargs") or OmegaConf.create({}))
    builder = RequestBuilder(tokenizer, family, grid=grid, template_kwargs=template)
    lengths = _text_lengths(config, builder, [each for each in rows if each.modality == "text"])
    left_out = _check_texts(config, lengths)
    for each in rows:
        if each.modality != "text":
            _check_image_row(config, builder, each)
    check_row_count(config, left_out)


def _check_attention(config: DictConfig, block_length: int | None) -> None:
    """The sampler is for the checkpoint's attention, and its blocks are those that training counts."""
    sampler = config.actor_rollout_ref.rollout.sampler
    try:
        check_attention(sampler.name, block_length)
    except OptionError as error:
        raise error.under(SAMPLER) from None
    options = sampler.get("options") or {}
    given, begin = options.get("block_length"), options.get("blocks_from", "row")
    if block_length is not None and begin != "row":
        allowed = "row: training counts blocks from the row's first token; response is for generate and evaluate"
        raise OptionError(f"{SAMPLER}.options.blocks_from", begin, f"allowed: {allowed}")
    if block_length is not None and given not in (None, block_length):
        allowed = f"training counts blocks of {block_length}, the checkpoint's; another length is set in {OVERRIDE}"
        raise OptionError(f"{SAMPLER}.options.block_length", given, allowed)
    if block_length is not None:
        try:
            omega_conf_to_dataclass(config.algorithm.estimation).build().check_blocks(block_length)
        except OptionError as error:
            raise error.under("algorithm.estimation.options") from None
    guidance = (config.algorithm.get("estimation") or {}).get("cfg_scale", 0)
    if block_length is not None and guidance:
        allowed = "0: log-probabilities of a model that attends block by block have no guidance"
        raise OptionError("algorithm.estimation.cfg_scale", guidance, f"allowed: {allowed}")


def prompt_rows(config: DictConfig) -> Iterator[PromptRow]:
    """The rows of a run's data files, with what each asks for.

    Raises:
        OptionError: an unknown modality.
    """
    for file in data_files(config):
        for number, row in file.numbered():
            modality = (row.get("extra_info") or {}).get("modality") or "text"
            if modality not in MODALITIES:
                problem = f"its extra_info.modality is {modality!r}; allowed: {', '.join(MODALITIES)}"
                raise file.refuse(number, problem)
            yield PromptRow(file, number, row, modality)


def _text_lengths(
    config: DictConfig, builder: RequestBuilder, rows: list[PromptRow]
) -> list[tuple[PromptRow, int, int]]:
    """Of each text row the tokens of its prompt as verl's filter counts them, and as the rollout lays it out."""
    key, tokenizer = config.data.prompt_key, builder.tokenizer
    rows = _longest(rows, key)
    texts = []
    for each in rows:
        try:
            texts.append(
                tokenizer.apply_chat_template(
                    each.row[key], tokenize=False, add_generation_prompt=True, **builder.template_kwargs
                )
            )
        except Exception as error:  # jinja2 and templates raise errors of many kinds
            raise each.file.refuse(each.number, f"the chat template refuses it: {first_line(error)}") from None
    chats = [len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]] if texts else []
    if builder.family is None or type(builder.family).text_to_text is Family.text_to_text:
        return list(zip(rows, chats, chats, strict=True))
    return [(each, chat, _laid_out(config, builder, each)[0]) for each, chat in zip(rows, chats, strict=True)]


def _longest(rows: list[PromptRow], key: str) -> list[PromptRow]:
    """The rows; where they hold more than MOST_CHARACTERS, those with the longest prompts that hold so many."""
    sizes = [sum(len(str(message["content"])) for message in each.row[key]) for each in rows]
    if sum(sizes) <= MOST_CHARACTERS:
        return rows
    chosen, total = [], 0
    for n in sorted(range(len(rows)), key=lambda n: -sizes[n]):
        total += sizes[n]
        if total > MOST_CHARACTERS:
            break
        chosen.append(n)
    logger.info("the tokens of the %d longest of %d prompts are counted", len(chosen), len(rows))
    return [rows[n] for n in sorted(chosen)]


def _check_texts(config: DictConfig, lengths: list[tuple[PromptRow, int, int]]) -> dict[str, int]:
    """Refuse prompts that would be cut; returns how many rows verl's filter leaves out, by key."""
    longest, taken = config.data.max_prompt_length, config.actor_rollout_ref.rollout.prompt_length
    filters = config.data.filter_overlong_prompts
    left_out: dict[str, int] = {}
    by_file: dict[tuple[str, str], int] = {}
    for each, chat, tokens in lengths:
        if filters and chat > longest:
            left_out[each.file.key] = left_out.get(each.file.key, 0) + 1
            place = (each.file.key, each.file.name)
            by_file[place] = by_file.get(place, 0) + 1
            continue
        if tokens > min(longest, taken):
            key = "data.max_prompt_length" if longest <= taken else f"{ROLLOUT}.prompt_length"
            allowed = f"its prompt has {tokens} tokens, {key}={min(longest, taken)}"
            if not filters:
                allowed += f"; raise it, or set {FILTER}=true to leave such rows out"
            raise each.file.refuse(each.number, allowed)
    for (file_key, name), count in by_file.items():
        message = "%s=%s: %d rows have prompts of more than %d tokens and are left out (%s)"
        logger.warning(message, file_key, name, count, longest, FILTER)
    return left_out


def _check_modalities(name: str, modalities: list[str]) -> None:
    """The sampler can be asked for images, and for answers about images, where rows ask for them."""
    for modality, what in (("t2i", "images"), ("mmu", "answers about images")):
        served = "t2i" if modality == "t2i" else "text"
        if modality in modalities and served not in get_sampler(name).modalities:
            names = [other for other, sampler in SAMPLERS.items() if served in sampler.modalities]
            raise OptionError(f"{SAMPLER}.name", name, f"for {what}: {', '.join(names)}")


def _family(model: DictConfig, tokenizer: Any) -> Family:
    try:
        return load_family(model, tokenizer)
    except ValueError as error:
        raise OptionError("actor_rollout_ref.model.path", str(model.path), str(error)) from None


def _check_images(model: DictConfig, family: Family, modalities: list[str]) -> None:
    """The checkpoint's family has images."""
    if not isinstance(family, ImageFamily):
        allowed = f"the data asks for {', '.join(modalities)}; {family.name} has none"
        raise OptionError("actor_rollout_ref.model.path", str(model.path), allowed)


def _image_grid(config: DictConfig, family: Any) -> tuple[int, int]:
    """Rows and columns of image tokens, of an image tokenizer that fits the checkpoint."""
    rollout = config.actor_rollout_ref.rollout
    image = ImageSettings(**{key: rollout.image[key] for key in rollout.image if key != "_target_"})
    key, path = f"{ROLLOUT}.image.tokenizer_path", image.tokenizer_path
    if not path or not (Path(path).expanduser() / "config.json").is_file():
        raise OptionError(key, path, "the folder of the image tokenizer's checkpoint, with its config.json")
    try:
        tokenizer_config = image_tokenizer_config(path)
    except (ModuleNotFoundError, ValueError, KeyError, TypeError, OSError) as error:
        raise OptionError(key, path, first_line(error)) from None
    if tokenizer_config.codebook_size != family.image.codebook_size:
        allowed = f"it has {tokenizer_config.codebook_size} codes, the model's config {family.image.codebook_size}"
        raise OptionError(key, path, allowed)
    try:
        return image.grid(family, tokenizer_config)
    except ValueError as error:
        raise OptionError(f"{ROLLOUT}.image.height", image.height, str(error)) from None


def _laid_out(config: DictConfig, builder: RequestBuilder, each: PromptRow) -> tuple[int, int]:
    """Tokens of a row's prompt and of its response."""
    info = each.row.get("extra_info") or {}
    try:
        request = builder.build(each.row[config.data.prompt_key], info, config.data.max_response_length)
    except (ValueError, KeyError, TypeError) as error:
        cause = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise each.file.refuse(each.number, f"a row of modality {each.modality}: {cause}") from None
    return len(request.prompt_ids), len(request.response_mask)


def _check_image_row(config: DictConfig, builder: RequestBuilder, each: PromptRow) -> None:
    """A row's prompt can be laid out, and prompt and response are as long as the data section says."""
    prompt, response = _laid_out(config, builder, each)
    longest, length = config.data.max_prompt_length, config.data.max_response_length
    if prompt > longest:
        where = f"{each.file.name}, row {each.number}"
        raise OptionError("data.max_prompt_length", longest, f"the prompt of {where} has {prompt} tokens")
    if response != length:
        allowed = f"an image takes {response} tokens with its end"
        raise OptionError("data.max_response_length", length, allowed)
