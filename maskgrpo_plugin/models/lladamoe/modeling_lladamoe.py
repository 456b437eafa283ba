"""LLaDA-MoE: Qwen3-MoE of transformers with attention in both directions, and a shared expert where one is named."""

from typing import Any

from torch import Tensor
from transformers import Qwen3MoeForCausalLM
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeMLP, Qwen3MoeSparseMoeBlock

from maskgrpo_plugin.models.decoder import DecoderMaskPredictor
from maskgrpo_plugin.models.experts import ExpertsMixin, register_expert_names, route_in_float32
from maskgrpo_plugin.models.lladamoe.configuration_lladamoe import LLaDAMoEConfig
from maskgrpo_plugin.models.registry import register_model


class SharedExpertBlock(Qwen3MoeSparseMoeBlock):
    """Experts of which one is taken by all tokens, besides those that the router chooses."""

    def __init__(self, config: Any):
        super().__init__(config)
        self.shared_expert = Qwen3MoeMLP(config, intermediate_size=config.shared_expert_intermediate_size)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """(B, L, D) -> (B, L, D)."""
        return super().forward(hidden_states) + self.shared_expert(hidden_states)


class LLaDAMoEModelLM(ExpertsMixin, DecoderMaskPredictor, Qwen3MoeForCausalLM):
    """LLaDA-MoE with its head, under the published class name: a bidirectional mask predictor."""

    config_class = LLaDAMoEConfig

    def __init__(self, config: Any):
        super().__init__(config)
        if config.shared_expert_intermediate_size:
            for layer in self.model.layers:
                if isinstance(layer.mlp, Qwen3MoeSparseMoeBlock):
                    layer.mlp = SharedExpertBlock(config)
                    layer.mlp.apply(self._init_weights)
        route_in_float32(self, config, normalise=False)


register_model(LLaDAMoEConfig, LLaDAMoEModelLM)
register_expert_names(LLaDAMoEConfig.model_type)
