"""A user's own modules, which register methods, models, samplers or rewards when they are imported.

They are named by the environment variable MASKGRPO_EXTENSIONS (module names or paths of Python files, separated by
commas) or by entry points of the group `maskgrpo_plugin.extensions`, and are imported after the package's own modules
in each process that imports verl: `registration` sees to it. A run's config names them under `extensions`; the checks
on the driver (`read_config`) write them into the variable for the driver and, by Ray's `runtime_env`, for all workers.

verl's `actor_rollout_ref.model.external_lib` is not enough for that: verl imports it where a model's config is built,
which neither the reward workers, nor the agent loops, nor the driver's checks do before they look for a name.
"""

import os
from importlib.metadata import entry_points
from pathlib import Path

from omegaconf import DictConfig, ListConfig, OmegaConf

from maskgrpo_plugin.errors import OptionError
from maskgrpo_plugin.imports import import_place

__all__ = [
    "GROUP",
    "KEY",
    "RUNTIME_VARIABLES",
    "VARIABLE",
    "ExtensionError",
    "load_extensions",
    "named_in_environment",
    "read_config",
]

VARIABLE = "MASKGRPO_EXTENSIONS"
GROUP = "maskgrpo_plugin.extensions"
KEY = "extensions"
RUNTIME_VARIABLES = "ray_kwargs.ray_init.runtime_env.env_vars"


class ExtensionError(ImportError):
    """An extension that cannot be imported.

    Attributes:
        extension: its module name, file, or `entry point NAME`.
    """

    def __init__(self, extension: str, cause: BaseException):
        first_line = str(cause).splitlines()[0] if str(cause) else ""
        super().__init__(f"the extension {extension!r} cannot be imported: {type(cause).__name__}: {first_line}")
        self.extension = extension


def load_extensions() -> tuple[str, ...]:
    """Import all extensions of this process; those that are imported already stay as they are.

    Returns:
        their names: module names, files, `entry point NAME`.

    Raises:
        ExtensionError: the first that cannot be imported; those before it are imported.
    """
    named = named_in_environment()
    for name in named:
        _import(name)
    entries = sorted(entry_points(group=GROUP), key=lambda entry: entry.name)
    for entry in entries:
        try:
            entry.load()
        except Exception as error:
            raise ExtensionError(f"entry point {entry.name}", error) from error
    return (*named, *(f"entry point {entry.name}" for entry in entries))


def named_in_environment() -> tuple[str, ...]:
    """What MASKGRPO_EXTENSIONS holds, in order."""
    return tuple(name.strip() for name in os.environ.get(VARIABLE, "").split(",") if name.strip())


def read_config(config: DictConfig) -> None:
    """Import the extensions that a run's config names, and have all processes of the run import them.

    Files are made absolute. The names go into this process's environment, which a local Ray's workers inherit, and into
    `ray_kwargs.ray_init.runtime_env.env_vars` of the config, which verl gives to `ray.init` after its checks: the
    workers of a cluster get them from there.

    Args:
        config: the composed config of `verl.trainer.main_ppo`; its `extensions` is a list of module names and files.

    Raises:
        OptionError: `extensions` is no list of names, or one cannot be imported.
    """
    wanted = config.get(KEY) or []
    if not isinstance(wanted, ListConfig | list | tuple) or not all(isinstance(name, str) for name in wanted):
        raise OptionError(KEY, wanted, "allowed: a list of module names and paths of Python files")
    wanted = [_absolute(name) for name in wanted]
    names = ",".join(dict.fromkeys([*named_in_environment(), *wanted]))
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = names
    try:
        load_extensions()
    except ExtensionError as error:
        _restore(before)
        raise OptionError(KEY, error.extension, str(error)) from error
    if wanted:
        config[KEY] = wanted
    if names:
        OmegaConf.update(config, f"{RUNTIME_VARIABLES}.{VARIABLE}", names, force_add=True)


def _import(name: str) -> None:
    try:
        import_place(name)
    except Exception as error:
        raise ExtensionError(name, error) from error


def _absolute(name: str) -> str:
    return str(Path(name).expanduser().resolve()) if name.endswith(".py") else name


def _restore(before: str | None) -> None:
    if before is None:
        os.environ.pop(VARIABLE, None)
    else:
        os.environ[VARIABLE] = before
