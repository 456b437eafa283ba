"""A run's `override_config`: keys that replace those of a checkpoint's config."""

from collections.abc import Mapping
from typing import Any

from transformers import PretrainedConfig


def override(config: PretrainedConfig, values: Mapping[str, Any]) -> None:
    """Set a config's keys in place.

    A mapping goes into what the config has: into a config within it (`text_config`), or into another mapping, whose
    further keys stay. The `system_prompts` {"text_to_image": "draw"} and the value {"understanding": "look"} give both.

    Args:
        config: the checkpoint's.
        values: by key.
    """
    for key, value in values.items():
        before = getattr(config, key, None)
        if not isinstance(value, Mapping):
            setattr(config, key, value)
        elif isinstance(before, PretrainedConfig):
            override(before, value)
        else:
            setattr(config, key, {**(before if isinstance(before, Mapping) else {}), **value})
