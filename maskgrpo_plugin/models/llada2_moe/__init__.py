"""LLaDA2 (arXiv 2512.15745): config and model with the published keys and names."""

from maskgrpo_plugin.models.llada2_moe.configuration_llada2_moe import LLaDA2MoeConfig
from maskgrpo_plugin.models.llada2_moe.modeling_llada2_moe import LLaDA2MoeModelLM

__all__ = ["LLaDA2MoeConfig", "LLaDA2MoeModelLM"]
