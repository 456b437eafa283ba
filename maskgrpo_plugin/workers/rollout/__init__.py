"""Rollout servers that verl reaches through its async rollout interface; importing the package registers them.

verl is imported first; see `maskgrpo_plugin.workers`.
"""

from collections.abc import Callable
from functools import partial
from operator import contains

from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf
from verl.workers.rollout.base import _ROLLOUT_REGISTRY
from verl.workers.rollout.replica import RolloutReplicaRegistry

from maskgrpo_plugin.registry import Registered

ROLLOUTS = {"masked_diffusion": "DiffusionReplica", "transformers": "TransformersReplica"}  # classes of replica.py


def _replica_loader(class_name: str) -> Callable[[], type]:
    def load() -> type:
        from maskgrpo_plugin.workers.rollout import replica

        return getattr(replica, class_name)

    return load


for _name, _replica in ROLLOUTS.items():
    _ROLLOUT_REGISTRY[(_name, "async")] = "maskgrpo_plugin.workers.rollout.adapter.ServerAdapter"
    RolloutReplicaRegistry.register(_name, _replica_loader(_replica))
# `maskgrpo/open`: an empty node that takes any key from the command line without `+`, so that configs need not list the
# options of every sampler and estimator
ConfigStore.instance().store(group="maskgrpo", name="open", node=OmegaConf.create({}, flags={"struct": False}))


REGISTERS = tuple(
    Registered(f"rollout {name}", partial(contains, _ROLLOUT_REGISTRY, (name, "async"))) for name in ROLLOUTS
)
