"""Configs of SDAR models: the published keys, which are Qwen3's and Qwen3-MoE's, with the length of their blocks."""

from transformers import Qwen3Config, Qwen3MoeConfig

from maskgrpo_plugin.models.decoder import PublishedConfig


class SDARConfig(PublishedConfig, Qwen3Config):
    """Settings of a dense SDAR model, also of TraDo.

    Args:
        mask_token_id: id of the mask token; 151669 in the published checkpoints.
        block_size: tokens per block; published are 4 (the default) to 64.
    """

    model_type = "sdar"
    mask_token_id: int | None = None
    block_size: int = 4


class SDARMoeConfig(PublishedConfig, Qwen3MoeConfig):
    """Settings of an SDAR model with experts; the published folder names neither mask token nor block length, see
    `SDARConfig`.
    """

    model_type = "sdar_moe"
    attribute_map = {"num_local_experts": "num_experts"}  # noqa: RUF012
    mask_token_id: int | None = None
    block_size: int = 4
