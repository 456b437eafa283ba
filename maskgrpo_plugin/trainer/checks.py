"""Checks of the trainer's sections on the driver before Ray starts: registered names, numbers, unsupported keys."""

from omegaconf import DictConfig, OmegaConf
from verl.experimental.reward_loop.reward_manager.registry import REWARD_MANAGER
from verl.trainer.ppo.core_algos import ADV_ESTIMATOR_REGISTRY, POLICY_LOSS_REGISTRY
from verl.trainer.ppo.v1.trainer_base import TRAINER_REGISTRY
from verl.utils.tracking import Tracking
from verl.workers.rollout.base import _ROLLOUT_REGISTRY

from maskgrpo_plugin.data.checks import check_python_object
from maskgrpo_plugin.errors import OptionError, check_choice
from maskgrpo_plugin.imports import check_class
from maskgrpo_plugin.rewards.failures import FAILURE_POLICIES
from maskgrpo_plugin.tables import (
    COUNT,
    COUNT_OR_NULL,
    NOT_NEGATIVE,
    POSITIVE,
    Ignored,
    Range,
    check_choices,
    check_ignored,
    check_ranges,
)
from maskgrpo_plugin.trainer.advantages import REWARD_TRANSFORMS
from maskgrpo_plugin.trainer.stages import MaskGRPOStages

OR_NEVER = Range(1, also=(-1, 0))
TRAINER = {
    "total_epochs": COUNT,
    "total_training_steps": COUNT_OR_NULL,
    "save_freq": OR_NEVER,
    "test_freq": OR_NEVER,
    "max_actor_ckpt_to_keep": COUNT_OR_NULL,
    "log_val_generations": Range(0),
    "dump_rows": Range(0),
    "dump_freq": OR_NEVER,
    "esi_redundant_time": NOT_NEGATIVE,
    "ray_wait_register_center_timeout": POSITIVE,
    "v1.maskgrpo_sync.poll_interval_s": POSITIVE,
    "v1.maskgrpo_colocate_async.poll_interval_s": POSITIVE,
    "v1.maskgrpo_colocate_async.num_warmup_batches": NOT_NEGATIVE,
    "v1.sampler.max_off_policy_threshold": Range(0, null=True),
}
TRAINER_CHOICES = {
    "device": ("cpu", "cuda", "npu"),
    "resume_mode": ("auto", "disable", "resume_path"),
    "use_v1": (True,),
    "v1.sampler.max_off_policy_strategy": ("drop", "wait"),
}
ADVANTAGES_OF_OTHERS = {  # of verl's advantages, what they need and a masked diffusion run has not
    "gae": "a critic",
    "remax": "greedy rollouts beside the sampled ones",
    "optimal_token_baseline": "probabilities of the rollout",
    "tir_optimal_token_baseline": "probabilities of the rollout",
}
LOSSES_OF_OTHERS = ("bypass_mode", "dppo_kl", "dppo_tv")  # they compare with the rollout's own log-probabilities
NO_CORRECTION = "what compares with the sampler is the estimator sampled_steps (method=agrpo)"
NOT_OFFERED = "it is not offered for masked diffusion"
IGNORED_ALGORITHM = {
    "gamma": Ignored((1.0,), "rewards are of whole completions; a level is algorithm.estimation.options.gamma"),
    "lam": Ignored((1.0,), "there is no critic whose advantages it would weight"),
    "use_pf_ppo": Ignored((False,), NOT_OFFERED),
    "rollout_correction.rollout_is": Ignored((None,), NO_CORRECTION),
    "rollout_correction.rollout_rs": Ignored((None,), NO_CORRECTION),
    "rollout_correction.bypass_mode": Ignored((False,), NO_CORRECTION),
    "rollout_correction.loss_type": Ignored(("ppo_clip",), "the loss is actor.policy_loss.loss_mode"),
    "rollout_correction.rollout_is_batch_normalize": Ignored((False,), "there is no rollout correction"),
    "rollout_correction.rollout_is_threshold": Ignored((2.0,), "there is no rollout correction"),
    "rollout_correction.rollout_rs_threshold": Ignored((None,), "there is no rollout correction"),
}


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
    manager = config.reward.reward_manager
    check_choice("reward.reward_manager.source", manager.source, ("register", "importlib"))
    if manager.source == "register":
        check_choice("reward.reward_manager.name", manager.name, tuple(sorted(REWARD_MANAGER)))
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


