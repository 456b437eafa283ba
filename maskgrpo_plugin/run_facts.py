"""What a run tells the screen of `maskgrpo train` that watches it: what it is, its warnings, what it does just now."""

import json
import logging
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

from maskgrpo_cli.metrics import stamp
from maskgrpo_cli.signals import FACTS_VARIABLE, PHASE_MARK, WARNING_MARK
from maskgrpo_plugin.data.row_files import FILE_KEYS, rows_used
from maskgrpo_plugin.files import written_whole
from maskgrpo_plugin.run_files import METRICS_VARIABLE, ROOT_VARIABLE, file_logger_path

METRICS = "metrics.jsonl"


class ScreenLines(logging.Handler):
    """Writes the plugin's warnings to standard error as lines that the screen finds; Ray brings those of workers."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record as one line."""
        sys.stderr.write(f"{WARNING_MARK}{' '.join(record.getMessage().split())}\n")


def is_watched() -> bool:
    """Whether a screen watches this process's run."""
    return FACTS_VARIABLE in os.environ


def show_warnings() -> None:
    """Have the plugin's warnings on the screen, where one watches; a second call changes nothing."""
    logger = logging.getLogger("maskgrpo_plugin")
    if is_watched() and not any(isinstance(handler, ScreenLines) for handler in logger.handlers):
        logger.addHandler(ScreenLines(logging.WARNING))


def tell_phase(text: str) -> None:
    """Have the screen say what the run does just now, where one watches."""
    if is_watched():
        sys.stderr.write(f"{PHASE_MARK}{text}\n")
        sys.stderr.flush()


class TellFacts(Callback):
    """Hydra's callback (`hydra.callbacks`) that writes a run's facts for the screen, where one watches.

    The screen reads verl's metrics, so that the logger `file` is switched on.
    """

    def __init__(self) -> None:
        self.added: list[str] = []

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Called with the composed config, which the run then gets; one that cannot be read is left to the checks."""
        if is_watched():
            with read_write(config), open_dict(config), suppress(OmegaConfBaseException, AttributeError):
                self.added = switch_metrics_on(config)

    def on_job_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Called once the config has passed the checks."""
        if is_watched():
            facts = run_facts(config) | {"added": self.added}
            with written_whole(Path(os.environ[FACTS_VARIABLE])) as file:
                file.write_text(json.dumps(facts), encoding="utf-8")
            tell_phase("starting Ray")


def switch_metrics_on(config: DictConfig) -> list[str]:
    """Have verl write its metrics to a file, which is in the run's folder where the environment names no other.

    The choice is handed on to the run's processes, in the environment and in `ray_kwargs.ray_init`.

    Returns:
        the overrides that this comes to, but for the environment.
    """
    added = []
    given = config.trainer.logger
    loggers = [given] if isinstance(given, str) else list(given or [])
    if "file" not in loggers:
        config.trainer.logger = [*loggers, "file"]
        added.append(f"trainer.logger=[{','.join(config.trainer.logger)}]")
    os.environ[METRICS_VARIABLE] = str(metrics_path(config))
    for name in (METRICS_VARIABLE, FACTS_VARIABLE):
        OmegaConf.update(config, f"ray_kwargs.ray_init.runtime_env.env_vars.{name}", os.environ[name], force_add=True)
    return added


def metrics_path(config: DictConfig) -> Path:
    """Where verl's `file` logger writes: what the environment says, else `metrics.jsonl` in the run's folder."""
    if os.environ.get(METRICS_VARIABLE) or os.environ.get(ROOT_VARIABLE):
        return file_logger_path(str(config.trainer.project_name), str(config.trainer.experiment_name))
    return run_folder(config) / METRICS


def run_folder(config: DictConfig) -> Path:
    """The folder of a run, `trainer.default_local_dir`."""
    return Path(str(config.trainer.default_local_dir)).expanduser().absolute()


def run_facts(config: DictConfig) -> dict[str, Any]:
    """What a run is, as plain data: name, model, rows and completions, steps, folder, and the file of its metrics.

    `train_rows`, `validation_rows` and `steps` are None where the data cannot be counted without reading it.
    """
    data, trainer, settings = config.data, config.trainer, config.actor_rollout_ref
    rows, judged = (_rows_of(config, key) for key in FILE_KEYS)
    steps = trainer.total_training_steps
    if steps is None and rows is not None:
        steps = rows // data.train_batch_size * trainer.total_epochs
    metrics = metrics_path(config)
    return {
        "name": str(trainer.experiment_name),
        "model": str(settings.model.path),
        "model_type": str(settings.model.get("model_type", "language_model")),
        "train_rows": rows,
        "validation_rows": judged,
        "prompts": data.train_batch_size,
        "completions": settings.rollout.n,
        "steps": steps,
        "folder": str(run_folder(config)),
        "metrics": str(metrics),
        "metrics_before": stamp(metrics),
    }


def _rows_of(config: DictConfig, key: str) -> int | None:
    total = count_rows(config.data[key])
    return None if total is None else rows_used(config, key, total)


def count_rows(files: Any) -> int | None:
    """Rows of parquet files by what they say of themselves; None where one is of another kind, or cannot be read."""
    import pyarrow.parquet as pq

    paths = [files] if isinstance(files, str) else list(files or [])
    try:
        return sum(pq.read_metadata(Path(path).expanduser()).num_rows for path in paths) if paths else None
    except (OSError, ValueError):
        return None
