"""Checks of the policy loss on the driver before Ray starts: its options, and that it fits estimator and KL term."""

from typing import Any

from omegaconf import DictConfig, OmegaConf
from verl.trainer.ppo.core_algos import get_policy_loss_fn

from maskgrpo_plugin.diffusion.estimators import ESTIMATORS
from maskgrpo_plugin.errors import OptionError
from maskgrpo_plugin.trainer.losses import LOSSES, OF_TOKENS, PACKAGED
from maskgrpo_plugin.trainer.losses.sequence import SequenceLoss

ACTOR = "actor_rollout_ref.actor"
LOSS = f"{ACTOR}.policy_loss"
TOKEN = "token"
KL_OF_SCORES = ("k2", "mse")
K3 = ("low_var_kl", "k3")


def check_loss(config: DictConfig) -> None:
    """Check the policy loss of a masked diffusion run.

    Raises:
        OptionError: an option that the loss has not, or a loss, estimator, KL term and mean that do not go together.
    """
    actor, estimator = config.actor_rollout_ref.actor, config.algorithm.estimation.estimator
    name: str = actor.policy_loss.loss_mode
    loss = _build(name, actor.policy_loss)
    _check_fit(name, loss, estimator)
    if loss is not None:
        _check_kl(name, loss, actor)
    elif actor.use_kl_loss and getattr(get_policy_loss_fn(name), "has_kl", False) and actor.kl_loss_type not in K3:
        allowed = f"use low_var_kl: the loss {name} has a k3 term of its own"
        raise OptionError(f"{ACTOR}.kl_loss_type", actor.kl_loss_type, allowed)


def _build(name: str, section: Any) -> SequenceLoss | None:
    """The loss with its options; None where it is one of tokens, which has none."""
    options: Any = OmegaConf.to_container(section.get("options") or OmegaConf.create(), resolve=True)
    if name in LOSSES:
        try:
            return LOSSES.build(name, **options)
        except OptionError as error:
            raise error.under(f"{LOSS}.options") from None
    for option, value in options.items():
        raise OptionError(f"{LOSS}.options.{option}", value, f"the loss {name} has no options")
    return None


def _check_fit(name: str, loss: SequenceLoss | None, estimator: str) -> None:
    score = ESTIMATORS[estimator].score
    if loss is None and name not in PACKAGED:
        return  # a user's own loss, which may take anything
    taken = (TOKEN,) if loss is None else loss.scores
    if score not in taken:
        fitting = sorted(known for known in LOSSES if score in LOSSES[known].scores)
        others = sorted(OF_TOKENS) if score == TOKEN else []
        what = {TOKEN: "a ratio per token", "sequence": "a score per sequence", "bounds": "two bounds per sequence"}
        allowed = (
            f"the estimator {estimator} gives {what.get(score, 'samples of a sum')}: use {_either(others + fitting)}"
        )
        raise OptionError(f"{LOSS}.loss_mode", name, allowed)


def _check_kl(name: str, loss: SequenceLoss, actor: Any) -> None:
    if not actor.use_kl_loss:
        return
    if not loss.has_kl:
        raise OptionError(f"{ACTOR}.use_kl_loss", True, f"use false: the loss {name} has no KL term")
    if actor.kl_loss_type not in KL_OF_SCORES:
        allowed = f"use k2: the loss {name} compares scores of sequences, which have no KL term per token"
        raise OptionError(f"{ACTOR}.kl_loss_type", actor.kl_loss_type, allowed)


def _either(names: list[str]) -> str:
    return " or ".join(names)
