"""Native transformers models that load published checkpoints of masked diffusion models."""

from maskgrpo_plugin.registry import Registered


def register() -> None:
    """Make `AutoConfig`, `AutoModel` and `AutoModelForCausalLM` know the plugin's models; idempotent."""
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

    from maskgrpo_plugin.models.llada import LLaDAConfig, LLaDAModelLM
    from maskgrpo_plugin.models.mmada import MMadaConfig, MMadaModelLM

    models: tuple[tuple[type[PretrainedConfig], type[PreTrainedModel]], ...] = (
        (LLaDAConfig, LLaDAModelLM),
        (MMadaConfig, MMadaModelLM),
    )
    for config, model in models:
        AutoConfig.register(config.model_type, config, exist_ok=True)
        AutoModel.register(config, model, exist_ok=True)
        AutoModelForCausalLM.register(config, model, exist_ok=True)


def _is_known(model_type: str) -> bool:
    from transformers import CONFIG_MAPPING

    return model_type in CONFIG_MAPPING


REGISTERS = (
    Registered("model llada", lambda: _is_known("llada")),
    Registered("model mmada", lambda: _is_known("mmada")),
)
