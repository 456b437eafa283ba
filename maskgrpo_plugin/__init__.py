"""MaskGRPO for verl: importing the package makes its models known to transformers and nothing else."""

from maskgrpo_plugin.models import register as _register_models
from maskgrpo_plugin.version import __version__

_register_models()

__all__ = ["__version__"]
