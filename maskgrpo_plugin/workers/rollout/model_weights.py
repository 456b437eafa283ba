"""The weights of a rollout model: received whole, or once as a base and then as a LoRA adapter; kept during a sleep.

The adapter stays beside the base, as in the actor. Added to weights of 16 bits it would be lost at first: an entry of
0.02 in bfloat16 has no neighbour nearer than 6e-5, and a hundred updates of a learning rate of 3e-6 move it less.
"""

from collections.abc import Iterable
from typing import Any, Literal

import torch
from peft import PeftModel, get_peft_config, get_peft_model_state_dict
from torch import Tensor, nn

from maskgrpo_plugin.models.experts import expert_parts
from maskgrpo_plugin.workers.rollout.weight_transfer import Bucket, read_bucket

Part = Literal["all", "base", "adapter"]


def serves_adapter(model_config: Any) -> bool:
    """Whether verl's model section asks for a LoRA adapter beside its base: `lora_rank` without `lora.merge`."""
    return model_config.lora_rank > 0 and not model_config.lora.get("merge", False)


def allocate_parameters(model: Any, device: torch.device) -> None:
    """Give parameters on the meta device uninitialised memory on `device`; buffers (such as rotary frequencies, which
    no weight sync sends) move there with their values.
    """
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and parameter.is_meta:
                module._parameters[name] = nn.Parameter(torch.empty_like(parameter, device=device), False)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = buffer.to(device)
    model.tie_weights()


def release_parameters(model: Any) -> None:
    """Free the memory of the parameters; buffers stay."""
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = nn.Parameter(torch.empty_like(parameter, device="meta"), False)


