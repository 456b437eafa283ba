"""MMaDA (arXiv 2505.15809): LLaDA's layout with image tokens behind the text vocabulary."""

from maskgrpo_plugin.models.mmada.configuration_mmada import MMadaConfig
from maskgrpo_plugin.models.mmada.modeling_mmada import MMadaModelLM

__all__ = ["MMadaConfig", "MMadaModelLM"]
