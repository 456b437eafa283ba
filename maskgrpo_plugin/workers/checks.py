"""Checks of what a run's Ray actors need, on the driver before Ray starts."""

import math
import os

import ray
from omegaconf import DictConfig
from verl.utils.device import get_device_name

from maskgrpo_plugin.errors import OptionError, check_choice
from maskgrpo_plugin.rewards.images.config import image_reward_cpus
from maskgrpo_plugin.tables import COUNT, COUNT_OR_NULL, NOT_NEGATIVE, Range, check_ranges
from maskgrpo_plugin.workers.rollout import ROLLOUTS

WORKERS = {
    "actor_rollout_ref": {"nccl_timeout": COUNT},
    "actor_rollout_ref.rollout.agent": {"num_workers": COUNT},
    "data": {"dataloader_num_workers": Range(0)},
    "ray_kwargs.ray_init": {"num_cpus": COUNT_OR_NULL, "num_gpus": Range(0, null=True, whole=False)},
    "reward": {"num_workers": COUNT, "timeout_s": Range(0, whole=False, above=True, null=True)},
    "transfer_queue.backend.SimpleStorage": {"num_data_storage_units": COUNT, "total_storage_size": COUNT},
    "transfer_queue.metrics": {"port": NOT_NEGATIVE},
}


def check_strategy(config: DictConfig) -> None:
    """Raise OptionError where training is sharded in a way that the device, or the adapter's layers, do not have."""
    arr = config.actor_rollout_ref
    if arr.actor.strategy == "fsdp" and get_device_name() == "cpu":
        raise OptionError("actor_rollout_ref.actor.strategy", "fsdp", "FSDP1 does not run on the CPU; use fsdp2")
    targets = arr.model.target_modules
    targets = [targets] if isinstance(targets, str) else list(targets or [])
    if arr.actor.strategy == "fsdp" and arr.model.lora_rank > 0 and "ff_out" in targets:
        allowed = "with FSDP1 an adapter of the head (ff_out) would hang ranks with other numbers of chunks; use fsdp2"
        raise OptionError("actor_rollout_ref.actor.strategy", "fsdp", allowed)


def check_workers(config: DictConfig) -> None:
    """Check numbers and classes of the Ray actors of a run, and what `ray.init` is given.

    Raises:
        OptionError: the first value that cannot work.
    """
    for section, table in WORKERS.items():
        check_ranges(config, section, table)
    backend = config.transfer_queue.backend.storage_backend
    check_choice("transfer_queue.backend.storage_backend", backend, ("SimpleStorage", "MooncakeStore"))
    completions = config.data.train_batch_size * config.actor_rollout_ref.rollout.n
    room = config.transfer_queue.backend.SimpleStorage.total_storage_size
    if backend == "SimpleStorage" and room < completions:
        key = "transfer_queue.backend.SimpleStorage.total_storage_size"
        raise OptionError(key, room, f"a step has {completions} completions")
    if not config.actor_rollout_ref.hybrid_engine:
        raise OptionError("actor_rollout_ref.hybrid_engine", False, "use true: actor and rollout share their devices")


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
