"""MMaDA's model: LLaDA's, with the published class name that saved folders carry."""

from maskgrpo_plugin.models.llada.modeling_llada import LLaDAModelLM
from maskgrpo_plugin.models.mmada.configuration_mmada import MMadaConfig
from maskgrpo_plugin.models.registry import register_model


class MMadaModelLM(LLaDAModelLM):
    """MMaDA (arXiv 2505.15809): one mask predictor over text and image tokens; see `LLaDAModelLM`."""

    config_class = MMadaConfig  # type: ignore[assignment]


register_model(MMadaConfig, MMadaModelLM)
