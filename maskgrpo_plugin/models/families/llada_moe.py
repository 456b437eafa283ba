"""LLaDA-MoE (arXiv 2509.24389) and LLaDA2 (arXiv 2512.15745): text alone, with a tokenizer of their own."""

from maskgrpo_plugin.models.families.base import Family


class LLaDAMoEFamily(Family):
    """The text models of the LLaDA project that have experts."""

    name = "llada_moe"
    model_types = ("lladamoe", "llada2_moe")
    published_mask_token_id = 156895
