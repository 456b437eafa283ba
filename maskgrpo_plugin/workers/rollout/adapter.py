"""The rollout's side in the training process: resume, release and weight updates of the replica's server."""

import os
from collections.abc import Iterable
from functools import partial
from typing import Any

import ray
import torch
from verl.utils.device import get_device_id, get_device_name
from verl.workers.rollout.base import BaseRollout

from maskgrpo_plugin.workers.rollout.weight_transfer import packed_bytes, send_weights


def server_name(rollout: str, replica_rank: int) -> str:
    """Ray name of a replica's server within the job."""
    return f"maskgrpo_{rollout}_server_{replica_rank}"


class ServerAdapter(BaseRollout):
    """Talks to the server of this rank's replica; one rank per replica does the talking."""

    def __init__(self, config: Any, model_config: Any, device_mesh: Any, replica_rank: int = -1):
        super().__init__(config, model_config, device_mesh)
        ranks_per_replica = self.config.tensor_model_parallel_size * self.config.data_parallel_size
        rank = int(os.environ["RANK"])
        self.replica_rank = rank // ranks_per_replica if replica_rank == -1 else replica_rank
        self.is_leader = rank % ranks_per_replica == 0
        self._server: Any = None

    def _server_handle(self) -> Any:
        if self._server is None:
            self._server = ray.get_actor(server_name(self.config.name, self.replica_rank))
        return self._server

    async def resume(self, tags: list[str]) -> None:
        """Give the server its device memory back."""
        if self.is_leader:
            await self._server_handle().wake_up.remote(tags=tags)

    async def release(self) -> None:
        """Let the server drop its weights."""
        if self.is_leader:
            await self._server_handle().sleep.remote()

    @torch.no_grad()
    async def update_weights(
        self,
        weights: Iterable[tuple[str, torch.Tensor]],
        global_steps: int | None = None,
        wire_format: str = "named_tensors",
        peft_config: dict[str, Any] | None = None,
        base_sync_done: bool = True,
        **_: Any,
    ) -> None:
        """Stream full tensors to the server; ranks that lead no replica still take part in gathering them.

        Args:
            weights: names and tensors: all parameters, or a part of a model with a LoRA adapter.
            global_steps: training step of the weights.
            wire_format: verl's name for the form of `weights`.
            peft_config: peft's settings of the adapter; None where `weights` are all parameters.
            base_sync_done: with an adapter: `weights` are the adapter's; False: its base's.

        Raises:
            NotImplementedError: another wire format than `named_tensors`.
        """
        if wire_format != "named_tensors":
            raise NotImplementedError(f"wire_format={wire_format!r}; the plugin's rollouts take named_tensors")
        if not self.is_leader:
            for _name, _tensor in weights:
                pass
            return
        server = self._server_handle()
        bucket_bytes = self.config.checkpoint_engine.update_weights_bucket_megabytes << 20
        if peft_config is not None and base_sync_done:
            weights = list(weights)
            bucket_bytes = min(bucket_bytes, packed_bytes(tensor for _, tensor in weights))
        await send_weights(
            weights,
            partial(server.receive_bucket.remote, peft_config=peft_config, base_sync_done=base_sync_done),
            bucket_bytes=bucket_bytes,
            device=torch.device(get_device_name(), *([] if get_device_name() == "cpu" else [get_device_id()])),
        )
        if global_steps is not None:
            await server.set_global_steps.remote(global_steps)
