"""Dream (arXiv 2508.15487), also DiffuCoder and Dream-Coder: text alone."""

from maskgrpo_plugin.models.families.base import Family


class DreamFamily(Family):
    """Dream's text models."""

    name = "dream"
    model_types = ("Dream",)
    published_mask_token_id = 151666
