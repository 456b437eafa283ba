"""verl's rollout replicas of the plugin: one Ray server beside the training rank whose device it shares."""

from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from verl.plugin.platform import get_platform
from verl.workers.rollout.replica import RolloutReplica

from maskgrpo_plugin.workers.rollout.adapter import server_name
from maskgrpo_plugin.workers.rollout.server import CONTROL, DiffusionServer, RolloutServer
from maskgrpo_plugin.workers.rollout.transformers_server import TransformersServer

CONTROL_CALLS = 16


def worker_place(_worker: Any = None) -> tuple[str, list[str]]:
    """Where a Ray actor runs, asked in it: its node, and the accelerators that Ray gave it, whatever the environment
    says: with `RAY_EXPERIMENTAL_NOSET_…_VISIBLE_DEVICES` it names all of the node's, or none.
    """
    context = ray.get_runtime_context()
    return context.get_node_id(), context.get_accelerator_ids().get(get_platform().ray_resource_name(), [])


def server_environment(platform: Any, accelerators: list[str]) -> dict[str, str]:
    """Environment of a server that shares its worker's first accelerator, which is then the only one it sees.

    Args:
        platform: verl's.
        accelerators: Ray's ids of the worker's.

    Raises:
        RuntimeError: the worker of an accelerator's platform has none.
    """
    if platform.device_name == "cpu":
        return {}
    if not accelerators:
        raise RuntimeError(f"Ray gave the training worker no {platform.ray_resource_name()}, which its server shares")
    return {platform.visible_devices_envvar(): accelerators[0], **dict.fromkeys(platform.ray_noset_envvars(), "1")}


class PluginReplica(RolloutReplica):
    """Launches `server_cls` on the node, and with the accelerator, of the replica's first training worker."""

    server_cls: type[RolloutServer]

    async def launch_servers(self) -> None:
        """Start the server and publish its handle; waits until the model is built."""
        node_id, accelerators = await self.workers[0].__ray_call__.remote(worker_place)
        server = (
            ray.remote(concurrency_groups={CONTROL: CONTROL_CALLS})(self.server_cls)
            .options(
                name=server_name(self.config.name, self.replica_rank),
                scheduling_strategy=NodeAffinitySchedulingStrategy(node_id=node_id, soft=False),
                runtime_env={"env_vars": server_environment(get_platform(), accelerators)},
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
