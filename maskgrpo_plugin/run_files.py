"""Where a run's own files are: its record, which checkpoint is the last, and the metrics of verl's `file` logger."""

import os
from pathlib import Path

RECORD = "run.json"
POINTER = "latest_checkpointed_iteration.txt"  # by which verl names the last checkpoint of a folder
METRICS_VARIABLE = "VERL_FILE_LOGGER_PATH"
ROOT_VARIABLE = "VERL_FILE_LOGGER_ROOT"


def file_logger_path(project: str, experiment: str) -> Path:
    """Where verl's `file` logger writes the metrics of a run.

    Args:
        project, experiment: `trainer.project_name` and `trainer.experiment_name`.
    """
    if given := os.environ.get(METRICS_VARIABLE):
        return Path(given).absolute()
    root = Path(os.environ.get(ROOT_VARIABLE, ".")).expanduser()
    return (root / project / f"{experiment}.jsonl").absolute()
