"""The `verl.plugins` entry point: importing this module adds the plugin to every registry of verl.

verl loads it at the end of `verl/__init__` in the driver and in every Ray worker, and logs a failure at DEBUG
only, so a failure is repeated here as an error with its traceback.
"""

import logging

logger = logging.getLogger(__name__)


def register() -> None:
    """Add platform, config resolver, losses, advantage, reward managers, rollouts, agent loop and trainer to verl.

    Idempotent: a second call changes nothing.

    Raises:
        ImportError: verl or one of its requirements is missing or of another version.
    """
    from maskgrpo_plugin import models
    from maskgrpo_plugin.workers import platform

    models.register()
    platform.register()

    from maskgrpo_plugin import validation
    from maskgrpo_plugin.rewards.images import manager as image_manager
    from maskgrpo_plugin.rewards.text import manager
    from maskgrpo_plugin.trainer import advantages, losses
    from maskgrpo_plugin.workers.rollout import register_rollouts

    validation.register()
    losses.register()
    advantages.register()
    manager.register()
    image_manager.register()
    register_rollouts()

    from maskgrpo_plugin.trainer import stages  # noqa: F401  (its decorator registers the trainer)
    from maskgrpo_plugin.workers import agent_loop  # noqa: F401  (its decorator registers the agent loop)


try:
    register()
except Exception:
    logger.exception("maskgrpo_plugin could not register with verl; run `python -m maskgrpo_plugin.doctor`")
    raise
