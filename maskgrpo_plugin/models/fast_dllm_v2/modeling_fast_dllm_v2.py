"""Fast-dLLM v2: Qwen2 of transformers with attention block by block."""

from typing import Any

from transformers import Qwen2ForCausalLM

from maskgrpo_plugin.models.decoder import BlockMaskPredictor
from maskgrpo_plugin.models.fast_dllm_v2.configuration_fast_dllm_v2 import Fast_dLLM_QwenConfig
from maskgrpo_plugin.models.registry import register_model


class Fast_dLLM_QwenForCausalLM(BlockMaskPredictor, Qwen2ForCausalLM):
    """Fast-dLLM v2, under the published class name: a block-causal mask predictor whose logits are shifted."""

    config_class = Fast_dLLM_QwenConfig

    @staticmethod
    def block_length_of(config: Any) -> int | None:
        """The config's `bd_size`; see `MaskPredictorModel`."""
        return config.bd_size


register_model(Fast_dLLM_QwenConfig, Fast_dLLM_QwenForCausalLM)
