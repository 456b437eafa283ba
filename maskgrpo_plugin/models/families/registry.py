"""The families that are known, and which of them a checkpoint belongs to."""

from transformers import PretrainedConfig, PreTrainedTokenizerBase

from maskgrpo_plugin.models.families.base import Family
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
