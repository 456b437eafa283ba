"""Checks of actor, reference, their optimiser and sharding, and of all batch sizes, on the driver before Ray starts."""

import importlib
from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf
from verl.utils.torch_dtypes import PrecisionType

from maskgrpo_plugin.errors import OptionError, first_line
from maskgrpo_plugin.tables import (
    COUNT,
    COUNT_OR_NULL,
    NOT_NEGATIVE,
    POSITIVE,
    SHARE,
    Ignored,
    Range,
    check_choices,
    check_ignored,
    check_ranges,
)

ACTOR, REF, ROLLOUT = "actor_rollout_ref.actor", "actor_rollout_ref.ref", "actor_rollout_ref.rollout"
SIZES = {
    "data": {"train_batch_size": COUNT, "gen_batch_size": COUNT_OR_NULL, "val_batch_size": COUNT_OR_NULL},
    "trainer": {"nnodes": COUNT, "n_gpus_per_node": COUNT},
    ACTOR: {
        "ppo_mini_batch_size": COUNT,
        "ppo_micro_batch_size_per_gpu": COUNT_OR_NULL,
        "ppo_max_token_len_per_gpu": COUNT,
    },
    REF: {"log_prob_micro_batch_size_per_gpu": COUNT_OR_NULL, "log_prob_max_token_len_per_gpu": COUNT},
    ROLLOUT: {
        "n": COUNT,
        "val_kwargs.n": COUNT,
        "log_prob_micro_batch_size_per_gpu": COUNT_OR_NULL,
        "log_prob_max_token_len_per_gpu": COUNT,
    },
}
NUMBERS = {
    "clip_ratio": POSITIVE,
    "clip_ratio_low": POSITIVE,
    "clip_ratio_high": POSITIVE,
    "clip_ratio_c": Range(1, whole=False, above=True),
    "kl_loss_coef": NOT_NEGATIVE,
    "grad_clip": POSITIVE,
    "ppo_epochs": COUNT,
    "loss_scale_factor": COUNT_OR_NULL,
    "optim.lr": POSITIVE,
    "optim.weight_decay": NOT_NEGATIVE,
    "optim.clip_grad": POSITIVE,
    "optim.lr_warmup_steps_ratio": SHARE,
    "optim.lr_warmup_steps": Range(0, null=True, also=(-1,)),
    "optim.min_lr_ratio": Range(0, 1, whole=False, null=True),
    "optim.num_cycles": POSITIVE,
    "fsdp_config.fsdp_size": Range(1, also=(-1,)),
}
STRATEGIES = ("fsdp", "fsdp2")
KL_TYPES = ("kl", "k1", "abs", "mse", "k2", "low_var_kl", "k3")
CHOICES = {
    "kl_loss_type": (*KL_TYPES, *(f"{name}+" for name in KL_TYPES)),
    "loss_agg_mode": (
        "token-mean",
        "token-sum",
        "seq-mean-token-sum",
        "seq-mean-token-mean",
        "seq-mean-token-sum-norm",
    ),
    "strategy": STRATEGIES,
    "fsdp_config.strategy": STRATEGIES,
    "optim.lr_scheduler_type": ("constant", "cosine"),
}
CONTENTS = ("model", "optimizer", "extra", "hf_model")
NO_SEQUENCE_PARALLELISM = Ignored((1,), "sequence parallelism is not offered for masked diffusion")
IGNORED = {
    ACTOR: {
        "ulysses_sequence_parallel_size": NO_SEQUENCE_PARALLELISM,
        "fsdp_config.ulysses_sequence_parallel_size": NO_SEQUENCE_PARALLELISM,
        "qat.enable": Ignored((False,), "quantisation-aware training is not offered for masked diffusion"),
        "fsdp_config.qat.enable": Ignored((False,), "quantisation-aware training is not offered for masked diffusion"),
        "calculate_sum_pi_squared": Ignored((False,), "the engine gives log-probabilities and entropies alone"),
        "pad_to_length": Ignored((False,), "rows are packed without padding"),
        "checkpoint.async_save": Ignored((False,), "verl saves asynchronously with Megatron alone"),
        "grad_clip": Ignored((1.0,), f"the largest norm of the gradient is {ACTOR}.optim.clip_grad"),
    },
    REF: {
        "ulysses_sequence_parallel_size": NO_SEQUENCE_PARALLELISM,
        "fsdp_config.ulysses_sequence_parallel_size": NO_SEQUENCE_PARALLELISM,
        "pad_to_length": Ignored((False,), "rows are packed without padding"),
    },
}


