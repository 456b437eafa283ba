"""Policy losses of scores, one per row: what they share, and their registry. An estimate's score is its sum over a row.

A row is a completion, or one of its estimates where the estimator has several that stand each for itself.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from verl.trainer.ppo.core_algos import agg_loss, register_policy_loss
from verl.utils.torch_functional import masked_mean

from maskgrpo_plugin.errors import OptionError, check_choice, check_number
from maskgrpo_plugin.registry import ClassRegistry
from maskgrpo_plugin.trainer.losses.base import ratio_metrics

DIVISORS = ("counted", "length", "none")


@dataclass(frozen=True)
class Scores:
    """What a loss of scores sees, (u,) per row.

    Attributes:
        new: scores S under the policy, with gradients.
        old: under the policy before the first update.
        reference: under the reference policy; None without a KL term.
        advantage: the row's advantage A.
        divisor: what S is divided by.
    """

    new: Tensor
    old: Tensor
    reference: Tensor | None
    advantage: Tensor
    divisor: Tensor

    @property
    def log_ratio(self) -> Tensor:
        """(S − S_old) / divisor."""
        return (self.new - self.old) / self.divisor

    def kl(self) -> Tensor:
        """k2 of the scores, (S − S_reference)²/(2·divisor); 0 without a reference."""
        if self.reference is None:
            return torch.zeros_like(self.new)
        return (self.new - self.reference).square() / (2 * self.divisor)


@dataclass(frozen=True)
class SequenceLoss(ABC):
    """A policy loss of rows; subclasses are frozen dataclasses whose fields are `actor.policy_loss.options`.

    `actor.loss_agg_mode` says how rows are averaged: `token-mean` weighs each by its counted tokens, every other mode
    takes the mean over rows. Both are over the rows of all ranks; a row without counted tokens adds nothing.

    Attributes:
        divisor: what a score is divided by: `counted`, the row's counted tokens; `length`; `none`.
        length: a number of tokens, such as the length of all responses; for `divisor=length`.

    Class attributes:
        scores: kinds of estimates that it takes, see `Estimator.score`.
        uses_old: whether it compares with the policy before the first update.
        has_kl: whether it has a KL term of its own, k2 of the scores, for `actor.use_kl_loss`.

    Raises:
        OptionError: a value that cannot work.
    """

    divisor: str = "counted"
    length: int | None = None

    scores: ClassVar[tuple[str, ...]] = ("sequence",)
    uses_old: ClassVar[bool] = True
    has_kl: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_choice("divisor", self.divisor, DIVISORS)
        if self.length is not None:
            check_number("length", self.length, 1, whole=True)
        if (self.divisor == "length") != (self.length is not None):
            raise OptionError("length", self.length, f"divisor={self.divisor} and length go together or not at all")

    @abstractmethod
    def of_rows(self, scores: Scores, config: Any) -> tuple[Tensor, Tensor]:
        """Each row's loss, and whether a bound acts on it, (u,) both.

        Args:
            scores: of the rows.
            config: actor config with `clip_ratio_low`, `clip_ratio_high`, `clip_ratio_c`, `kl_loss_coef`.
        """

    def chosen(self, estimates: Tensor, advantages: Tensor) -> Tensor:
        """The estimates that are added up to scores, (u, r); `estimates` (u, r, 2) where they are bounds."""
        return estimates

    def __call__(
        self,
        old_log_prob: Tensor,
        log_prob: Tensor,
        advantages: Tensor,
        response_mask: Tensor,
        loss_agg_mode: str = "seq-mean-token-mean",
        config: Any = None,
        rollout_is_weights: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Any]]:
        """The loss of some rows.

        Args:
            old_log_prob, log_prob: (u, r) estimates ℓ̂, 0 where nothing is scored; (u, r, 2) where they are bounds.
            advantages: (u, r), equal along a row.
            response_mask: (u, r) the counted tokens.
            loss_agg_mode: see the class.
            config: actor config, with `global_batch_info`, and with `ref_log_prob` (u, r) where the loss has a KL term.
            rollout_is_weights: (u, r) factor of each row's loss, equal along it; None: 1.

        Returns:
            The scalar loss and a dict of floats.
        """
        mask, counted = response_mask.bool(), response_mask.sum(-1)
        scores = Scores(
            new=_score(self.chosen(log_prob, advantages), mask),
            old=_score(self.chosen(old_log_prob, advantages), mask),
            reference=self._reference(config, mask),
            advantage=_of_row(advantages, mask),
            divisor=self._divisor(counted),
        )
        losses, bounded = self.of_rows(scores, config)
        if rollout_is_weights is not None:
            losses = losses * _of_row(rollout_is_weights, mask)
        loss = row_mean(losses, mask, loss_agg_mode, config)
        rows = (counted > 0).unsqueeze(-1)
        log_ratio = scores.log_ratio.detach().unsqueeze(-1)
        metrics = ratio_metrics((scores.new / scores.divisor).detach().unsqueeze(-1), log_ratio, bounded[:, None], rows)
        if scores.reference is not None:
            metrics["actor/kl_of_scores"] = masked_mean(scores.kl().detach().unsqueeze(-1), rows).item()
        return loss, metrics

    def _reference(self, config: Any, mask: Tensor) -> Tensor | None:
        values = getattr(config, "ref_log_prob", None)
        return None if values is None or not self.has_kl else _score(values, mask)

    def _divisor(self, counted: Tensor) -> Tensor:
        return counted.clamp(min=1) if self.divisor == "counted" else torch.full_like(counted, self.length or 1)


def row_mean(losses: Tensor, mask: Tensor, loss_agg_mode: str, config: Any) -> Tensor:
    """The mean of (u,) rows over those of all ranks, by their counted tokens where the mode is `token-mean`."""
    if loss_agg_mode == "token-mean":
        return agg_loss(losses.unsqueeze(-1).expand(mask.shape), mask, loss_agg_mode, **config.global_batch_info)
    info = config.global_batch_info
    return agg_loss(losses.unsqueeze(-1), mask.any(-1, keepdim=True), "seq-mean-token-sum", **info)


def _score(values: Tensor, mask: Tensor) -> Tensor:
    """(u,) the sum over the counted tokens, in float32 at least: scores are large beside their differences."""
    return (values.to(torch.promote_types(values.dtype, torch.float32)) * mask).sum(-1)


def _of_row(values: Tensor, mask: Tensor) -> Tensor:
    """(u,) the value that a row has at its counted tokens, 0 where it has none."""
    first = mask.long().argmax(-1, keepdim=True)
    return values.gather(-1, first).squeeze(-1) * mask.any(-1)


LOSSES: ClassRegistry[SequenceLoss] = ClassRegistry("loss")


def register_sequence_loss(name: str) -> Callable[[type[SequenceLoss]], type[SequenceLoss]]:
    """Decorator that adds a `SequenceLoss` to `LOSSES`, and to verl's registry as `actor.policy_loss.loss_mode`."""

    def decorate(loss: type[SequenceLoss]) -> type[SequenceLoss]:
        def policy_loss(*, config: Any, **values: Any) -> tuple[Tensor, dict[str, Any]]:
            return LOSSES.build(name, **config.policy_loss.options)(config=config, **values)

        policy_loss.has_kl = loss.has_kl  # type: ignore[attr-defined]  # for the workers, which know no losses
        policy_loss.__doc__ = loss.__doc__
        register_policy_loss(name)(policy_loss)
        return LOSSES.register(name)(loss)

    return decorate
