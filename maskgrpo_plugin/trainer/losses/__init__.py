"""Policy losses in verl's registry, one file each; importing the package registers them."""

from maskgrpo_plugin.trainer.losses.gmpo import maskgrpo_gmpo_loss
from maskgrpo_plugin.trainer.losses.maskgrpo import maskgrpo_loss
from maskgrpo_plugin.trainer.losses.tracerl import tracerl_loss


def register() -> None:
    """Nothing more to do: importing the package has registered the losses."""


__all__ = ["maskgrpo_gmpo_loss", "maskgrpo_loss", "tracerl_loss"]
