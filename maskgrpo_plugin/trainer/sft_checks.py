"""Checks of a supervised run's config before anything is built."""

from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from verl.utils.config import omega_conf_to_dataclass

from maskgrpo_plugin.data.sft_rows import BAD_ROWS, TRUNCATIONS, TURNS
from maskgrpo_plugin.diffusion.estimators import build_estimator
from maskgrpo_plugin.errors import OptionError, check_choice, check_number, first_line
from maskgrpo_plugin.export import check_target
from maskgrpo_plugin.models.checks import check_model
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
from maskgrpo_plugin.trainer.sft_data import source_files
from maskgrpo_plugin.workers.platform import check_device

FREQUENCY = Range(1, also=(-1,))
DATA = {
    "train_batch_size": COUNT,
    "val_batch_size": COUNT_OR_NULL,
    "micro_batch_size_per_gpu": COUNT,
    "max_token_len_per_gpu": COUNT,
    "max_length": COUNT,
    "train_max_samples": FREQUENCY,
    "val_max_samples": FREQUENCY,
    "caption_dropout": SHARE,
    "val_draws": COUNT,
}
DIVISORS = ("none", "length")
PREFERENCE_IGNORED = {  # with pairs
    "model": {
        "model_type": Ignored(("masked_diffusion",), "pairs are learned by evidence bounds"),
        "lora_adapter_path": Ignored((None,), "the reference is model.path; maskgrpo_plugin.export merges it"),
    },
    "data": {
        "fill": Ignored(("none",), "the bound of an answer is of its own tokens, up to its end"),
        "assistant_turns": Ignored(("all",), "of a pair the last answers are compared"),
        "caption_dropout": Ignored((0.1, 0.0), "pairs are texts"),
    },
    "denoising": {
        "least_level": Ignored((1e-3,), "masks are drawn by their number of tokens"),
        "least_image_level": Ignored((0.3,), "pairs are texts"),
        "label_smoothing": Ignored((0.0,), "pairs are texts"),
        "block_length": Ignored((None,), "an answer is masked as a whole"),
        "block_weights": Ignored(("row",), "an answer is masked as a whole"),
    },
    "images": {"image_tokenizer": Ignored((None,), "pairs are texts")},
}
FILLS = ("batch", "max_length", "none")
DATA_CHOICES = {"fill": FILLS, "truncation": TRUNCATIONS, "bad_rows": BAD_ROWS, "assistant_turns": TURNS}
DATA_IGNORED = {
    "pad_mode": Ignored(("no_padding",), "rows are packed without padding"),
    "custom_cls.path": Ignored((None,), "rows become examples by maskgrpo_plugin.data.sft_rows"),
    "use_shm": Ignored((False,), "files are read where they are"),
    "balance_dp_token": Ignored((False,), "verl does not implement it"),
}
TRAINER = {
    "total_epochs": COUNT,
    "total_training_steps": COUNT_OR_NULL,
    "seed": Range(0, 2**63 - 1),
    "max_ckpt_to_keep": COUNT_OR_NULL,
}
OPTIM = {"lr": POSITIVE, "weight_decay": NOT_NEGATIVE, "clip_grad": POSITIVE}
IMAGES = {"count": COUNT, "temperature": NOT_NEGATIVE}
MODEL_TYPES = ("masked_diffusion", "language_model")
SCHEDULERS = ("constant", "cosine")
RESUME_MODES = ("auto", "disable", "resume_path")


