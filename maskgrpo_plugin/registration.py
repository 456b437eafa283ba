"""The `verl.plugins` entry point: importing this module adds the plugin to every registry of verl.

verl loads it at the end of `verl/__init__` in the driver and in every Ray worker, and logs a failure at DEBUG
only, so a failure is repeated here as an error.
"""

import importlib
import logging
import warnings

from maskgrpo_plugin.extensions import ExtensionError, load_extensions
from maskgrpo_plugin.registry import Registered
from maskgrpo_plugin.run_facts import show_warnings

logger = logging.getLogger(__name__)

# Each registers something when it is imported, and says what in `REGISTERS`. The order is that of the imports: the
# platform is there before verl's trainers and engines ask for it.
MODULES = (
    "maskgrpo_plugin.models",
    "maskgrpo_plugin.workers.platform",
    "maskgrpo_plugin.trainer.losses",
    "maskgrpo_plugin.trainer.advantages",
    "maskgrpo_plugin.rewards.text.manager",
    "maskgrpo_plugin.rewards.images.manager",
    "maskgrpo_plugin.workers.rollout",
    "maskgrpo_plugin.workers.engine",
    "maskgrpo_plugin.trainer.stages",
    "maskgrpo_plugin.workers.agent_loop",
    "maskgrpo_plugin.validation",
)


def leave_out_missing_engines() -> None:
    """Leave out verl's warnings of engines whose packages are not installed, which it gives in every process of a run.

    An import that fails for another reason than a missing module is still warned of.
    """
    message = r"\w+ engine is not available: ModuleNotFoundError"
    warnings.filterwarnings("ignore", message, UserWarning, r"verl\.workers\.engine")


def register() -> tuple[Registered, ...]:
    """Import everything that registers something with verl or transformers; a second call changes nothing.

    Returns:
        what the modules register.

    Raises:
        ImportError: verl or one of its requirements is missing or of another version.
    """
    return tuple(entry for name in MODULES for entry in importlib.import_module(name).REGISTERS)


leave_out_missing_engines()
show_warnings()
try:
    register()
except Exception:
    logger.exception("maskgrpo_plugin could not register with verl; run `python -m maskgrpo_plugin.doctor`")
    raise
try:
    load_extensions()
except ExtensionError as error:
    logger.error("maskgrpo_plugin: %s", error)
    raise
