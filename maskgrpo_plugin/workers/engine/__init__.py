"""Training engines of the plugin; importing the package adds them to verl's engine registry."""

from verl.workers.engine.base import EngineRegistry

from maskgrpo_plugin.registry import Registered
from maskgrpo_plugin.workers.engine.masked_diffusion import MaskedDiffusionEngine
from maskgrpo_plugin.workers.engine.on_cpu import CPULanguageModelEngine

REGISTERS = (
    Registered("engine masked_diffusion", lambda: "masked_diffusion" in EngineRegistry._engines),
    Registered(
        "engine language_model on the CPU",
        lambda: EngineRegistry._engines["language_model"]["fsdp2"].get("cpu") is CPULanguageModelEngine,
    ),
)

__all__ = ["REGISTERS", "CPULanguageModelEngine", "MaskedDiffusionEngine"]
