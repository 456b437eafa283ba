"""The rollout's side in the training process: resume, release and weight updates of the replica's server."""

import os
from collections.abc import Generator
from typing import Any

import ray
import torch
from verl.utils.device import get_device_id, get_device_name
from verl.workers.rollout.base import BaseRollout

from maskgrpo_plugin.workers.rollout.weight_transfer import send_weights


def server_name(rollout: str, replica_rank: int) -> str:
    """Ray name of a replica's server within the job."""
    return f"maskgrpo_{rollout}_server_{replica_rank}"


class ServerAdapter(BaseRollout):
    """Talks to the server of this rank's replica; one rank a replica does the talking."""

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
        weights: Generator[tuple[str, torch.Tensor], None, None],
        global_steps: int | None = None,
        wire_format: str = "named_tensors",
        **_: Any,
    ) -> None:
        """Stream full tensors to the server; ranks that lead no replica still take part in gathering them.

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
        await send_weights(
            weights,
            server.receive_bucket.remote,
            bucket_bytes=self.config.checkpoint_engine.update_weights_bucket_megabytes << 20,
            device=torch.device(get_device_name(), *([] if get_device_name() == "cpu" else [get_device_id()])),
        )
        if global_steps is not None:
            await server.set_global_steps.remote(global_steps)
