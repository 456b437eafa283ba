"""Dream: Qwen2 of transformers with attention in both directions."""

from transformers import Qwen2ForCausalLM

from maskgrpo_plugin.models.decoder import DecoderMaskPredictor
from maskgrpo_plugin.models.dream.configuration_dream import DreamConfig
from maskgrpo_plugin.models.registry import register_model


class DreamModel(DecoderMaskPredictor, Qwen2ForCausalLM):
    """Dream with its head, under the published class name: a bidirectional mask predictor whose logits are shifted."""

    config_class = DreamConfig


register_model(DreamConfig, DreamModel)