def check_trainer(config: DictConfig) -> None:
    """Check the section `trainer`: numbers, choices, what is logged where.

    Raises:
        OptionError: the first value that cannot work.
    """
    check_ranges(config, "trainer", TRAINER)
    check_choices(config, "trainer", TRAINER_CHOICES)
    trainer = config.trainer
    named = [trainer.logger] if isinstance(trainer.logger, str) else list(trainer.logger)
    for name in named:
        check_choice("trainer.logger", name, (*Tracking.supported_backend, "tracking"))
    if trainer.critic_warmup:
        raise OptionError("trainer.critic_warmup", trainer.critic_warmup, "use 0: the actor is not updated before it")
    if trainer.val_only and not trainer.val_before_train:
        raise OptionError("trainer.val_before_train", False, "trainer.val_only=true needs true, else it trains")
    buffer = trainer.v1.sampler.custom_sampler
    if bool(buffer.path) != bool(buffer.name):
        raise OptionError("trainer.v1.sampler.custom_sampler.name", buffer.name, "give path and name, or neither")
    check_python_object(config, "trainer.v1.sampler.custom_sampler")
    check_class("trainer.checkpoint_callback_class", trainer.get("checkpoint_callback_class"))


def check_algorithm(config: DictConfig) -> None:
    """Check the section `algorithm` of a masked diffusion run, and that its settings do something.

    Raises:
        OptionError: the first value that cannot work.
    """
    check_ignored(config, "algorithm", IGNORED_ALGORITHM)
    algorithm, policy_loss = config.algorithm, config.actor_rollout_ref.actor.policy_loss
    needs = ADVANTAGES_OF_OTHERS.get(algorithm.adv_estimator)
    if needs:
        raise OptionError("algorithm.adv_estimator", algorithm.adv_estimator, f"it needs {needs}; use maskgrpo or grpo")
    if algorithm.adv_estimator == "gdpo" and not algorithm.get("gdpo_reward_keys"):
        raise OptionError("algorithm.gdpo_reward_keys", None, "adv_estimator=gdpo needs the names of the rewards")
    if policy_loss.loss_mode in LOSSES_OF_OTHERS:
        key = "actor_rollout_ref.actor.policy_loss.loss_mode"
        raise OptionError(key, policy_loss.loss_mode, "it compares with the rollout's log-probabilities; use maskgrpo")
    if policy_loss.loss_mode == "dro" and policy_loss.dro_beta is None:
        raise OptionError("actor_rollout_ref.actor.policy_loss.dro_beta", None, "loss_mode=dro needs a number")
    if algorithm.filter_groups and algorithm.filter_groups.enable:
        check_ranges(config, "algorithm.filter_groups", {"max_inflight_gen_batches": COUNT})


def check_unsupported(config: DictConfig) -> None:
    """Check that a masked diffusion run asks for nothing that only autoregressive models have.

    Raises:
        OptionError: the first value that cannot work.
    """
    needs_false = {
        "algorithm.use_kl_in_reward": "the KL term of MaskGRPO is in the loss: actor.use_kl_loss",
        "actor_rollout_ref.model.use_fused_kernels": "the engine computes masked positions in chunks itself",
        "actor_rollout_ref.actor.use_prefix_grouper": "it is for causal models",
        "critic.enable": "MaskGRPO has no critic",
        "distillation.enabled": "there is no teacher of masked diffusion",
    }
    if config.trainer.device == "npu":
        raise OptionError("trainer.device", "npu", "use cuda or cpu: weights reach the rollout servers by CUDA's means")
    for key, reason in needs_false.items():
        if OmegaConf.select(config, key):
            raise OptionError(key, True, f"use false: {reason}")
