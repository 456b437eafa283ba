"""LLaDA2: GLM-4-MoE of transformers with attention block by block, under LLaDA2's names in checkpoints.

Both choose experts by sigmoid scores, with a balancing bias that counts for the choice alone and a limit on the groups
of experts; normalise queries and keys per head; and rotate a part of each head. In the model, queries, keys and values
have a layer each (`q_proj`, `k_proj`, `v_proj`, which LoRA's targets name); in checkpoints they are one tensor.
"""

from typing import Any

import torch
from torch import Tensor
from transformers import Glm4MoeForCausalLM
from transformers.core_model_loading import Concatenate, ConversionOps, WeightConverter, WeightRenaming
from transformers.models.glm4_moe.modeling_glm4_moe import Glm4MoeMoE, Glm4MoeTopkRouter

from maskgrpo_plugin.models.decoder import BlockMaskPredictor
from maskgrpo_plugin.models.experts import ExpertsMixin, linear_in_float32, register_expert_names
from maskgrpo_plugin.models.llada2_moe.configuration_llada2_moe import LLaDA2MoeConfig
from maskgrpo_plugin.models.registry import register_model


class Float32BiasedRouter(Glm4MoeTopkRouter):
    """GLM-4-MoE's router, in float32 also under automatic casts; its balancing bias is a buffer that is kept."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        """(…, D) -> logits (N, experts) float32."""
        return linear_in_float32(hidden_states.reshape(-1, self.config.hidden_size), self.weight)


class LLaDA2MoeModelLM(ExpertsMixin, BlockMaskPredictor, Glm4MoeForCausalLM):
    """LLaDA2 with its head, under the published class name: a block-causal mask predictor."""

    config_class = LLaDA2MoeConfig
    _keys_to_ignore_on_load_unexpected = None

    def __init__(self, config: Any):
        super().__init__(config)
        for module in self.modules():
            if isinstance(module, Glm4MoeMoE):
                router = Float32BiasedRouter(config)
                router.weight = module.gate.weight
                router.e_score_correction_bias = module.gate.e_score_correction_bias
                module.gate, module.norm_topk_prob = router, True


class SplitQueriesKeysValues(ConversionOps):
    """One projection to the heads of queries, keys and values -> one each, by the config's numbers of heads."""

    @torch.no_grad()
    def convert(
        self,
        input_dict: dict[str, Any],
        source_patterns: list[str],
        target_patterns: list[str],
        config: Any = None,
        **_: Any,
    ) -> dict[str, Tensor]:
        """{name: (rows, D)} -> {name: (its rows, D)} for the three `target_patterns`."""
        (given,) = input_dict.values()
        fused = given[0] if isinstance(given, list) else given
        heads = (config.num_attention_heads, config.num_key_value_heads, config.num_key_value_heads)
        parts = fused.split([count * config.head_dim for count in heads])
        return dict(zip(target_patterns, (part.contiguous() for part in parts), strict=True))

    @property
    def reverse_op(self) -> ConversionOps:
        """The three in one again."""
        return Concatenate(0)


register_model(LLaDA2MoeConfig, LLaDA2MoeModelLM)
register_expert_names(
    LLaDA2MoeConfig.model_type,
    [
        WeightRenaming("word_embeddings", "embed_tokens"),
        WeightRenaming("attention.dense", "self_attn.o_proj"),
        WeightRenaming("attention.query_layernorm", "self_attn.q_norm"),
        WeightRenaming("attention.key_layernorm", "self_attn.k_norm"),
        WeightRenaming("gate.expert_bias", "gate.e_score_correction_bias"),
        WeightConverter(
            source_patterns="attention.query_key_value.weight",
            target_patterns=["self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight"],
            operations=[SplitQueriesKeysValues()],
        ),
    ],
)
