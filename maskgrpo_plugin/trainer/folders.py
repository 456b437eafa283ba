"""Checks of the folders that a run writes to, on the driver before Ray starts: they can be written, and have room."""

import logging
import os
import re
import shutil
import tempfile
from pathlib import Path

from omegaconf import DictConfig

from maskgrpo_plugin.errors import OptionError
from maskgrpo_plugin.models.weight_files import parameter_count
from maskgrpo_plugin.run_files import POINTER
from maskgrpo_plugin.trainer.checkpoints import existing_ancestor, has_actor, readable, whole_checkpoints

logger = logging.getLogger(__name__)

DTYPE_BYTES = {"fp32": 4, "float32": 4, "32": 4}
ADAM_BYTES = 8  # two float32 moments per trained parameter


def check_folders(config: DictConfig) -> None:
    """Check that what a run writes can be written, and that what it resumes from is there.

    Raises:
        OptionError: a folder that cannot be made or written, one without room for a checkpoint, or no such checkpoint.
    """
    trainer = config.trainer
    for name in ("default_local_dir", "rollout_data_dir", "validation_data_dir"):
        folder = trainer.get(name)
        if folder is None and name != "default_local_dir":
            continue
        if not isinstance(folder, str):
            raise OptionError(f"trainer.{name}", folder, "allowed: the path of a folder")
        _check_writable(f"trainer.{name}", folder)
    _check_resume(config)
    if trainer.save_freq > 0:
        _check_space(config)


def _check_writable(key: str, folder: str) -> None:
    place = existing_ancestor(folder)
    if not place.is_dir():
        raise OptionError(key, folder, f"{place} is no folder")
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        raise OptionError(key, folder, f"{place} cannot be written: {error.strerror or error}") from None


def _check_resume(config: DictConfig) -> None:
    """`resume_path` names a checkpoint that is there; `auto` finds a checkpoint where a pointer says so."""
    trainer = config.trainer
    if trainer.resume_mode == "resume_path":
        path = trainer.resume_from_path
        if not isinstance(path, str) or not re.search(r"global_step_\d+/?$", path):
            allowed = "resume_mode=resume_path needs the folder of a checkpoint, …/global_step_<number>"
            raise OptionError("trainer.resume_from_path", path, allowed)
        if not (Path(path).expanduser() / "actor").is_dir():
            raise OptionError("trainer.resume_from_path", path, "there is no checkpoint (no folder actor in it)")
    root = Path(str(trainer.default_local_dir))
    pointer = root / POINTER
    if trainer.resume_mode != "auto" or not pointer.is_file() or whole_checkpoints(root):
        return  # a pointer that is torn is mended by the trainer where there is a whole checkpoint to name
    step = pointer.read_text(errors="replace").strip()
    if not (step.isdigit() and has_actor(root, step)):
        allowed = f"{pointer} holds {step!r}, and there is no whole checkpoint; remove it to start anew"
        raise OptionError("trainer.default_local_dir", str(trainer.default_local_dir), allowed)


def checkpoint_bytes(config: DictConfig) -> int | None:
    """Bytes of one checkpoint of a run: weights, and the optimiser's state; None where the model's size is unknown."""
    actor, model = config.actor_rollout_ref.actor, config.actor_rollout_ref.model
    count = parameter_count(os.path.expanduser(str(model.path)))
    if count is None:
        return None
    contents = actor.checkpoint.save_contents
    trained = 0 if model.get("lora_rank", 0) else count
    size = count * DTYPE_BYTES.get(str(actor.fsdp_config.model_dtype), 2) if "model" in contents else 0
    return size + (trained * ADAM_BYTES if "optimizer" in contents else 0)


def _check_space(config: DictConfig) -> None:
    needed = checkpoint_bytes(config)
    if needed is None:
        return
    folder = str(config.trainer.default_local_dir)
    place = existing_ancestor(folder)
    free = shutil.disk_usage(place).free
    if free < needed:
        allowed = f"a checkpoint takes about {readable(needed)}, {place} has {readable(free)} free"
        raise OptionError("trainer.default_local_dir", folder, allowed)
    keeps = config.trainer.max_actor_ckpt_to_keep
    if free < needed * ((keeps or 1) + 1):
        logger.warning(
            "trainer.default_local_dir: a checkpoint takes about %s, %s has %s free, and "
            "trainer.max_actor_ckpt_to_keep=%s; one more is written before the oldest goes",
            readable(needed),
            place,
            readable(free),
            keeps,
        )
