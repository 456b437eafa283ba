"""What verl's FSDP2 engine needs to run on the CPU, and the autoregressive engine of CPU baselines."""

from dataclasses import replace
from typing import Any

from torch import nn
from verl.utils.device import get_device_name
from verl.workers.engine.base import EngineRegistry
from verl.workers.engine.fsdp.transformer_impl import FSDPEngine, FSDPEngineWithLMHead


class CPUCapableFSDPEngine(FSDPEngine):
    """FSDP engine whose reference policy is not offloaded on the CPU, where pinned memory does not exist."""

    engine_config: Any

    def _build_fsdp_module(self, module: nn.Module) -> nn.Module:
        if get_device_name() != "cpu":
            return super()._build_fsdp_module(module)
        configured = self.engine_config
        self.engine_config = replace(configured, forward_only=False, offload_policy=False)
        try:
            return super()._build_fsdp_module(module)
        finally:
            self.engine_config = configured


@EngineRegistry.register(model_type="language_model", backend=["fsdp2"], device=["cpu"])
class CPULanguageModelEngine(CPUCapableFSDPEngine, FSDPEngineWithLMHead):
    """verl's autoregressive actor and reference on the CPU (FSDP2; FSDP1 does not run there)."""
