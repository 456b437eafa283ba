"""Configs of A2D models: the published keys, which are Qwen2's and Qwen3's, and the length of their blocks."""

from transformers import Qwen2Config, Qwen3Config

from maskgrpo_plugin.models.decoder import PublishedConfig


class A2DQwen2Config(PublishedConfig, Qwen2Config):
    """Settings of a Qwen2 model that predicts masked tokens.

    Args:
        mask_token_id: id of the mask token; None, as published: the tokenizer's.
        block_size: None, as published: attention in both directions. A checkpoint that was trained block by block
            (BD3LM) is given its block length here; the folder does not tell.
    """

    model_type = "a2d-qwen2"
    mask_token_id: int | None = None
    block_size: int | None = None


class A2DQwen3Config(PublishedConfig, Qwen3Config):
    """Settings of a Qwen3 model that predicts masked tokens; see `A2DQwen2Config`."""

    model_type = "a2d-qwen3"
    mask_token_id: int | None = None
    block_size: int | None = None