def check_batches(config: DictConfig) -> None:
    """Check the sizes of batch, mini-batches and micro-batches of actor, old, reference and validation.

    Raises:
        OptionError: the first that is too small, or that does not divide what it must.
    """
    for section, table in SIZES.items():
        check_ranges(config, section, table)
    arr = config.actor_rollout_ref
    batch, mini, generated = config.data.train_batch_size, arr.actor.ppo_mini_batch_size, config.data.gen_batch_size
    if batch % mini:
        raise OptionError(f"{ACTOR}.ppo_mini_batch_size", mini, f"must divide data.train_batch_size={batch}")
    if generated is not None and batch % generated:
        raise OptionError("data.gen_batch_size", generated, f"must divide data.train_batch_size={batch}")
    ranks = config.trainer.n_gpus_per_node * config.trainer.nnodes
    if mini * arr.rollout.n % ranks:
        raise OptionError(f"{ACTOR}.ppo_mini_batch_size", mini, f"times rollout.n must be a multiple of {ranks} ranks")
    of_rank, of_update = batch * arr.rollout.n // ranks, mini * arr.rollout.n // ranks
    _check_micro_batch(arr.actor, ACTOR, "ppo_micro_batch_size", arr.actor.use_dynamic_bsz, of_update, "a mini-batch")
    is_diffusion = arr.model.model_type == "masked_diffusion"
    sections = {ROLLOUT: arr.rollout} | ({REF: arr.ref} if arr.actor.use_kl_loss else {})
    for section, values in sections.items():
        divided = None if is_diffusion else of_rank  # the diffusion engine fills up its last micro-batch
        _check_micro_batch(
            values, section, "log_prob_micro_batch_size", values.log_prob_use_dynamic_bsz, divided, "a step"
        )
    _check_token_budgets(config)


def check_actor(config: DictConfig) -> None:
    """Check actor, reference, optimiser and sharding of a run.

    Raises:
        OptionError: the first value that cannot work, or that has no effect.
    """
    check_choices(config, ACTOR, CHOICES)
    check_ranges(config, ACTOR, NUMBERS)
    check_choices(config, REF, dict.fromkeys(("strategy", "fsdp_config.strategy"), STRATEGIES))
    check_ranges(config, REF, {"fsdp_config.fsdp_size": NUMBERS["fsdp_config.fsdp_size"]})
    actor = config.actor_rollout_ref.actor
    if actor.rollout_n != config.actor_rollout_ref.rollout.n:
        raise OptionError(f"{ACTOR}.rollout_n", actor.rollout_n, f"it follows {ROLLOUT}.n; set that")
    _check_optimizer(actor.optim)
    for section, values in ((ACTOR, actor), (REF, config.actor_rollout_ref.ref)):
        _check_sharding(config, f"{section}.fsdp_config", values.fsdp_config)
    for name in ("save_contents", "load_contents"):
        for content in actor.checkpoint[name]:
            if content not in CONTENTS:
                raise OptionError(f"{ACTOR}.checkpoint.{name}", content, f"allowed: {', '.join(CONTENTS)}")
    if config.trainer.save_freq > 0 and not {"model", "hf_model"} & set(actor.checkpoint.save_contents):
        contents = list(actor.checkpoint.save_contents)
        raise OptionError(f"{ACTOR}.checkpoint.save_contents", contents, "name model, else nothing is kept")
    if config.actor_rollout_ref.model.model_type == "masked_diffusion":
        for section, table in IGNORED.items():
            check_ignored(config, section, table)


