"""LLaDA2's config: the published keys, read as GLM-4-MoE's."""

from typing import Any

from transformers import Glm4MoeConfig

from maskgrpo_plugin.models.decoder import PublishedConfig


class LLaDA2MoeConfig(PublishedConfig, Glm4MoeConfig):
    """Settings of a LLaDA2 model.

    As in the published code, the router divides the weights of the chosen experts by their sum, whatever
    `norm_topk_prob`, `score_function` and `moe_router_enable_expert_bias` say.

    Args:
        num_experts: experts of a layer from which the router chooses.
        num_shared_experts: experts that all tokens take, as one layer of so many times the width.
        use_qk_norm: whether queries and keys are normalised per head.
        use_qkv_bias, use_bias: false, as published.
        mask_token_id: id of the mask token; 156895 in the published checkpoints, which do not name it.
        block_size: tokens per block; the published folder does not tell, its models were trained with 32.

    Raises:
        ValueError: a setting that no published checkpoint uses and this code does not compute.
    """

    model_type = "llada2_moe"
    attribute_map = {  # noqa: RUF012
        "num_local_experts": "num_experts",
        "n_routed_experts": "num_experts",
        "n_shared_experts": "num_shared_experts",
    }
    num_experts: int = 256
    num_shared_experts: int = 1
    use_qk_norm: bool = True
    use_qkv_bias: bool = False
    use_bias: bool = False
    mask_token_id: int | None = None
    block_size: int = 32

    def __post_init__(self, **kwargs: Any) -> None:
        for key in ("use_qkv_bias", "use_bias"):
            if getattr(self, key):
                raise ValueError(f"LLaDA2 config {key}=True is not supported; allowed: False")
        super().__post_init__(**kwargs)
