"""A2D models, Qwen2 and Qwen3 grown from autoregressive to diffusion (dLLM, arXiv 2602.22661): configs and models."""

from maskgrpo_plugin.models.a2d.configuration_a2d import A2DQwen2Config, A2DQwen3Config
from maskgrpo_plugin.models.a2d.modeling_a2d import A2DQwen2LMHeadModel, A2DQwen3LMHeadModel

__all__ = ["A2DQwen2Config", "A2DQwen2LMHeadModel", "A2DQwen3Config", "A2DQwen3LMHeadModel"]
