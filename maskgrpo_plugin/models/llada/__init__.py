"""LLaDA (arXiv 2502.09992): config and model with the published keys and weight names."""

from maskgrpo_plugin.models.llada.configuration_llada import LLaDAConfig
from maskgrpo_plugin.models.llada.modeling_llada import LLaDAModelLM

__all__ = ["LLaDAConfig", "LLaDAModelLM"]
