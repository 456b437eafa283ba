"""What differs between families of masked diffusion models, one file a family: tokens, prompts, logits."""

from typing import Any

from maskgrpo_plugin.models.families.base import Family, ImageFamily, ImageTokens, Prompt
from maskgrpo_plugin.models.families.dimoo import DiMOOFamily
from maskgrpo_plugin.models.families.llada import LLaDAFamily
from maskgrpo_plugin.models.families.mmada import MMaDAFamily

# the first that recognises a checkpoint has it: families that share a model_type come before the plain one
FAMILIES: dict[str, type[Family]] = {family.name: family for family in (MMaDAFamily, DiMOOFamily, LLaDAFamily)}


def build_family(config: Any, tokenizer: Any) -> Family:
    """The family of a checkpoint, bound to its numbers.

    Args:
        config: the checkpoint's transformers config; its optional key `family` names the family outright.
        tokenizer: its transformers tokenizer.

    Raises:
        ValueError: no family knows the checkpoint, or its numbers do not fit its family.
    """
    named = getattr(config, "family", None)
    if named is not None and named not in FAMILIES:
        raise ValueError(f"config family={named!r}: allowed are {', '.join(FAMILIES)}")
    for name, family in FAMILIES.items():
        if name == named or (named is None and family.recognises(config, tokenizer)):
            return family(config, tokenizer)
    kinds = sorted({kind for family in FAMILIES.values() for kind in family.model_types})
    raise ValueError(f"no family for model_type {config.model_type!r}: allowed are {', '.join(kinds)}")


__all__ = [
    "FAMILIES",
    "DiMOOFamily",
    "Family",
    "ImageFamily",
    "ImageTokens",
    "LLaDAFamily",
    "MMaDAFamily",
    "Prompt",
    "build_family",
]
