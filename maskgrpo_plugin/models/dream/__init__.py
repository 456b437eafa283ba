"""Dream (arXiv 2508.15487), also DiffuCoder and Dream-Coder: config and model with the published keys and names."""

from maskgrpo_plugin.models.dream.configuration_dream import DreamConfig
from maskgrpo_plugin.models.dream.modeling_dream import DreamModel
from maskgrpo_plugin.models.dream.tokenization_dream import DreamTokenizer

__all__ = ["DreamConfig", "DreamModel", "DreamTokenizer"]
