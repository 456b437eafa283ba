"""Native transformers models that load published checkpoints of masked diffusion models."""

from importlib import import_module
from pkgutil import iter_modules


def register() -> None:
    """Import every model of this folder, which makes transformers know it (`registry.register_model`); idempotent."""
    for module in iter_modules(__path__):
        if module.ispkg:
            import_module(f"{__name__}.{module.name}")
