"""Checks of a run's model section on the driver: checkpoint, weights, tokenizer, mask token, LoRA targets."""

import copy
import importlib
import json
import logging
import os
import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PretrainedConfig
from transformers.core_model_loading import revert_weight_conversion
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from verl.utils.device import get_device_name

from maskgrpo_plugin.errors import OptionError, check_number, first_line, nearest
from maskgrpo_plugin.models.families import find_family
from maskgrpo_plugin.models.overrides import override
from maskgrpo_plugin.models.registry import MODELS, block_length_of
from maskgrpo_plugin.models.special_tokens import mask_token_problem
from maskgrpo_plugin.models.weight_files import WeightFileError, shape_problem, stored_shapes
from maskgrpo_plugin.tables import Ignored, check_ignored

logger = logging.getLogger(__name__)

SECTION = "actor_rollout_ref.model"
ALL_LINEAR = "all-linear"
ATTENTION = "attn_implementation"
FURTHER_OVERRIDES = (  # keys that verl and the plugin read and a config need not have
    ATTENTION,
    "attend_to_padding",
    "codebook_size",
    "family",
    "logits_shift",
    "mask_token_id",
    "max_text_length",
    "num_new_special_tokens",
    "num_vq_tokens",
    "special_token_ids",
    "system_prompts",
)
MAPPINGS = ("special_token_ids", "system_prompts")
OWN_LAYERS = "the model's layers are the plugin's own"
IGNORED = {
    "use_liger": Ignored((False,), OWN_LAYERS),
    "tiled_mlp.enabled": Ignored((False,), OWN_LAYERS),
    "mtp.enable": Ignored((False,), "a mask predictor predicts all tokens at once"),
    "lora.rank": Ignored((0,), f"it is Megatron's; use {SECTION}.lora_rank"),
    "lora.dropout": Ignored((0.0,), "verl's FSDP engine has no dropout of an adapter"),
    "lora.adapter_path": Ignored((None,), f"it is Megatron's; use {SECTION}.lora_adapter_path"),
}


def check_model(config: DictConfig) -> None:
    """Check `actor_rollout_ref.model` of a run; names on the hub are not looked up.

    Raises:
        OptionError: the first value that cannot work.
    """
    model = config.actor_rollout_ref.model
    is_diffusion = model.model_type == "masked_diffusion"
    _check_adapter(model)
    targets = _plain(model.target_modules)
    if not isinstance(targets, str | list | None):
        raise OptionError(f"{SECTION}.target_modules", targets, f"allowed: a list of names, a pattern, or {ALL_LINEAR}")
    if is_diffusion:
        check_ignored(config, SECTION, IGNORED)
    _check_library(model.get("external_lib"))
    path = os.path.expanduser(str(model.path))
    if not os.path.isdir(path):
        looks_like_hub_name = re.fullmatch(r"[\w.-]+/[\w.-]+", str(model.path)) is not None
        if not looks_like_hub_name or os.path.isabs(path):
            raise OptionError(f"{SECTION}.path", str(model.path), "the folder does not exist")
        return
    config_file = Path(path) / "config.json"
    if not config_file.is_file():
        raise OptionError(f"{SECTION}.path", path, "the folder holds no config.json")
    try:
        published = json.loads(config_file.read_text())
        kind = published.get("model_type")
    except (ValueError, AttributeError) as error:
        raise OptionError(f"{SECTION}.path", path, f"its config.json cannot be read: {error}") from None
    if is_diffusion != (kind in MODELS):
        allowed = f"masked_diffusion needs model_type {' or '.join(sorted(MODELS))}"
        if not is_diffusion:
            allowed = f"set {SECTION}.model_type=masked_diffusion for this checkpoint"
        code = "; code in the folder is not run" if published.get("auto_map") and kind not in MODELS else ""
        raise OptionError(f"{SECTION}.path", path, f"it is a {kind!r} checkpoint; {allowed}{code}")
    checkpoint = _checkpoint_config(model, path)
    tokenizer = _tokenizer(model, path)
    if is_diffusion:
        _check_mask_predictor(model, checkpoint, published, tokenizer, path)
    else:
        _check_vocabulary(checkpoint, tokenizer, getattr(checkpoint, "vocab_size", None))
    _check_positions(config, checkpoint)
    _check_weights(model, checkpoint, path)


