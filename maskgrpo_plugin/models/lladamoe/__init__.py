"""LLaDA-MoE (arXiv 2509.24389): config and model with the published keys and names."""

from maskgrpo_plugin.models.lladamoe.configuration_lladamoe import LLaDAMoEConfig
from maskgrpo_plugin.models.lladamoe.modeling_lladamoe import LLaDAMoEModelLM

__all__ = ["LLaDAMoEConfig", "LLaDAMoEModelLM"]
