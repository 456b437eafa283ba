"""Checks of the whole config on the driver, before Ray starts: wrong values end the run in seconds, named by key.

verl builds `actor_rollout_ref.actor` on the driver; the plugin's configs hold `preflight: ${maskgrpo.preflight:}`
there, and this resolver checks every section when that key is read.
"""

import math
import os
import sys
from collections.abc import Callable
from pathlib import Path

from omegaconf import DictConfig, ListConfig, OmegaConf

from maskgrpo_plugin import extensions
from maskgrpo_plugin.errors import OptionError
from maskgrpo_plugin.registry import Registered
from maskgrpo_plugin.rewards.images.config import check_image_reward_config, image_reward_cpus
from maskgrpo_plugin.rewards.text.config import check_text_reward_config

RESOLVER = "maskgrpo.preflight"
TRAINERS = ("maskgrpo_sync", "maskgrpo_colocate_async")


def preflight(config: DictConfig) -> bool:
    """Check a run's config.

    Args:
        config: the composed config of `verl.trainer.main_ppo`.

    Returns:
        True.

    Raises:
        OptionError: the first value that cannot work.
    """
    from maskgrpo_plugin.workers.platform import check_device
    from maskgrpo_plugin.workers.rollout.checks import check_images, check_rollout

    checks: list[Callable[[DictConfig], None]] = [
        extensions.read_config,
        _check_names,
        _check_files,
        _check_batches,
        _check_model,
        check_rollout,
        check_image_reward_config,
        check_text_reward_config,
        _check_ray,
        check_device,
    ]
    if config.actor_rollout_ref.model.model_type == "masked_diffusion":
        checks[4:4] = [_check_estimation, _check_unsupported]
        checks.append(check_images)
    for check in checks:
        check(config)
    return True


def _resolve(*, _root_: DictConfig) -> bool:
    """What `${maskgrpo.preflight:}` is: True, or the end of the process with one line on standard error."""
    try:
        return preflight(_root_)
    except OptionError as error:
        sys.stderr.write(f"maskgrpo_plugin: {error}\n")
        raise SystemExit(2) from None


OmegaConf.register_new_resolver(RESOLVER, _resolve, replace=True)

REGISTERS = (Registered(f"resolver {RESOLVER}", lambda: OmegaConf.has_resolver(RESOLVER)),)


def _check_names(config: DictConfig) -> None:
    from verl.trainer.ppo.core_algos import ADV_ESTIMATOR_REGISTRY, POLICY_LOSS_REGISTRY
    from verl.trainer.ppo.v1.trainer_base import TRAINER_REGISTRY
    from verl.workers.rollout.base import _ROLLOUT_REGISTRY

    from maskgrpo_plugin.errors import check_choice
    from maskgrpo_plugin.rewards.failures import FAILURE_POLICIES
    from maskgrpo_plugin.trainer.advantages import REWARD_TRANSFORMS

    arr = config.actor_rollout_ref
    check_choice("actor_rollout_ref.model.model_type", arr.model.model_type, ("masked_diffusion", "language_model"))
    check_choice("trainer.v1.trainer_mode", config.trainer.v1.trainer_mode, tuple(sorted(TRAINER_REGISTRY)))
    check_choice("algorithm.adv_estimator", config.algorithm.adv_estimator, tuple(sorted(ADV_ESTIMATOR_REGISTRY)))
    losses = tuple(sorted(POLICY_LOSS_REGISTRY))
    check_choice("actor_rollout_ref.actor.policy_loss.loss_mode", arr.actor.policy_loss.loss_mode, losses)
    rollouts = tuple(sorted(name for name, _ in _ROLLOUT_REGISTRY))
    check_choice("actor_rollout_ref.rollout.name", arr.rollout.name, rollouts)
    check_choice("algorithm.reward_transform", config.algorithm.get("reward_transform", "none"), REWARD_TRANSFORMS)
    policy = config.algorithm.get("on_reward_failure", "zero")
    check_choice("algorithm.on_reward_failure", policy, ("zero", *FAILURE_POLICIES))
    is_diffusion = arr.model.model_type == "masked_diffusion"
    if is_diffusion != (arr.rollout.name == "masked_diffusion"):
        allowed = "masked_diffusion" if is_diffusion else "transformers (CPU) or vllm (GPU)"
        raise OptionError("actor_rollout_ref.rollout.name", arr.rollout.name, f"model_type needs {allowed}")
    if is_diffusion and config.trainer.v1.trainer_mode not in TRAINERS:
        allowed = f"model_type needs {' or '.join(TRAINERS)}"
        raise OptionError("trainer.v1.trainer_mode", config.trainer.v1.trainer_mode, allowed)