def linear_layer_names(config: PretrainedConfig) -> list[str]:
    """Names of the linear layers of a model, which LoRA can adapt; the model is built without memory."""
    names = [name.rpartition(".")[2] for name in _linear_layers(_without_memory(config))]
    return list(dict.fromkeys(names))


def load_tokenizer(model: DictConfig) -> Any:
    """The tokenizer of a run's checkpoint in a folder, with the run's chat template.

    Raises:
        OptionError: there is none.
    """
    return _tokenizer(model, os.path.expanduser(str(model.path)))


def _without_memory(config: PretrainedConfig) -> nn.Module:
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


def _linear_layers(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]


def _check_library(name: Any) -> None:
    for library in [name] if isinstance(name, str) else list(name or []):
        try:
            importlib.import_module(library)
        except Exception as error:
            message = f"it cannot be imported: {first_line(error)}"
            raise OptionError(f"{SECTION}.external_lib", library, message) from None


def _checkpoint_config(model: DictConfig, path: str) -> PretrainedConfig:
    """The checkpoint's config with the run's `override_config`, as verl makes it."""
    values: Any = OmegaConf.to_container(model.override_config, resolve=True) if model.override_config else {}
    values = values.get("model_config", values)
    try:
        checkpoint = AutoConfig.from_pretrained(os.path.expanduser(str(model.get("hf_config_path") or path)))
    except (ValueError, OSError) as error:
        key = "hf_config_path" if model.get("hf_config_path") else "path"
        raise OptionError(f"{SECTION}.{key}", model[key], first_line(error)) from None
    for key, value in values.items():
        _check_override(checkpoint, key, value)
    override(checkpoint, {key: value for key, value in values.items() if key != ATTENTION})
    return checkpoint


def _check_override(checkpoint: PretrainedConfig, key: str, value: Any) -> None:
    full = f"{SECTION}.override_config.{key}"
    if key == ATTENTION:
        names = ("eager", *ALL_ATTENTION_FUNCTIONS.keys(), *(("auto",) if checkpoint.model_type in MODELS else ()))
        if value not in names:
            raise OptionError(full, value, f"allowed: {', '.join(sorted(names))}")
    elif not hasattr(checkpoint, key) and key not in FURTHER_OVERRIDES:
        near = nearest(key, [*checkpoint.to_dict(), *FURTHER_OVERRIDES])
        if near:
            raise OptionError(full, value, f"the checkpoint's config has no such key; did you mean {near}?")
        logger.warning("%s=%r: the checkpoint's config has no such key", full, value)
    elif key in MAPPINGS and not isinstance(value, Mapping):
        raise OptionError(full, value, f"allowed: a mapping; set its keys, as in {full}.<key>=<value>")
    else:
        before = getattr(checkpoint, key, None)
        is_number = isinstance(before, int | float) and not isinstance(before, bool)
        if is_number and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise OptionError(full, value, f"allowed: a number, such as the checkpoint's {before}")
        if isinstance(before, bool) and not isinstance(value, bool):
            raise OptionError(full, value, "allowed: true or false")


def _tokenizer(model: DictConfig, path: str) -> Any:
    folder = os.path.expanduser(str(model.tokenizer_path or path))
    key = "tokenizer_path" if model.tokenizer_path else "path"
    if not os.path.isdir(folder) and os.path.isabs(folder):
        raise OptionError(f"{SECTION}.{key}", folder, "the folder does not exist")
    try:
        tokenizer = _load_tokenizer(folder, _newest(folder))
    except Exception as error:
        raise OptionError(f"{SECTION}.{key}", folder, f"no tokenizer: {first_line(error)}") from None
    if model.get("custom_chat_template") is not None:
        tokenizer = copy.copy(tokenizer)
        tokenizer.chat_template = model.custom_chat_template
    if not tokenizer.chat_template:
        allowed = "the tokenizer has no chat template; give one in actor_rollout_ref.model.custom_chat_template"
        raise OptionError(f"{SECTION}.{key}", folder, allowed)
    return tokenizer


