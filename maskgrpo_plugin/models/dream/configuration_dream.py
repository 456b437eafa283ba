"""Dream's config: the published keys, which are Qwen2's with a mask token."""

from transformers import Qwen2Config

from maskgrpo_plugin.models.decoder import PublishedConfig


class DreamConfig(PublishedConfig, Qwen2Config):
    """Settings of a Dream model.

    Args:
        mask_token_id: id of the mask token; 151666 in the published checkpoints.
        logits_shift: 1, since Dream grew from an autoregressive model: the logits of a token stand one position before.
    """

    model_type = "Dream"
    mask_token_id: int | None = None
    logits_shift: int = 1
