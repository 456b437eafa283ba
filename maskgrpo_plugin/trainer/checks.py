"""Checks of the trainer's sections on the driver before Ray starts: registered names, batch sizes, unsupported keys."""

from omegaconf import DictConfig, OmegaConf
from verl.trainer.ppo.core_algos import ADV_ESTIMATOR_REGISTRY, POLICY_LOSS_REGISTRY
from verl.trainer.ppo.v1.trainer_base import TRAINER_REGISTRY
from verl.workers.rollout.base import _ROLLOUT_REGISTRY

from maskgrpo_plugin.errors import OptionError, check_choice
from maskgrpo_plugin.rewards.failures import FAILURE_POLICIES
from maskgrpo_plugin.trainer.advantages import REWARD_TRANSFORMS
from maskgrpo_plugin.trainer.stages import MaskGRPOStages


def check_names(config: DictConfig) -> None:
    """Check that what a run names is registered, and that model, rollout and trainer go together.

    Raises:
        OptionError: the first value that cannot work.
    """
    if config.get("method") is not None:  # Hydra puts a file without that line under its group's name
        raise OptionError("method", list(config.method), "the method's file must begin with `# @package _global_`")
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
    trainers = sorted(name for name, trainer in TRAINER_REGISTRY.items() if issubclass(trainer, MaskGRPOStages))
    if is_diffusion and config.trainer.v1.trainer_mode not in trainers:
        allowed = f"model_type needs {' or '.join(trainers)}"
        raise OptionError("trainer.v1.trainer_mode", config.trainer.v1.trainer_mode, allowed)


def check_batches(config: DictConfig) -> None:
    """Check that batch, mini-batches, micro-batches and ranks divide each other.

    Raises:
        OptionError: the first value that cannot work.
    """
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


def check_unsupported(config: DictConfig) -> None:
    """Check that a masked diffusion run asks for nothing that only autoregressive models have.

    Raises:
        OptionError: the first value that cannot work.
    """
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
