"""What differs between families of masked diffusion models, one file per family: special tokens and prompts."""

from maskgrpo_plugin.models.families.base import Family, ImageFamily, ImageTokens, Prompt
from maskgrpo_plugin.models.families.dimoo import DiMOOFamily
from maskgrpo_plugin.models.families.dream import DreamFamily
from maskgrpo_plugin.models.families.fast_dllm_v2 import FastDLLMFamily
from maskgrpo_plugin.models.families.llada import LLaDAFamily
from maskgrpo_plugin.models.families.llada_moe import LLaDAMoEFamily
from maskgrpo_plugin.models.families.mmada import MMaDAFamily
from maskgrpo_plugin.models.families.registry import (
    FAMILIES,
    build_family,
    find_family,
    load_family,
    register_family,
)
from maskgrpo_plugin.models.families.sdar import SDARFamily
from maskgrpo_plugin.models.families.text import TextFamily

# asked from the last to the first: a family that shares its model_type with a plainer one comes after it
for _family in (
    TextFamily,
    DreamFamily,
    SDARFamily,
    LLaDAMoEFamily,
    FastDLLMFamily,
    LLaDAFamily,
    DiMOOFamily,
    MMaDAFamily,
):
    register_family(_family)

__all__ = [
    "FAMILIES",
    "DiMOOFamily",
    "DreamFamily",
    "Family",
    "FastDLLMFamily",
    "ImageFamily",
    "ImageTokens",
    "LLaDAFamily",
    "LLaDAMoEFamily",
    "MMaDAFamily",
    "Prompt",
    "SDARFamily",
    "TextFamily",
    "build_family",
    "find_family",
    "load_family",
    "register_family",
]
