"""Rewards of images: a registry of scorers. Making one may need heavy libraries; importing this needs none."""

from maskgrpo_plugin.rewards.images.registry import (
    ScorerEntry,
    ScorerFactory,
    build_scorer,
    check_option_names,
    get_scorer,
    load_object,
    register_scorer,
    resolve,
    scorers,
)
from maskgrpo_plugin.rewards.images.sample import ImageSample, ImageScorer, ScorerUnavailable

__all__ = [
    "ImageSample",
    "ImageScorer",
    "ScorerEntry",
    "ScorerFactory",
    "ScorerUnavailable",
    "build_scorer",
    "check_option_names",
    "get_scorer",
    "load_object",
    "register_scorer",
    "resolve",
    "scorers",
]
