"""SDAR: Qwen3 and Qwen3-MoE of transformers with attention block by block."""

from typing import Any

from transformers import Qwen3ForCausalLM, Qwen3MoeForCausalLM

from maskgrpo_plugin.models.decoder import BlockMaskPredictor
from maskgrpo_plugin.models.experts import ExpertsMixin, register_expert_names, route_in_float32
from maskgrpo_plugin.models.registry import register_model
from maskgrpo_plugin.models.sdar.configuration_sdar import SDARConfig, SDARMoeConfig


class SDARForCausalLM(BlockMaskPredictor, Qwen3ForCausalLM):
    """SDAR, under the published class name: a block-causal mask predictor."""

    config_class = SDARConfig


class SDARMoeForCausalLM(ExpertsMixin, BlockMaskPredictor, Qwen3MoeForCausalLM):
    """SDAR with experts, under the published class name: a block-causal mask predictor."""

    config_class = SDARMoeConfig

    def __init__(self, config: Any):
        super().__init__(config)
        route_in_float32(self, config, normalise=config.norm_topk_prob)


register_model(SDARConfig, SDARForCausalLM)
register_model(SDARMoeConfig, SDARMoeForCausalLM)
register_expert_names(SDARMoeConfig.model_type)
