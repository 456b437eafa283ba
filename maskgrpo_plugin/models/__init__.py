"""Native transformers models that load published checkpoints of masked diffusion models."""

from functools import partial
from importlib import import_module
from operator import contains
from pkgutil import iter_modules

from transformers import CONFIG_MAPPING


def register() -> None:
    """Import every model of this folder, which makes transformers know it (`registry.register_model`); idempotent."""
    for module in iter_modules(__path__):
        if module.ispkg:
            import_module(f"{__name__}.{module.name}")


register()

from maskgrpo_plugin.models.registry import MODELS  # noqa: E402  (filled by the models)
from maskgrpo_plugin.registry import Registered  # noqa: E402

REGISTERS = tuple(Registered(f"model {name}", partial(contains, CONFIG_MAPPING, name)) for name in MODELS)
