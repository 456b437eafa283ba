"""verl's rollout replicas of the plugin: one Ray server beside the training rank whose device it shares."""

import os

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from verl.utils.device import get_device_name, get_visible_devices_keyword
from verl.workers.rollout.replica import RolloutReplica

from maskgrpo_plugin.workers.rollout.adapter import server_name
from maskgrpo_plugin.workers.rollout.server import DiffusionServer, RolloutServer
from maskgrpo_plugin.workers.rollout.transformers_server import TransformersServer


class PluginReplica(RolloutReplica):
    """Launches `server_cls` on the node, and with the visible device, of the replica's first training worker."""

    server_cls: type[RolloutServer]

    async def launch_servers(self) -> None:
        """Start the server and publish its handle; waits until the model is built."""
        worker = self.workers[0]
        keyword = get_visible_devices_keyword()
        node_id, visible = await worker.__ray_call__.remote(
            lambda _self, key: (ray.get_runtime_context().get_node_id(), os.environ.get(key)), keyword
        )
        env = {}
        if get_device_name() != "cpu":
            env = {keyword: visible or "0", "RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES": "1"}
        server = (
            ray.remote(self.server_cls)
            .options(
                name=server_name(self.config.name, self.replica_rank),
                scheduling_strategy=NodeAffinitySchedulingStrategy(node_id=node_id, soft=False),
                runtime_env={"env_vars": env},
                max_concurrency=self.max_concurrency,
                num_cpus=1,
            )
            .remote(self.config, self.model_config, self.replica_rank)
        )
        await server.__ray_ready__.remote()
        self.servers = [server]
        self._server_handle = server
        self._server_address = server_name(self.config.name, self.replica_rank)


class DiffusionReplica(PluginReplica):
    """Replica of a masked diffusion model."""

    server_cls = DiffusionServer


class TransformersReplica(PluginReplica):
    """Replica of an autoregressive transformers model."""

    server_cls = TransformersServer
