"""Policy losses in verl's registry, one file each; importing the package registers them."""

from functools import partial
from operator import contains

from verl.trainer.ppo.core_algos import POLICY_LOSS_REGISTRY

from maskgrpo_plugin.registry import Registered
from maskgrpo_plugin.trainer.losses.gmpo import maskgrpo_gmpo_loss
from maskgrpo_plugin.trainer.losses.maskgrpo import maskgrpo_loss
from maskgrpo_plugin.trainer.losses.tracerl import tracerl_loss

REGISTERS = tuple(
    Registered(f"loss {name}", partial(contains, POLICY_LOSS_REGISTRY, name))
    for name in ("maskgrpo", "maskgrpo_gmpo", "tracerl")
)

__all__ = ["maskgrpo_gmpo_loss", "maskgrpo_loss", "tracerl_loss"]
