"""Checks of what a run's Ray actors need, on the driver before Ray starts."""

import math
import os

import ray
from omegaconf import DictConfig
from verl.utils.device import get_device_name

from maskgrpo_plugin.errors import OptionError
from maskgrpo_plugin.rewards.images.config import image_reward_cpus
from maskgrpo_plugin.workers.rollout import ROLLOUTS


def check_strategy(config: DictConfig) -> None:
    """Raise OptionError where training is sharded in a way that the device does not have."""
    if config.actor_rollout_ref.actor.strategy == "fsdp" and get_device_name() == "cpu":
        raise OptionError("actor_rollout_ref.actor.strategy", "fsdp", "FSDP1 does not run on the CPU; use fsdp2")


def check_ray(config: DictConfig) -> None:
    """Check that a Ray of this machine's own can hold all actors of the run; nothing where Ray runs already.

    Raises:
        OptionError: the first value that cannot work.
    """
    if ray.is_initialized() or os.environ.get("RAY_ADDRESS"):
        return
    needed = required_ray_cpus(config)
    given = config.ray_kwargs.ray_init.get("num_cpus")
    available = os.cpu_count() or 1 if given is None else given
    if available < needed:
        raise OptionError(
            "ray_kwargs.ray_init.num_cpus",
            given,
            f"this run's Ray actors take {needed} logical CPUs (there are {available}); set it to {needed} or more",
        )
    ranks = config.trainer.n_gpus_per_node
    slots = config.ray_kwargs.ray_init.get("num_gpus")
    if get_device_name() == "cpu" and (slots or 0) < ranks:
        raise OptionError(
            "ray_kwargs.ray_init.num_gpus", slots, f"on the CPU it counts training ranks; set it to {ranks} or more"
        )


def required_ray_cpus(config: DictConfig) -> int:
    """CPUs that the run's Ray actors take; fewer, and verl waits for ever.

    One each: the task runner, TransferQueue's controller and storage units, reward workers, agent-loop workers, the
    load balancer and each rollout server; three per training rank (verl's colocation slots); and what image scorers ask
    for.
    """
    ranks = config.trainer.n_gpus_per_node * config.trainer.nnodes
    servers = ranks if config.actor_rollout_ref.rollout.name in ROLLOUTS else 0
    storage = config.transfer_queue.backend.SimpleStorage.num_data_storage_units
    return (
        3 * ranks
        + servers
        + storage
        + config.reward.num_workers
        + config.actor_rollout_ref.rollout.agent.num_workers
        + math.ceil(image_reward_cpus(config))
        + 3
    )