def _check_micro_batch(
    values: DictConfig, section: str, name: str, is_dynamic: bool, rows: int | None, what: str
) -> None:
    """One micro-batch size, which divides the `rows` that a rank has in `what`; None: it need not divide them."""
    if is_dynamic:
        return
    size, old = values[f"{name}_per_gpu"], values.get(name)
    if old is not None:
        raise OptionError(f"{section}.{name}", old, f"use null, and {name}_per_gpu")
    if size is None:
        raise OptionError(f"{section}.{name}_per_gpu", None, "allowed: whole numbers from 1")
    if rows is not None and rows % size:
        raise OptionError(f"{section}.{name}_per_gpu", size, f"must divide the {rows} completions of a rank in {what}")


def _check_token_budgets(config: DictConfig) -> None:
    """With dynamic micro-batches a budget of tokens holds at least one row."""
    arr, longest = config.actor_rollout_ref, config.data.max_prompt_length + config.data.max_response_length
    budgets = {
        f"{ACTOR}.ppo_max_token_len_per_gpu": (arr.actor.use_dynamic_bsz, arr.actor.ppo_max_token_len_per_gpu),
        f"{ROLLOUT}.log_prob_max_token_len_per_gpu": (
            arr.rollout.log_prob_use_dynamic_bsz,
            arr.rollout.log_prob_max_token_len_per_gpu,
        ),
        f"{REF}.log_prob_max_token_len_per_gpu": (
            arr.ref.log_prob_use_dynamic_bsz and arr.actor.use_kl_loss,
            arr.ref.log_prob_max_token_len_per_gpu,
        ),
    }
    for key, (used, budget) in budgets.items():
        if used and budget < longest:
            allowed = f"one row takes up to {longest} tokens (data.max_prompt_length + data.max_response_length)"
            raise OptionError(key, budget, allowed)


def _check_optimizer(optim: DictConfig) -> None:
    key = f"{ACTOR}.optim"
    betas = list(optim.betas)
    if len(betas) != 2 or not all(isinstance(beta, int | float) and 0 <= beta < 1 for beta in betas):
        raise OptionError(f"{key}.betas", betas, "allowed: two numbers from 0 to below 1")
    try:
        module = importlib.import_module(optim.optimizer_impl)
    except Exception as error:
        message = f"it cannot be imported: {first_line(error)}"
        raise OptionError(f"{key}.optimizer_impl", optim.optimizer_impl, message) from None
    if not hasattr(module, optim.optimizer):
        raise OptionError(f"{key}.optimizer", optim.optimizer, f"{optim.optimizer_impl} has no such optimiser")


def _check_sharding(config: DictConfig, key: str, fsdp: DictConfig) -> None:
    ranks = config.trainer.n_gpus_per_node * config.trainer.nnodes
    if fsdp.fsdp_size > 0 and ranks % fsdp.fsdp_size:
        raise OptionError(f"{key}.fsdp_size", fsdp.fsdp_size, f"must divide the {ranks} ranks, or be -1")
    names: dict[str, Any] = {"model_dtype": fsdp.model_dtype, "dtype": fsdp.dtype}
    precision = fsdp.get("mixed_precision")
    if isinstance(precision, Mapping) or OmegaConf.is_dict(precision):
        names |= {f"mixed_precision.{name}": precision[name] for name in precision}
    for name, dtype in names.items():
        try:
            if dtype is not None:
                PrecisionType.to_dtype(dtype)
        except RuntimeError:
            raise OptionError(f"{key}.{name}", dtype, "allowed: fp32, bf16, fp16") from None
