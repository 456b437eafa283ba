"""DeepSpeed's CPUAdam for parameters that FSDP2 keeps on the host; needs the extra `deepspeed` and a C++ compiler.

Named by verl's keys, with the actor's parameters, gradients and optimiser state in host memory:

```yaml
actor_rollout_ref:
  actor:
    fsdp_config: {strategy: fsdp2, offload_policy: true}
    optim: {optimizer_impl: maskgrpo_plugin.workers.engine.cpu_adam, optimizer: CPUAdam}
```

DeepSpeed's own class cannot be named there: its kernel reads the memory of the tensors that it is given, and the
parameters of FSDP2 are DTensors, which have none (seen: a segmentation fault).
"""

from collections.abc import Callable
from typing import Any

import torch
from deepspeed.ops.adam import DeepSpeedCPUAdam
from torch import Tensor
from torch.distributed.tensor import DTensor


class CPUAdam(DeepSpeedCPUAdam):
    """AdamW over each rank's part of the parameters, vectorised and with many threads; states in float32.

    Args: as `torch.optim.AdamW`: parameters, `lr`, `betas`, `eps`, `weight_decay`.

    Raises:
        RuntimeError: the kernel cannot be compiled on this machine.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of all parameters that have a gradient.

        Raises:
            ValueError: a parameter is not in host memory.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group)
        return loss

    def _update(self, parameter: Tensor, group: dict[str, Any]) -> None:
        if parameter.device.type != "cpu":
            raise ValueError(
                f"CPUAdam has a parameter on {parameter.device}; set actor.fsdp_config.offload_policy=true"
            )
        state = self.state[parameter]
        if not state:
            state["step"] = 0
            for name in ("exp_avg", "exp_avg_sq"):
                state[name] = torch.zeros_like(parameter, dtype=torch.float32)
        state["step"] += 1
        weights = _local(parameter)
        if weights.numel() == 0:
            return
        self.ds_opt_adam.adam_update(
            self.opt_id,
            state["step"],
            group["lr"],
            *group["betas"],
            group["eps"],
            group["weight_decay"],
            group["bias_correction"],
            weights,
            _local(parameter.grad).to(weights.dtype).contiguous(),
            _local(state["exp_avg"]),
            _local(state["exp_avg_sq"]),
        )


def _local(tensor: Any) -> Tensor:
    """This rank's part of a tensor, sharing its memory."""
    return (tensor.to_local() if isinstance(tensor, DTensor) else tensor).detach()