def check_sft(config: DictConfig, ranks: int = 1) -> None:
    """Check a supervised run's config; its rows are checked where they are read, before the model is built.

    Args:
        config: the composed config.
        ranks: number of processes.

    Raises:
        OptionError: the first value that cannot work.
    """
    try:
        OmegaConf.to_container(config, resolve=True)
    except OmegaConfBaseException as error:
        raise OptionError(str(error.full_key), None, first_line(error)) from None
    for section, table in (("data", DATA), ("trainer", TRAINER), ("optim", OPTIM), ("images", IMAGES)):
        check_ranges(config, section, table)
    check_choices(config, "data", DATA_CHOICES)
    check_ignored(config, "data", DATA_IGNORED)
    check_choices(config, "trainer", {"resume_mode": RESUME_MODES})
    check_choice("optim.lr_scheduler_type", config.optim.lr_scheduler_type, SCHEDULERS)
    check_choice("model.model_type", config.model.model_type, MODEL_TYPES)
    check_choice("engine.strategy", config.engine.strategy, ("fsdp2",))
    for key in ("save_freq", "test_freq"):
        value = config.trainer[key]
        if value != "after_each_epoch" and value != -1:
            check_number(f"trainer.{key}", value, 1, whole=True)
    size = config.data.train_batch_size
    if size % ranks:
        raise OptionError("data.train_batch_size", size, f"allowed: multiples of the {ranks} processes")
    micro = config.data.micro_batch_size_per_gpu
    if not config.data.use_dynamic_bsz and size // ranks % micro:
        allowed = f"allowed: divisors of the {size // ranks} rows of a process, or data.use_dynamic_bsz=true"
        raise OptionError("data.micro_batch_size_per_gpu", micro, allowed)
    target = config.trainer.target_val_loss
    if target is not None:
        check_number("trainer.target_val_loss", target, 0)
        if not any(source.validation for source in source_files(config)):
            raise OptionError("trainer.target_val_loss", target, "it needs data.val_files")
    if config.trainer.export_dir is not None:
        check_target("trainer.export_dir", Path(str(config.trainer.export_dir)).expanduser())
    check_device(config)
    if config.preference is not None:
        _check_preference(config)
    _check_denoising(config)
    _check_sources(config)
    _check_model(config)
    for name in ("engine", "optim", "checkpoint"):
        try:
            omega_conf_to_dataclass(config[name])
        except Exception as error:  # the dataclasses of verl assert
            raise OptionError(name, "…", first_line(error)) from None


def _check_denoising(config: DictConfig) -> None:
    options = OmegaConf.to_container(config.denoising, resolve=True)
    try:
        build_estimator("denoising", **options)  # type: ignore[arg-type]
    except OptionError as error:
        raise error.under("denoising") from None


def _check_preference(config: DictConfig) -> None:
    check_ranges(config, "preference", {"beta": POSITIVE, "draws": COUNT, "length": COUNT_OR_NULL})
    check_choices(config, "preference", {"divisor": DIVISORS})
    divisor, length = config.preference.divisor, config.preference.length
    if (divisor == "length") != (length is not None):
        allowed = f"preference.divisor={divisor} and preference.length go together or not at all"
        raise OptionError("preference.length", length, allowed)
    for section, table in PREFERENCE_IGNORED.items():
        check_ignored(config, section, table)


def _check_sources(config: DictConfig) -> None:
    sources = source_files(config)
    for source in sources:
        check_number(f"{source.key}.share", source.share, 0)
        check_number(f"{source.key}.weight", source.weight, 0)
    if not sum(source.share for source in sources):
        raise OptionError("data.mixture", "…", "a source needs a share above 0")
    if config.data.train_batch_size < len(sources):
        allowed = f"the {len(sources)} sources of data.mixture need a row each"
        raise OptionError("data.train_batch_size", config.data.train_batch_size, allowed)


def _check_model(config: DictConfig) -> None:
    """The checks of an RL run's model section."""
    lengths = {"max_prompt_length": 0, "max_response_length": config.data.max_length}
    model = OmegaConf.to_container(config.model, resolve=True)
    view = OmegaConf.create({"actor_rollout_ref": {"model": model}, "data": lengths})
    try:
        check_model(view)
    except OptionError as error:
        key = "data.max_length" if error.key.startswith("data.") else error.key.removeprefix("actor_rollout_ref.")
        allowed = error.allowed.replace("actor_rollout_ref.", "").replace("with data.max_prompt_length=0 ", "")
        raise OptionError(key, error.value, allowed) from None
