"""A2D: Qwen2 and Qwen3 of transformers with attention in both directions, or block by block."""

from transformers import Qwen2ForCausalLM, Qwen3ForCausalLM

from maskgrpo_plugin.models.a2d.configuration_a2d import A2DQwen2Config, A2DQwen3Config
from maskgrpo_plugin.models.decoder import BlockMaskPredictor
from maskgrpo_plugin.models.registry import register_model


class A2DQwen2LMHeadModel(BlockMaskPredictor, Qwen2ForCausalLM):
    """Qwen2 that predicts masked tokens, under the published class name."""

    config_class = A2DQwen2Config


class A2DQwen3LMHeadModel(BlockMaskPredictor, Qwen3ForCausalLM):
    """Qwen3 that predicts masked tokens, under the published class name."""

    config_class = A2DQwen3Config


register_model(A2DQwen2Config, A2DQwen2LMHeadModel)
register_model(A2DQwen3Config, A2DQwen3LMHeadModel)
