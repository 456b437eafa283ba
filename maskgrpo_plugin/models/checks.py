"""Checks of a run's model section on the driver: checkpoint, mask token, positions, LoRA targets."""

import json
import os
import re
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, ListConfig
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PretrainedConfig

from maskgrpo_plugin.errors import OptionError
from maskgrpo_plugin.models.families import find_family
from maskgrpo_plugin.models.registry import MODELS
from maskgrpo_plugin.models.special_tokens import mask_token_problem

SECTION = "actor_rollout_ref.model"


def check_model(config: DictConfig) -> None:
    """Check `actor_rollout_ref.model` of a run; names on the hub are not looked up.

    Raises:
        OptionError: the first value that cannot work.
    """
    model = config.actor_rollout_ref.model
    path = os.path.expanduser(str(model.path))
    if not os.path.isdir(path):
        looks_like_hub_name = re.fullmatch(r"[\w.-]+/[\w.-]+", str(model.path)) is not None
        if not looks_like_hub_name or os.path.isabs(path):
            raise OptionError(f"{SECTION}.path", str(model.path), "the folder does not exist")
        return
    config_file = Path(path) / "config.json"
    if not config_file.is_file():
        raise OptionError(f"{SECTION}.path", path, "the folder holds no config.json")
    published = json.loads(config_file.read_text())
    kind, is_diffusion = published.get("model_type"), model.model_type == "masked_diffusion"
    if is_diffusion != (kind in MODELS):
        allowed = f"masked_diffusion needs model_type {' or '.join(sorted(MODELS))}"
        if not is_diffusion:
            allowed = f"set {SECTION}.model_type=masked_diffusion for this checkpoint"
        raise OptionError(f"{SECTION}.path", path, f"it is a {kind!r} checkpoint; {allowed}")
    if is_diffusion:
        _check_mask_predictor(config, published, path)


def linear_layer_names(config: PretrainedConfig) -> list[str]:
    """Names of the linear layers of a mask predictor, which LoRA can adapt; the model is built without memory."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    names = [name.rpartition(".")[2] for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    return list(dict.fromkeys(names))


def _check_mask_predictor(config: DictConfig, published: dict[str, Any], path: str) -> None:
    model = config.actor_rollout_ref.model
    try:
        checkpoint = AutoConfig.from_pretrained(path)
        tokenizer = AutoTokenizer.from_pretrained(os.path.expanduser(str(model.tokenizer_path or path)))
        vocabulary = find_family(checkpoint, tokenizer).vocabulary_size(checkpoint)
    except ValueError as error:
        raise OptionError(f"{SECTION}.path", path, str(error)) from None
    override = model.get("override_config", {}).get("mask_token_id")
    mask_token_id = published.get("mask_token_id") if override is None else override
    problem = mask_token_problem(mask_token_id, vocabulary, tokenizer)
    if problem:
        raise OptionError(f"{SECTION}.override_config.mask_token_id", mask_token_id, problem)
    length = config.data.max_prompt_length + config.data.max_response_length
    longest = getattr(checkpoint, "max_position_embeddings", None)
    if longest and length > longest:
        raise OptionError(
            "data.max_response_length",
            config.data.max_response_length,
            f"with data.max_prompt_length={config.data.max_prompt_length} it passes the model's {longest} positions",
        )
    targets = model.target_modules
    if model.get("lora_rank", 0) > 0 and isinstance(targets, ListConfig):
        layers = linear_layer_names(checkpoint)
        unknown = [name for name in targets if name not in layers]
        if unknown:
            raise OptionError(f"{SECTION}.target_modules", unknown, f"a block has {', '.join(layers)}")
