"""Rollout servers that verl reaches through its async rollout interface."""

from collections.abc import Callable

ROLLOUTS = ("masked_diffusion", "transformers")


def _replica_loader(name: str) -> Callable[[], type]:
    def load() -> type:
        from maskgrpo_plugin.workers.rollout import replica

        return replica.REPLICAS[name]

    return load


def register_rollouts() -> None:
    """Add the rollouts `masked_diffusion` and `transformers` to verl's registries; idempotent."""
    from verl.workers.rollout.base import _ROLLOUT_REGISTRY
    from verl.workers.rollout.replica import RolloutReplicaRegistry

    for name in ROLLOUTS:
        _ROLLOUT_REGISTRY[(name, "async")] = "maskgrpo_plugin.workers.rollout.adapter.ServerAdapter"
        RolloutReplicaRegistry.register(name, _replica_loader(name))
