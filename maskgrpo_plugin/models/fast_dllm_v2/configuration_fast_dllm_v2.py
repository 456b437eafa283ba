"""Fast-dLLM v2's config: the published keys, which are Qwen2's with the length of its blocks."""

from transformers import Qwen2Config

from maskgrpo_plugin.models.decoder import PublishedConfig


class Fast_dLLM_QwenConfig(PublishedConfig, Qwen2Config):
    """Settings of a Fast-dLLM v2 model.

    Args:
        mask_token_id: id of the mask token; 151665 in the published checkpoints.
        bd_size: tokens per block; 32 in the published checkpoints.
        logits_shift: 1: the logits of a token stand one position before it.
    """

    model_type = "Fast_dLLM_Qwen"
    mask_token_id: int | None = None
    bd_size: int = 32
    logits_shift: int = 1
