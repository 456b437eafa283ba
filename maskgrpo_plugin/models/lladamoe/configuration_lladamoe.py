"""LLaDA-MoE's config: the published keys, read as Qwen3-MoE's."""

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import Qwen3MoeConfig

from maskgrpo_plugin.models.decoder import PublishedConfig

SUPPORTED: dict[str, tuple[Any, ...]] = {
    "qk_layernorm": (True,),
    "clip_qkv": (None,),
    "partial_rotary_factor": (1, None),
}


@strict
class LLaDAMoEConfig(PublishedConfig, Qwen3MoeConfig):
    """Settings of a LLaDA-MoE model.

    The published folder says `model_type: llada` and names this architecture; `lladamoe`, which is saved, is read too.
    As in the published code the router takes the softmax over all experts and does not divide the weights by their sum,
    whatever `norm_topk_prob`, `moe_router_score_function` and `routed_scaling_factor` say.

    Args:
        dense_intermediate_size: width of the feed-forward layers without experts.
        expert_intermediate_size: width of an expert.
        shared_expert_intermediate_size: width of an expert that all tokens take, one per layer with experts, or None.
        moe_layer_freq: for each layer 1 where it has experts, else 0; None: all have.
        mask_token_id: id of the mask token; 156895 in the published checkpoints, which do not name it.

    Raises:
        ValueError: a setting that no published checkpoint uses and this code does not compute.
    """

    model_type = "lladamoe"
    attribute_map = {  # noqa: RUF012
        "intermediate_size": "dense_intermediate_size",
        "moe_intermediate_size": "expert_intermediate_size",
    }
    dense_intermediate_size: int = 8192
    expert_intermediate_size: int = 1024
    shared_expert_intermediate_size: int | None = None
    moe_layer_freq: list[int] | None = None
    norm_topk_prob: bool | None = None
    qk_layernorm: bool = True
    clip_qkv: float | None = None
    mask_token_id: int | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        given = {"partial_rotary_factor": kwargs.get("partial_rotary_factor")}
        for key, allowed in SUPPORTED.items():
            value = given.get(key, getattr(self, key, None))
            if value not in allowed:
                raise ValueError(f"LLaDA-MoE config {key}={value!r} is not supported; allowed: {allowed[0]!r}")
        if self.moe_layer_freq is not None:
            self.mlp_only_layers = [layer for layer, experts in enumerate(self.moe_layer_freq) if not experts]
        super().__post_init__(**kwargs)
