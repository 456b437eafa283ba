"""Training engines of the plugin; importing the package adds them to verl's engine registry."""

from maskgrpo_plugin.workers.engine.masked_diffusion import MaskedDiffusionEngine
from maskgrpo_plugin.workers.engine.on_cpu import CPULanguageModelEngine

__all__ = ["CPULanguageModelEngine", "MaskedDiffusionEngine"]
