"""SDAR (arXiv 2510.06303), dense and with experts: text alone."""

from maskgrpo_plugin.models.families.base import Family


class SDARFamily(Family):
    """SDAR's text models."""

    name = "sdar"
    model_types = ("sdar", "sdar_moe")
    published_mask_token_id = 151669