@lru_cache(maxsize=8)
def _load_tokenizer(folder: str, modified: int) -> Any:
    """The tokenizer of a folder; read again once a file of the folder is newer."""
    return AutoTokenizer.from_pretrained(folder)


def _newest(folder: str) -> int:
    return max((file.stat().st_mtime_ns for file in Path(folder).glob("*.json")), default=0)


def _check_mask_predictor(
    model: DictConfig, checkpoint: PretrainedConfig, published: Mapping[str, Any], tokenizer: Any, path: str
) -> None:
    """The family knows the checkpoint, its mask token is one, its special tokens fit it, and it can be trained."""
    made_for, length = block_length_of(AutoConfig.from_pretrained(path)), block_length_of(checkpoint)
    if length is not None and (not isinstance(length, int) or isinstance(length, bool) or length < 1):
        named = [name for name, value in (model.get("override_config") or {}).items() if value == length]
        key, given = (f"override_config.{named[0]}", length) if named else ("path", path)
        raise OptionError(f"{SECTION}.{key}", given, f"blocks of {length!r} tokens; allowed: whole numbers from 1")
    if made_for != length and made_for is not None:
        logger.warning("%s: the checkpoint was made for blocks of %d tokens, not %s", SECTION, made_for, length)
    _check_attention((model.get("override_config") or {}).get(ATTENTION), length)
    try:
        family = find_family(checkpoint, tokenizer)
        vocabulary = family.vocabulary_size(checkpoint)
    except ValueError as error:
        raise OptionError(f"{SECTION}.path", path, str(error)) from None
    override = (model.get("override_config") or {}).get("mask_token_id")
    mask_token_id = published.get("mask_token_id") if override is None else override
    if mask_token_id is None and getattr(checkpoint, "mask_token_id", None) is None:
        mask_token_id = family.default_mask_token_id(tokenizer)
    problem = mask_token_problem(mask_token_id, vocabulary, tokenizer)
    if problem:
        raise OptionError(f"{SECTION}.override_config.mask_token_id", mask_token_id, problem)
    _check_vocabulary(checkpoint, tokenizer, vocabulary)
    try:
        family(checkpoint, tokenizer)
    except (ValueError, TypeError) as error:
        raise OptionError(f"{SECTION}.path", path, str(error)) from None


def _check_attention(attention: Any, block_length: int | None) -> None:
    """The implementation of attention that a run names computes the model's, and its gradients."""
    allowed = None
    if block_length is not None and "flash" in str(attention):
        allowed = f"auto, sdpa, eager: the model attends in blocks of {block_length}, by a mask of queries and keys"
    elif attention == "flex_attention" and block_length is None:
        allowed = "auto, sdpa, eager, flash_attention_2: flex attention is for models that attend in blocks"
    elif attention == "flex_attention" and get_device_name() == "cpu":
        allowed = "auto, sdpa, eager: flex attention has no backward pass on the CPU"
    if allowed is not None:
        raise OptionError(f"{SECTION}.override_config.{ATTENTION}", attention, f"allowed: {allowed}")


def _check_vocabulary(checkpoint: PretrainedConfig, tokenizer: Any, rows: int | None) -> None:
    """Every id that the tokenizer can give has a row of the embedding."""
    vocabulary = tokenizer.get_vocab()
    outside = [token for token, number in vocabulary.items() if rows is not None and number >= rows]
    if outside:
        largest = max(vocabulary.values())
        allowed = (
            f"the tokenizer has {len(outside)} tokens outside the checkpoint's embedding of {rows} rows, such as "
            f"{outside[0]!r} (its largest id is {largest})"
        )
        raise OptionError(f"{SECTION}.tokenizer_path", str(tokenizer.name_or_path), allowed)


def _check_positions(config: DictConfig, checkpoint: PretrainedConfig) -> None:
    length = config.data.max_prompt_length + config.data.max_response_length
    longest = getattr(checkpoint, "max_position_embeddings", None)
    if longest and length > longest:
        raise OptionError(
            "data.max_response_length",
            config.data.max_response_length,
            f"with data.max_prompt_length={config.data.max_prompt_length} it passes the model's {longest} positions",
        )


