"""Checks of the whole config on the driver, before Ray starts: wrong values end the run in seconds, named by key.

verl builds `actor_rollout_ref.actor` on the driver; the plugin's configs hold `preflight: ${maskgrpo.preflight:}`
there, and this resolver checks every section when that key is read.
"""

import math
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from maskgrpo_plugin import extensions
from maskgrpo_plugin.errors import OptionError
from maskgrpo_plugin.registry import Registered
from maskgrpo_plugin.rewards.images.config import check_image_reward_config, image_reward_cpus
from maskgrpo_plugin.rewards.text.config import check_text_reward_config

RESOLVER = "maskgrpo.preflight"
TRAINERS = ("maskgrpo_sync", "maskgrpo_colocate_async")
PLUGIN_ROLLOUTS = ("masked_diffusion", "transformers")


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

    checks: list[Callable[[DictConfig], None]] = [
        extensions.read_config,
        _check_names,
        _check_files,
        _check_batches,
        _check_model,
        _check_rollout,
        check_image_reward_config,
        check_text_reward_config,
        _check_ray,
        check_device,
    ]
    if config.actor_rollout_ref.model.model_type == "masked_diffusion":
        checks[4:4] = [_check_estimation, _check_unsupported]
        checks.append(_check_images)
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


def _check_rollout(config: DictConfig) -> None:
    from maskgrpo_plugin.workers.rollout.model_weights import serves_adapter

    rollout = config.actor_rollout_ref.rollout
    if rollout.name not in PLUGIN_ROLLOUTS:
        return
    ranks = config.trainer.n_gpus_per_node * config.trainer.nnodes
    for key in ("tensor_model_parallel_size", "data_parallel_size", "pipeline_model_parallel_size"):
        if rollout[key] != 1:
            raise OptionError(
                f"actor_rollout_ref.rollout.{key}", rollout[key], f"use 1: each of the {ranks} ranks has its own server"
            )
    if serves_adapter(config.actor_rollout_ref.model) and rollout.layered_summon and rollout.load_format == "dummy":
        raise OptionError(
            "actor_rollout_ref.rollout.layered_summon", True, "it needs rollout.load_format=auto: it sends no base"
        )
    if rollout.max_num_seqs < 1:
        raise OptionError("actor_rollout_ref.rollout.max_num_seqs", rollout.max_num_seqs, "allowed: 1 or more")
    if rollout.agent.default_agent_loop != "maskgrpo_single_turn":
        raise OptionError(
            "actor_rollout_ref.rollout.agent.default_agent_loop",
            rollout.agent.default_agent_loop,
            "the plugin's rollouts are seeded by maskgrpo_single_turn",
        )
    if rollout.name == "masked_diffusion":
        _check_sampler(config)


def _check_sampler(config: DictConfig) -> None:
    from maskgrpo_plugin.config import SamplerSettings
    from maskgrpo_plugin.diffusion.samplers import SamplerOptionError, build_sampler

    rollout = config.actor_rollout_ref.rollout
    keys = {
        "response_length": "data.max_response_length",
        "temperature": "actor_rollout_ref.rollout.temperature",
    }
    values = {key: rollout.sampler[key] for key in rollout.sampler if key != "_target_"}
    known = SamplerSettings.__dataclass_fields__
    for key in values:
        if key not in known:
            raise OptionError(f"actor_rollout_ref.rollout.sampler.{key}", values[key], "no such key")
    settings = SamplerSettings(**values)
    for temperature in (rollout.temperature, rollout.val_kwargs.temperature):
        options = settings.options(response_length=rollout.response_length, temperature=temperature, stop_token_ids=())
        try:
            build_sampler(settings.name, **options)
        except SamplerOptionError as error:
            key = keys.get(error.option, f"actor_rollout_ref.rollout.sampler.{error.option}")
            raise OptionError(key, error.value, str(error.allowed)) from None