def _check_files(config: DictConfig) -> None:
    for key in ("train_files", "val_files"):
        value = config.data[key]
        for name in value if isinstance(value, ListConfig) else [value]:
            if "://" not in str(name) and not Path(os.path.expanduser(str(name))).is_file():
                raise OptionError(
                    f"data.{key}", str(name), "the file does not exist; see `maskgrpo_plugin.data.prepare`"
                )


def _check_batches(config: DictConfig) -> None:
    arr = config.actor_rollout_ref
    batch, mini = config.data.train_batch_size, arr.actor.ppo_mini_batch_size
    if batch % mini:
        raise OptionError(
            "actor_rollout_ref.actor.ppo_mini_batch_size", mini, f"must divide data.train_batch_size={batch}"
        )
    ranks = config.trainer.n_gpus_per_node * config.trainer.nnodes
    if mini * arr.rollout.n % ranks:
        raise OptionError(
            "actor_rollout_ref.actor.ppo_mini_batch_size", mini, f"times rollout.n must be a multiple of {ranks} ranks"
        )
    micro = arr.actor.ppo_micro_batch_size_per_gpu
    if not arr.actor.use_dynamic_bsz and micro and (mini * arr.rollout.n // ranks) % micro:
        raise OptionError(
            "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu",
            micro,
            f"must divide the {mini * arr.rollout.n // ranks} completions that a rank has in a mini-batch",
        )


def _check_estimation(config: DictConfig) -> None:
    from maskgrpo_plugin.config import check_estimation

    check_estimation(config)


def _check_unsupported(config: DictConfig) -> None:
    arr = config.actor_rollout_ref
    needs_false = {
        "algorithm.use_kl_in_reward": "the KL term of MaskGRPO is in the loss: actor.use_kl_loss",
        "actor_rollout_ref.rollout.calculate_log_probs": "a diffusion sampler has no log-probability of its own",
        "actor_rollout_ref.model.use_fused_kernels": "the engine computes masked positions in chunks itself",
        "actor_rollout_ref.actor.use_prefix_grouper": "it is for causal models",
        "critic.enable": "MaskGRPO has no critic",
    }
    for key, reason in needs_false.items():
        if OmegaConf.select(config, key):
            raise OptionError(key, True, f"use false: {reason}")
    if arr.actor.ulysses_sequence_parallel_size > 1:
        raise OptionError(
            "actor_rollout_ref.actor.ulysses_sequence_parallel_size",
            arr.actor.ulysses_sequence_parallel_size,
            "use 1: sequence parallelism is not offered for masked diffusion",
        )


def _check_model(config: DictConfig) -> None:
    from maskgrpo_plugin.models.checks import check_model

    check_model(config)
    if config.actor_rollout_ref.actor.strategy == "fsdp" and _device() == "cpu":
        raise OptionError("actor_rollout_ref.actor.strategy", "fsdp", "FSDP1 does not run on the CPU; use fsdp2")


def _device() -> str:
    from verl.utils.device import get_device_name

    return get_device_name()


def required_ray_cpus(config: DictConfig) -> int:
    """CPUs that the run's Ray actors take; fewer, and verl waits for ever.

    One each: the task runner, TransferQueue's controller and storage units, reward workers, agent-loop workers, the
    load balancer and each rollout server; three a training rank (verl's colocation slots); and what image scorers ask
    for.
    """
    from maskgrpo_plugin.workers.rollout import ROLLOUTS

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


def _check_ray(config: DictConfig) -> None:
    import ray

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
    if _device() == "cpu" and (slots or 0) < ranks:
        raise OptionError(
            "ray_kwargs.ray_init.num_gpus", slots, f"on the CPU it counts training ranks; set it to {ranks} or more"
        )
