"""Rewards of images: a registry of scorers, the scorers, and verl's reward manager over them."""

from maskgrpo_plugin.rewards.images import scorers  # noqa: F401  (importing registers them)
from maskgrpo_plugin.rewards.images.registry import (
    ScorerEntry,
    ScorerFactory,
    build_scorer,
    check_option_names,
    get_scorer,
    register_scorer,
    scorer_kinds,
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
    "register_scorer",
    "scorer_kinds",
]
