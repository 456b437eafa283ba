"""The families that are known, and which of them a checkpoint belongs to."""

import json
import os
from functools import lru_cache
from typing import Any

from omegaconf import OmegaConf
from transformers import AutoConfig, PretrainedConfig, PreTrainedTokenizerBase

from maskgrpo_plugin.models.families.base import Family
from maskgrpo_plugin.models.overrides import override
from maskgrpo_plugin.models.registry import MODELS

FAMILIES: dict[str, type[Family]] = {}


def register_family(family: type[Family]) -> type[Family]:
    """Make a family known by its `name`; also a class decorator.

    The family that was registered last is asked first whether it recognises a checkpoint. A module that calls this
    must be imported in driver and workers.

    Raises:
        ValueError: another class has that name.
    """
    known = FAMILIES.get(family.name, family)
    if (known.__module__, known.__qualname__) != (family.__module__, family.__qualname__):
        raise ValueError(f"family {family.name!r}: the name is {known.__module__}.{known.__qualname__}'s")
    FAMILIES[family.name] = family
    return family


def find_family(config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase) -> type[Family]:
    """The family of a checkpoint.

    Args:
        config: the checkpoint's; its optional key `family` names the family outright.
        tokenizer: the checkpoint's.

    Raises:
        ValueError: no family knows the checkpoint.
    """
    named = getattr(config, "family", None)
    if named is not None and named not in FAMILIES:
        raise ValueError(f"config family={named!r}: allowed are {', '.join(FAMILIES)}")
    if named is not None:
        return FAMILIES[named]
    for family in reversed(FAMILIES.values()):
        if family.recognises(config, tokenizer):
            return family
    raise ValueError(f"no family for model_type {config.model_type!r}: allowed are {', '.join(sorted(MODELS))}")


def build_family(config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase) -> Family:
    """The family of a checkpoint, bound to its numbers; see `find_family`.

    Raises:
        ValueError: no family knows the checkpoint, or its numbers do not fit its family.
    """
    return find_family(config, tokenizer)(config, tokenizer)


def load_family(model: Any, tokenizer: PreTrainedTokenizerBase) -> Family:
    """The family of a run's checkpoint; kept, since every completion asks for it.

    Args:
        model: the run's `actor_rollout_ref.model`: the `path` of a folder or a name on the hub, and `override_config`,
            keys that replace those of its config.json.
        tokenizer: the checkpoint's.

    Raises:
        ValueError: see `build_family`.
    """
    given = model.get("override_config") or {}
    values = OmegaConf.to_container(given, resolve=True) if OmegaConf.is_config(given) else given
    return _load_family(os.path.expanduser(str(model.path)), json.dumps(values, sort_keys=True), tokenizer)


@lru_cache(maxsize=4)
def _load_family(path: str, values: str, tokenizer: PreTrainedTokenizerBase) -> Family:
    config = AutoConfig.from_pretrained(path)
    override(config, json.loads(values))
    return build_family(config, tokenizer)
