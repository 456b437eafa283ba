"""Dream (arXiv 2508.15487): text alone; grown from an autoregressive model, so its logits predict the next token."""

from maskgrpo_plugin.models.families.base import Family


class DreamFamily(Family):
    """Dream's text models: the logits of a token stand one position before it."""

    name = "dream"
    model_types = ("Dream", "dream")
    logits_shift = 1
    published_mask_token_id = 151666
