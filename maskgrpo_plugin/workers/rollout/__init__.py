"""Rollout servers that verl reaches through its async rollout interface."""

from collections.abc import Callable

ROLLOUTS = {"masked_diffusion": "DiffusionReplica", "transformers": "TransformersReplica"}  # classes of replica.py


def register_rollouts() -> None:
    """Add the rollouts of `ROLLOUTS` to verl's registries, and what the configs need to Hydra's; idempotent."""
    from verl.workers.rollout.base import _ROLLOUT_REGISTRY
    from verl.workers.rollout.replica import RolloutReplicaRegistry

    for name, replica in ROLLOUTS.items():
        _ROLLOUT_REGISTRY[(name, "async")] = "maskgrpo_plugin.workers.rollout.adapter.ServerAdapter"
        RolloutReplicaRegistry.register(name, _replica_loader(replica))
    _store_open_node()


def _replica_loader(class_name: str) -> Callable[[], type]:
    def load() -> type:
        from maskgrpo_plugin.workers.rollout import replica

        return getattr(replica, class_name)

    return load


def _store_open_node() -> None:
    """Store `maskgrpo/open` in Hydra's ConfigStore: an empty node that takes any key from the command line without `+`,
    so that configs need not list the options of every sampler.
    """
    from hydra.core.config_store import ConfigStore
    from omegaconf import OmegaConf

    ConfigStore.instance().store(group="maskgrpo", name="open", node=OmegaConf.create({}, flags={"struct": False}))