class ModelWeights:
    """What a rollout model holds, and whether it can generate.

    A sync brings all parameters (of a model without an adapter, or merged by the sender), or verl's two parts of a
    model with an adapter: the base, and after it, and at every later sync, the adapter alone.

    Args:
        model: in evaluation mode.
        loaded: whether the model has the weights of a checkpoint.
        outlives_sleep: whether the base is kept during a sleep, since no sync sends it again.

    Attributes:
        complete: all weights have come; False from the beginning of a sync to its end, and after one that failed.
    """

    def __init__(self, model: Any, *, loaded: bool, outlives_sleep: bool = False):
        self.model = model
        self.complete = loaded
        self._has_base = loaded
        self._outlives_sleep = outlives_sleep
        self._adapter: PeftModel | None = None
        self._received: set[str] = set()
        self._host: dict[str, Tensor] = {}

    @property
    def ready(self) -> bool:
        """Whether the model can generate."""
        return self.complete and not self._is_released

    @property
    def _is_released(self) -> bool:
        return next(self.model.parameters()).is_meta

    def receive(self, bucket: Bucket, peft_config: dict[str, Any] | None = None, base_sync_done: bool = True) -> bool:
        """Copy one bucket of a sync.

        Args:
            bucket: as delivered.
            peft_config: peft's settings of the adapter; None where all parameters are sent.
            base_sync_done: with an adapter: the bucket is of the adapter; False: of its base.

        Returns:
            Whether the model is complete, which only a last bucket makes it.

        Raises:
            KeyError: a tensor that the model does not have.
            ValueError: a tensor of another shape than the model's.
            RuntimeError: an adapter without a base, merged weights for a model with an adapter, weights during a
                sleep, or a sync that left some out.
        """
        part: Part = "all" if peft_config is None else "adapter" if base_sync_done else "base"
        self.complete = False
        try:
            targets = self._targets(part, peft_config)
            with torch.no_grad():
                read_bucket(bucket, lambda name, tensor: self._copy(targets, name, tensor))
            if not bucket.is_last:
                return False
            self._check_whole(part, targets)
        except Exception:
            self._received.clear()
            raise
        self._received.clear()
        if part != "adapter":
            self._has_base = True
            self._host.clear()
        self.complete = part != "base"
        return self.complete

    def _targets(self, part: Part, peft_config: Any) -> dict[str, Tensor]:
        """The model's tensors by the names that a part of its weights comes with."""
        if self._is_released:
            raise RuntimeError("weights came to a rollout model that sleeps: wake it up before the weight sync")
        if part == "adapter":
            if not self._has_base:
                raise RuntimeError("weight sync sent a LoRA adapter before its base weights")
            if self._adapter is None:
                self._adapter = self._add_adapter(peft_config)
            return get_peft_model_state_dict(self._adapter, save_embedding_layers=False)
        if part == "all" and self._adapter is not None:
            raise RuntimeError("weight sync sent merged weights to a rollout model with a LoRA adapter of its own")
        tensors = [*self.model.named_parameters(remove_duplicate=False), *self.model.named_buffers()]
        targets = {_base_name(name): tensor for name, tensor in tensors if "lora_" not in name}
        for name, tensor in list(targets.items()):
            targets |= expert_parts(name, tensor)  # verl's engine sends experts one by one
        return targets

    def _add_adapter(self, settings: dict[str, Any]) -> PeftModel:
        """Put peft's layers into the model, around the linear layers that `settings` names."""
        config = get_peft_config(settings | {"inference_mode": True, "init_lora_weights": True})
        adapter = PeftModel(self.model, config, autocast_adapter_dtype=False)
        self.model.eval().requires_grad_(False)
        return adapter

    def _copy(self, targets: dict[str, Tensor], name: str, tensor: Tensor) -> None:
        name = _base_name(name)
        if name not in targets:
            raise KeyError(f"weight sync sent {name!r}, which the rollout model does not have")
        target = targets[name]
        if target.shape != tensor.shape:
            raise ValueError(f"weight sync sent {name!r} of shape {tuple(tensor.shape)} for {tuple(target.shape)}")
        target.copy_(tensor)
        self._received.add(name)

    def _check_whole(self, part: Part, targets: dict[str, Tensor]) -> None:
        """Raise where a sync left out a parameter; buffers and the second names of tied parameters may be left out."""
        required, kind = set(targets), "LoRA tensors"
        if part != "adapter":
            tied = set(getattr(self.model, "all_tied_weights_keys", None) or {})
            required, kind = (
                {_base_name(name) for name, _ in self.model.named_parameters()} & required - tied,
                "parameters",
            )
        missing = sorted(
            name
            for name in required - self._received
            if not (parts := expert_parts(name, targets[name])) or not parts.keys() <= self._received
        )
        if missing:
            raise RuntimeError(f"weight sync left out {len(missing)} {kind}, among them {missing[:5]}")

    def release(self) -> None:
        """Free the parameters' memory. A base that no sync sends again is kept in host memory, with its adapter."""
        if self._is_released:
            return
        if self._outlives_sleep and self._has_base:
            self._keep(self.model.named_parameters())
        else:
            self.complete = self._has_base = False
        release_parameters(self.model)

    def _keep(self, parameters: Iterable[tuple[str, Tensor]]) -> None:
        """Copy parameters to host memory (pinned for a GPU); those of the base once, since no sync changes them."""
        for name, parameter in parameters:
            key = _base_name(name)
            if key in self._host and "lora_" not in name:
                continue
            if key not in self._host:
                self._host[key] = torch.empty(parameter.shape, dtype=parameter.dtype, pin_memory=parameter.is_cuda)
            self._host[key].copy_(parameter)

    def restore(self, device: torch.device) -> None:
        """Give the parameters memory on `device` again, with the values that `release` kept."""
        if not self._is_released:
            return
        allocate_parameters(self.model, device)
        if not self._has_base:
            return
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                parameter.copy_(self._host[_base_name(name)], non_blocking=True)
        if device.type == "cuda":
            torch.cuda.synchronize(device)


def _base_name(name: str) -> str:
    """A parameter's name in the model without an adapter: peft moves a layer's own parameters into its `base_layer`."""
    return name.replace(".base_layer.", ".")
