"""The mask predictors that are known, by the `model_type` of their checkpoints."""

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PretrainedConfig

from maskgrpo_plugin.errors import OptionError
from maskgrpo_plugin.models.interface import MaskPredictorModel

__all__ = ["MODELS", "register_model"]

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


def check_bidirectional(config: PretrainedConfig, key: str, value: str) -> None:
    """Refuse a mask predictor whose attention is block-causal: no sampler and no estimator here serves one yet.

    Args:
        config: the checkpoint's.
        key, value: the setting that names the checkpoint.

    Raises:
        OptionError: it attends block by block.
    """
    model = MODELS.get(config.model_type)
    length = None if model is None else model.block_length_of(config)
    if length is not None:
        raise OptionError(
            key,
            value,
            f"its model ({config.model_type}) attends block by block ({length} tokens), which gives logits but cannot "
            "be sampled, scored or trained yet; allowed are models that attend in both directions",
        )
