"""The mask predictors that are known, by the `model_type` of their checkpoints."""

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PretrainedConfig

from maskgrpo_plugin.models.interface import MaskPredictorModel

__all__ = ["MODELS", "block_length_of", "register_model"]

MODELS: dict[str, type[MaskPredictorModel]] = {}


def register_model(config_class: type[PretrainedConfig], model_class: type[MaskPredictorModel]) -> None:
    """Make a mask predictor known to transformers' Auto classes and to the plugin; idempotent.

    A module that calls it must be imported in driver and workers. A checkpoint of that `model_type` then loads, and is
    trained, sampled and evaluated as text; a `Family` of its own is needed for other special tokens, or for images.

    Args:
        config_class: configuration with the `model_type` and the keys of the published config.json.
        model_class: model with that `config_class`, and the module names of the published weights.
    """
    AutoConfig.register(config_class.model_type, config_class, exist_ok=True)
    AutoModel.register(config_class, model_class, exist_ok=True)
    AutoModelForCausalLM.register(config_class, model_class, exist_ok=True)
    MODELS[config_class.model_type] = model_class


def block_length_of(config: PretrainedConfig) -> int | None:
    """Tokens per block of a mask predictor that attends block by block; None for any other model."""
    model = MODELS.get(config.model_type)
    return None if model is None else model.block_length_of(config)
