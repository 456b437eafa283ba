"""Checks of the data section on the driver before Ray starts."""

import os
from pathlib import Path

from omegaconf import DictConfig, ListConfig

from maskgrpo_plugin.errors import OptionError


def check_files(config: DictConfig) -> None:
    """Check that the data files of a run are there; those with a scheme, such as `hdfs://`, are taken on trust.

    Raises:
        OptionError: the first value that cannot work.
    """
    for key in ("train_files", "val_files"):
        value = config.data[key]
        for name in value if isinstance(value, ListConfig) else [value]:
            if "://" not in str(name) and not Path(os.path.expanduser(str(name))).is_file():
                raise OptionError(
                    f"data.{key}", str(name), "the file does not exist; see `maskgrpo_plugin.data.prepare`"
                )