def _check_weights(model: DictConfig, checkpoint: PretrainedConfig, path: str) -> None:
    """The checkpoint's tensors are those of the config, and LoRA's targets are layers of the model."""
    is_diffusion = model.model_type == "masked_diffusion"
    changed = {key: value for key, value in (model.override_config or {}).items() if key != ATTENTION}
    key, value = (f"{SECTION}.override_config", changed) if changed else (f"{SECTION}.path", path)
    if not is_diffusion and model.lora_rank == 0:
        empty = None
    else:
        try:
            empty = _without_memory(checkpoint)
        except Exception as error:  # the constructors of other people's models
            raise OptionError(key, value, f"no model by that config: {first_line(error)}") from None
        if model.lora_rank > 0:
            _check_targets(model, empty)
    try:
        stored = stored_shapes(path)
    except (WeightFileError, OSError) as error:
        raise OptionError(f"{SECTION}.path", path, str(error)) from None
    if stored is None or empty is None or not is_diffusion:
        return  # other architectures may be stored under other names, which transformers knows
    tied = set(getattr(empty, "all_tied_weights_keys", None) or ())
    parameters = {name: parameter.data for name, parameter in empty.named_parameters() if name not in tied}
    needed = {name: tuple(p.shape) for name, p in revert_weight_conversion(empty, parameters).items()}
    problem = shape_problem(stored, needed)
    if problem:
        raise OptionError(key, value, problem)


def _check_adapter(model: DictConfig) -> None:
    """Rank and scale of a LoRA adapter, and the folder of one that is loaded."""
    check_number(f"{SECTION}.lora_rank", model.lora_rank, 0, whole=True)
    alpha = model.get("lora_alpha", 16)
    if model.lora_rank > 0 and not alpha > 0:
        raise OptionError(f"{SECTION}.lora_alpha", alpha, "allowed: more than 0, else nothing is learned")
    adapter = model.get("lora_adapter_path")
    if adapter is None:
        return
    if model.lora_rank == 0:
        allowed = f"{SECTION}.lora_adapter_path needs the rank of the adapter in its adapter_config.json"
        raise OptionError(f"{SECTION}.lora_rank", 0, allowed)
    if not (Path(str(adapter)).expanduser() / "adapter_config.json").is_file():
        raise OptionError(f"{SECTION}.lora_adapter_path", str(adapter), "the folder holds no adapter_config.json")


def _check_targets(model: DictConfig, empty: nn.Module) -> None:
    """`target_modules`, a list or a string, and `exclude_modules` leave linear layers of the model to adapt."""
    key, excluded_key = f"{SECTION}.target_modules", f"{SECTION}.exclude_modules"
    targets, excluded = _plain(model.target_modules), _plain(model.get("exclude_modules"))
    _check_pattern(key, targets)
    _check_pattern(excluded_key, excluded)
    layers = _linear_layers(empty)
    names = list(dict.fromkeys(name.rpartition(".")[2] for name in layers))
    has = f"a block has {', '.join(names)}"
    if not targets:
        raise OptionError(key, targets, f"name layers, or {ALL_LINEAR}; {has}")
    if not isinstance(targets, str):
        unknown = [name for name in targets if not any(_is_target([name], layer) for layer in layers)]
        if unknown:
            raise OptionError(key, unknown, has)
    found = layers if targets == ALL_LINEAR else [layer for layer in layers if _is_target(targets, layer)]
    if not found:
        raise OptionError(key, targets, f"as a pattern it fits no whole name of a layer; {has}, or {ALL_LINEAR}")
    if excluded and all(_is_target(excluded, layer) for layer in found):
        raise OptionError(excluded_key, excluded, "it leaves no layer to adapt")


def _plain(value: Any) -> Any:
    return OmegaConf.to_container(value) if OmegaConf.is_config(value) else value


def _is_target(targets: Any, layer: str) -> bool:
    """Whether peft takes a layer, by its full name, for one of `targets`; a string is a pattern of the whole name."""
    if isinstance(targets, str):
        return re.fullmatch(targets, layer) is not None
    return any(layer == name or layer.endswith(f".{name}") for name in targets)


def _check_pattern(key: str, pattern: Any) -> None:
    try:
        if isinstance(pattern, str):
            re.compile(pattern)
    except re.error as error:
        raise OptionError(key, pattern, f"no regular expression: {error}") from None
