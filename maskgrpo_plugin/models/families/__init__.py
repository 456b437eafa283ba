"""What differs between families of masked diffusion models, one file per family: special tokens and prompts."""

from maskgrpo_plugin.models.families.base import Family, ImageFamily, ImageTokens, Prompt
from maskgrpo_plugin.models.families.dimoo import DiMOOFamily
from maskgrpo_plugin.models.families.llada import LLaDAFamily
from maskgrpo_plugin.models.families.mmada import MMaDAFamily
from maskgrpo_plugin.models.families.registry import (
    FAMILIES,
    build_family,
    find_family,
    load_family,
    register_family,
)
from maskgrpo_plugin.models.families.text import TextFamily

# asked from the last to the first: a family that shares its model_type with a plainer one comes after it
for _family in (TextFamily, LLaDAFamily, DiMOOFamily, MMaDAFamily):
    register_family(_family)

__all__ = [
    "FAMILIES",
    "DiMOOFamily",
    "Family",
    "ImageFamily",
    "ImageTokens",
    "LLaDAFamily",
    "MMaDAFamily",
    "Prompt",
    "TextFamily",
    "build_family",
    "find_family",
    "load_family",
    "register_family",
]
