"""Sections of a run's config as plain data."""

from typing import Any

from omegaconf import OmegaConf


def plain(section: Any) -> Any:
    """A section of a composed config as dicts, lists and numbers, interpolations resolved; anything else as it is."""
    return OmegaConf.to_container(section, resolve=True) if OmegaConf.is_config(section) else section
