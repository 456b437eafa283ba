"""Text models that need nothing of their own: the mask token and the end tokens are those of config and tokenizer."""

from transformers import PretrainedConfig, PreTrainedTokenizerBase

from maskgrpo_plugin.models.families.base import Family
from maskgrpo_plugin.models.registry import MODELS


class TextFamily(Family):
    """Every registered model that no other family recognises."""

    name = "text"
    model_types = ()

    @classmethod
    def recognises(cls, config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase) -> bool:
        """Whether a mask predictor is registered for the checkpoint."""
        return config.model_type in MODELS
