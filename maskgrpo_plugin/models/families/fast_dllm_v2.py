"""Fast-dLLM v2 (arXiv 2509.26328): text alone."""

from maskgrpo_plugin.models.families.base import Family


class FastDLLMFamily(Family):
    """Fast-dLLM v2's text models."""

    name = "fast_dllm_v2"
    model_types = ("Fast_dLLM_Qwen",)
    published_mask_token_id = 151665