def _modalities(config: DictConfig) -> dict[str, list[Any]]:
    """Rows of the data by modality other than text, as (prompt messages, extra_info)."""
    import pyarrow.parquet as pq

    found: dict[str, list[Any]] = {}
    for key in ("train_files", "val_files"):
        value = config.data[key]
        for name in value if isinstance(value, ListConfig) else [value]:
            if "://" in str(name) or not str(name).endswith(".parquet"):
                continue
            table = pq.read_table(os.path.expanduser(str(name)))
            if not {"extra_info", config.data.prompt_key} <= set(table.column_names):
                continue
            infos = table["extra_info"].to_pylist()
            if not any((info or {}).get("modality") for info in infos):
                continue
            for messages, info in zip(table[config.data.prompt_key].to_pylist(), infos, strict=True):
                modality = info.get("modality") or "text"
                if modality != "text":
                    found.setdefault(modality, []).append((messages, info))
    return found


def _check_images(config: DictConfig) -> None:
    """Where rows ask for images: a family that has them, a tokenizer that fits it, and prompts that fit both."""
    from transformers import AutoConfig, AutoTokenizer

    from maskgrpo_plugin.config import ImageSettings
    from maskgrpo_plugin.models.families import ImageFamily, build_family
    from maskgrpo_plugin.models.image_tokenizers import image_tokenizer_config
    from maskgrpo_plugin.workers.agent_loop import build_prompt

    rows = _modalities(config)
    path = os.path.expanduser(str(config.actor_rollout_ref.model.path))
    if not rows or not os.path.isdir(path):
        return
    rollout = config.actor_rollout_ref.rollout
    try:
        family = build_family(AutoConfig.from_pretrained(path), AutoTokenizer.from_pretrained(path))
    except ValueError as error:
        raise OptionError("actor_rollout_ref.model.path", path, str(error)) from None
    if not isinstance(family, ImageFamily):
        raise OptionError(
            "actor_rollout_ref.model.path", path, f"the data asks for {', '.join(rows)}; {family.name} has none"
        )
    image = ImageSettings(**{key: rollout.image[key] for key in rollout.image if key != "_target_"})
    grid = None
    if "t2i" in rows:
        if rollout.sampler.name == "semi_autoregressive":
            raise OptionError(
                "actor_rollout_ref.rollout.sampler.name", rollout.sampler.name, "for images: emerge, maskgit"
            )
        if not image.tokenizer_path or not (Path(image.tokenizer_path).expanduser() / "config.json").is_file():
            raise OptionError(
                "actor_rollout_ref.rollout.image.tokenizer_path",
                image.tokenizer_path,
                "the folder of the image tokenizer's checkpoint, with its config.json",
            )
        try:
            tokenizer_config = image_tokenizer_config(image.tokenizer_path)
        except ModuleNotFoundError as error:
            key = "actor_rollout_ref.rollout.image.tokenizer_path"
            raise OptionError(key, image.tokenizer_path, str(error)) from None
        if tokenizer_config.codebook_size != family.image.codebook_size:
            raise OptionError(
                "actor_rollout_ref.rollout.image.tokenizer_path",
                image.tokenizer_path,
                f"it has {tokenizer_config.codebook_size} codes, the model's config {family.image.codebook_size}",
            )
        try:
            grid = image.grid(family, tokenizer_config)
        except ValueError as error:
            raise OptionError("actor_rollout_ref.rollout.image.height", image.height, str(error)) from None
    for modality, found in rows.items():
        for messages, info in found:
            try:
                prompt = build_prompt(family, messages, info, config.data.max_response_length, grid)
            except (ValueError, KeyError) as error:
                raise OptionError(
                    "data.train_files", info.get("index"), f"a row of modality {modality}: {error}"
                ) from None
            visible = sum(prompt.prompt_mask)
            if visible > config.data.max_prompt_length:
                raise OptionError(
                    "data.max_prompt_length", config.data.max_prompt_length, f"a prompt has {visible} tokens"
                )
            if len(prompt.response_ids) != config.data.max_response_length:
                raise OptionError(
                    "data.max_response_length",
                    config.data.max_response_length,
                    f"an image takes {len(prompt.response_ids)} tokens with its end",
                )


def required_ray_cpus(config: DictConfig) -> int:
    """CPUs that the run's Ray actors take; fewer, and verl waits for ever.

    One each: the task runner, TransferQueue's controller and storage units, reward workers, agent-loop workers, the
    load balancer and each rollout server; three a training rank (verl's colocation slots); and what image scorers ask
    for.
    """
    ranks = config.trainer.n_gpus_per_node * config.trainer.nnodes
    servers = ranks if config.actor_rollout_ref.rollout.name in PLUGIN_ROLLOUTS else 0
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
