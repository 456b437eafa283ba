"""Fast-dLLM v2 (arXiv 2509.26328): config and model with the published keys and names."""

from maskgrpo_plugin.models.fast_dllm_v2.configuration_fast_dllm_v2 import Fast_dLLM_QwenConfig
from maskgrpo_plugin.models.fast_dllm_v2.modeling_fast_dllm_v2 import Fast_dLLM_QwenForCausalLM

__all__ = ["Fast_dLLM_QwenConfig", "Fast_dLLM_QwenForCausalLM"]
