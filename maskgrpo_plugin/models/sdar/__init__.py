"""SDAR (arXiv 2510.06303), dense and with experts: configs and models with the published keys and names."""

from maskgrpo_plugin.models.sdar.configuration_sdar import SDARConfig, SDARMoeConfig
from maskgrpo_plugin.models.sdar.modeling_sdar import SDARForCausalLM, SDARMoeForCausalLM

__all__ = ["SDARConfig", "SDARForCausalLM", "SDARMoeConfig", "SDARMoeForCausalLM"]
