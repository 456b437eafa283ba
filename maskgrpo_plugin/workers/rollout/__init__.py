"""Rollout servers that verl reaches through its async rollout interface; importing the package registers them.

verl is imported first; see `maskgrpo_plugin.workers`.
"""

from collections.abc import Callable

from verl.workers.rollout.base import _ROLLOUT_REGISTRY
from verl.workers.rollout.replica import RolloutReplicaRegistry

from maskgrpo_plugin.registry import Registered

ROLLOUTS = ("masked_diffusion", "transformers")


def _replica_loader(name: str) -> Callable[[], type]:
    def load() -> type:
        from maskgrpo_plugin.workers.rollout import replica

        return replica.REPLICAS[name]

    return load


for _name in ROLLOUTS:
    _ROLLOUT_REGISTRY[(_name, "async")] = "maskgrpo_plugin.workers.rollout.adapter.ServerAdapter"
    RolloutReplicaRegistry.register(_name, _replica_loader(_name))


REGISTERS = (
    Registered("rollout masked_diffusion", lambda: ("masked_diffusion", "async") in _ROLLOUT_REGISTRY),
    Registered("rollout transformers", lambda: ("transformers", "async") in _ROLLOUT_REGISTRY),
)
