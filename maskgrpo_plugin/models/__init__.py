"""Native transformers models that load published checkpoints of masked diffusion models."""


def register() -> None:
    """Make `AutoConfig`, `AutoModel` and `AutoModelForCausalLM` know the plugin's models; idempotent."""
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

    from maskgrpo_plugin.models.llada.configuration_llada import LLaDAConfig
    from maskgrpo_plugin.models.llada.modeling_llada import LLaDAModelLM

    AutoConfig.register("llada", LLaDAConfig, exist_ok=True)
    AutoModel.register(LLaDAConfig, LLaDAModelLM, exist_ok=True)
    AutoModelForCausalLM.register(LLaDAConfig, LLaDAModelLM, exist_ok=True)
