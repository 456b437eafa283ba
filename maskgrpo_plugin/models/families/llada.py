"""LLaDA (arXiv 2502.09992): text alone."""

from maskgrpo_plugin.models.families.base import Family


class LLaDAFamily(Family):
    """LLaDA's text models."""

    name = "llada"
    model_types = ("llada",)
    published_mask_token_id = 126336
