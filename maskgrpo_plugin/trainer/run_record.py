"""What a run leaves about itself in its folder: `run.json` with its config, its versions and where its metrics are."""

import json
import logging
import platform
import re
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from maskgrpo_plugin.files import written_whole
from maskgrpo_plugin.run_files import RECORD, file_logger_path
from maskgrpo_plugin.version import __version__

logger = logging.getLogger(__name__)

PACKAGES = ("torch", "verl", "transformers", "ray", "tensordict", "peft")
SECRET = re.compile(
    r"(^|_)(api_?key|secret|password|passwd|credentials?|access_?key|auth_token|hf_token)$", re.IGNORECASE
)
PASSWORD_IN_ADDRESS = re.compile(r"(\w+://)[^/@\s]+@")


def run_versions() -> dict[str, str | None]:
    """Versions of what a run depends on, by name; None where a package is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version(), "maskgrpo_plugin": __version__}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def record_run(config: DictConfig, step: int) -> Path:
    """Write a run's `run.json` before it opens its metrics; a resumed run adds its start to those before it.

    verl's `file` logger begins a file anew. The metrics of the part before a resume are kept beside it, as
    `<name>.part1.jsonl` and so on, and named in the record.

    Args:
        config: the whole config; values that look like secrets are not written.
        step: the step that the run goes on from, 0 for a new one.

    Returns:
        The file, in `trainer.default_local_dir`.
    """
    trainer = config.trainer
    path = Path(trainer.default_local_dir).expanduser().absolute() / RECORD
    starts = _starts(path) if step > 0 else []
    loggers = [trainer.logger] if isinstance(trainer.logger, str) else list(trainer.logger)
    metrics = None
    if "file" in loggers:
        metrics = str(file_logger_path(str(trainer.project_name), str(trainer.experiment_name)))
        if step > 0:
            _keep(metrics, starts)
    record = {
        "name": str(trainer.experiment_name),
        "starts": [*starts, {"time": time.time(), "step": step, "metrics": metrics}],
        "versions": run_versions(),
        "config": without_secrets(OmegaConf.to_container(config, resolve=True)),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as file:
        file.write_text(json.dumps(record, indent=1, ensure_ascii=False, default=str) + "\n", encoding="utf-8")
    return path


def without_secrets(values: Any, *, hidden: bool = False) -> Any:
    """A config as plain data with `***` for texts under keys such as `api_key`, for all of `env_vars`, and for the
    user and password of addresses."""
    if isinstance(values, dict):
        return {
            str(key): without_secrets(value, hidden=hidden or key == "env_vars" or bool(SECRET.search(str(key))))
            for key, value in values.items()
        }
    if isinstance(values, list | tuple):
        return [without_secrets(value, hidden=hidden) for value in values]
    if isinstance(values, str):
        return "***" if hidden and values else PASSWORD_IN_ADDRESS.sub(r"\1***@", values)
    return values


def _starts(path: Path) -> list[dict[str, Any]]:
    """The starts that an earlier record tells of; none where there is no readable one."""
    try:
        return list(json.loads(path.read_text(encoding="utf-8"))["starts"])
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError):
        logger.warning("%s cannot be read; the resumed run writes a new one", path)
        return []


def _keep(metrics: str, starts: list[dict[str, Any]]) -> None:
    """Rename the metrics of an earlier start that this one would write over, and enter the new name there."""
    file = Path(metrics)
    mine = [start for start in starts if start.get("metrics") == metrics]
    if not mine or not file.is_file() or file.stat().st_size == 0:
        return
    number = 1
    while (kept := file.with_name(f"{file.stem}.part{number}{file.suffix}")).exists():
        number += 1
    file.rename(kept)
    for start in mine:
        start["metrics"] = str(kept)
