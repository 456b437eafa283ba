"""What an estimator of policy ratios is: passes of the model over noisy canvases, and how their results are added."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from maskgrpo_plugin.errors import check_choice, check_number
from maskgrpo_plugin.registry import ClassRegistry

CANVASES = ("masked", "full", "visible", "trimmed")


@dataclass(frozen=True)
class Rows:
    """A padded batch of completions; tensors are (B, L) where nothing else is said.

    Attributes:
        tokens: int64 ids of prompt and response, padded anywhere.
        response: bool, the response tokens that the model wrote and may learn.
        prompt: bool, the prompt's tokens.
        attended: bool, false at padding.
        keys: (B,) int64, each row's stream of noise; rows with equal keys share their masks.
        mask_token_id: id of the mask token.
        stop_token_ids: ids that end a response.
        reveal_step: int64, the sampler's step that revealed a token, −1 where none did; None where it was not kept.
        sampler_log_prob, sampler_entropy: float, of each token in the distribution that it was drawn from, and that
            distribution's entropy; sampler_allowed: (B, L, K) int64, see `SamplingDistribution.allowed`. A sampler's
            `TokenRecord`; None where it kept none.
        image_tokens: int64, 1 at the response tokens of an image, 0 at those of a text; None where nobody asks.
        block_length: tokens per block of a block-causal model; None where attention is in both directions.
    """

    tokens: Tensor
    response: Tensor
    prompt: Tensor
    attended: Tensor
    keys: Tensor
    mask_token_id: int
    stop_token_ids: tuple[int, ...] = ()
    reveal_step: Tensor | None = None
    sampler_log_prob: Tensor | None = None
    sampler_entropy: Tensor | None = None
    sampler_allowed: Tensor | None = None
    image_tokens: Tensor | None = None
    block_length: int | None = None

    @property
    def positions(self) -> Tensor:
        """(B, L) int64, number of the row's tokens before each one."""
        return (self.attended.long().cumsum(-1) - 1).clamp(min=0)

    def response_blocks(self, block_length: int) -> Tensor:
        """(B, L) int64, the block of each response token, counted from the first one; 0 before it."""
        return (self.response.long().cumsum(-1) - 1).clamp(min=0) // block_length

    @property
    def tail(self) -> Tensor:
        """(B, L) bool, response tokens after the first end token."""
        return after_first_stop(self.tokens, self.response, self.stop_token_ids)


@dataclass(frozen=True)
class Pass:
    """One forward of the model for every completion of a batch. A block-causal model sees each block of the canvas
    behind the clean tokens of those before it, and so scores all blocks in one pass.

    Attributes:
        noisy: (B, L) int64, the model's input.
        scored: (B, L) bool, whose log-probability is asked for.
        weight: (B, L) float64, the factor of each of them in the estimate.
        loss_weight: (B,) float64, the factor of each completion's loss, where the pass is an estimate that stands for
            itself; None: 1.
    """

    noisy: Tensor
    scored: Tensor
    weight: Tensor
    loss_weight: Tensor | None = None


def by_block(values: Tensor, padding: Any, rows: Rows) -> Tensor:
    """Values (B, L) of tokens of rows with a `block_length` as (B · blocks, block_length), by their positions;
    `padding` where a block is short.
    """
    length, positions, attended = rows.block_length, rows.positions, rows.attended
    assert length is not None
    blocks = int(positions.max()) // length + 1
    row = torch.arange(len(values), device=values.device).unsqueeze(-1).expand_as(values)
    table = torch.full((len(values), blocks * length), padding, dtype=values.dtype, device=values.device)
    table[row[attended], positions[attended]] = values[attended]
    return table.view(-1, length)


def by_token(table: Tensor, rows: Rows) -> Tensor:
    """`by_block` back: (B, L), the value of each token; at padding that of some token."""
    return table.reshape(len(rows.tokens), -1).gather(1, rows.positions)


def make_pass(noisy: Tensor, scored: Tensor, weight: float = 1.0) -> Pass:
    """A pass in which every scored token has the same factor."""
    return Pass(noisy, scored, scored.double() * weight)


def clean_copy(noisy: Tensor, tokens: Tensor, prompt: Tensor) -> Tensor:
    """What a block-causal model sees of the blocks before a noisy one: the pass's own prompt, which an estimator may
    mask, and the true tokens of the response; (…, L) each, `prompt` bool.
    """
    return torch.where(prompt, noisy, tokens)


def after_first_stop(tokens: Tensor, response: Tensor, stop_token_ids: Sequence[int]) -> Tensor:
    """Mark response positions strictly after the first end token.

    Args:
        tokens: (B, L) token ids.
        response: (B, L) bool, response positions.
        stop_token_ids: ids that end a response; none marks nothing.

    Returns:
        (B, L) bool. With the end token 2, the response [5, 2, 6, 2] has the tail [0, 0, 1, 1].
    """
    if not stop_token_ids:
        return torch.zeros_like(response)
    stops = torch.isin(tokens, torch.tensor(list(stop_token_ids), device=tokens.device)) & response
    seen = stops.long().cumsum(-1)
    return ((seen - stops.long()) > 0) & response


@dataclass(frozen=True)
class Estimator(ABC):
    """An estimate ℓ̂ of each token's log-probability under the policy, the same at equal masks for θ, θ_old and θ_ref.

    An estimator knows neither model nor devices: it yields passes, the caller runs them, and it adds up what came out.
    Subclasses are frozen dataclasses; their fields are their options.

    Attributes:
        mu: inner updates over the same rollouts, 1 or more; each has passes of its own.
        canvas: what becomes of the tail, the tokens after the first end token, which the sampler did not see when it
            wrote the answer. `masked`: the model sees mask tokens there, and they are not in the loss. `full`: the tail
            is treated like the rest: masked as the estimator masks, and in the loss. `visible`: the model sees the
            tail as it is, not in the loss. `trimmed`: the tail is hidden from attention, not in the loss.

    Class attributes:
        requires: fields of the rollout that `passes` reads beside the tokens, such as `reveal_step`.
        accepts: fields of the batch that `passes` reads where the batch has them.
        uses_old, uses_reference: whether the loss compares with the old and with the reference policy at all.
        from_record: the loss compares with the sampler's record of the tokens, in place of the old policy's estimates;
            all policies are then asked for the log-probability in what the sampler drew from: at its temperature, over
            the tokens that it might emit.
        separable: no token has a part in two passes of an estimate, so that the passes of a row may lie in different
            micro-batches, and each counts what it scores.
        varies: the passes differ from update to update; where they do not, old and reference policy are asked once.
        score: what the loss makes of ℓ̂: `token`, a ratio per token; `sequence`, their sum over the counted tokens is
            one score, such as an evidence bound; `samples`, that sum estimates a sum of log-probabilities, good for a
            gradient and not for a ratio; `bounds`, ℓ̂ is (B, L, 2), a lower and an upper bound.

    Raises:
        OptionError: a value that cannot work.
    """

    mu: int = 1
    canvas: str = "masked"

    requires: ClassVar[tuple[str, ...]] = ()
    accepts: ClassVar[tuple[str, ...]] = ()
    uses_old: ClassVar[bool] = True
    uses_reference: ClassVar[bool] = True
    from_record: ClassVar[bool] = False
    separable: ClassVar[bool] = True
    varies: ClassVar[bool] = True
    score: ClassVar[str] = "token"

    def __post_init__(self) -> None:
        check_number("mu", self.mu, 1, whole=True)
        check_choice("canvas", self.canvas, CANVASES)

    def check_blocks(self, block_length: int) -> None:  # noqa: B027 (most have nothing to refuse)
        """Refuse options that do not fit a block-causal model with blocks of so many tokens.

        Raises:
            OptionError: such an option, by its name.
        """

    @property
    def updates(self) -> int:
        """μ, inner updates over the same rollouts."""
        return self.mu

    @property
    def estimates(self) -> int:
        """Estimates per update that stand each for itself, with a ratio and a row of the loss of its own.

        With n of them the passes are n runs of equal length, one estimate each; a token may have a part in several.
        """
        return 1

    def parts(self, passes: int) -> int:
        """How many runs of equal length the passes of a completion, `passes` in number, may be divided into: those of
        different runs may lie in different micro-batches.
        """
        if self.estimates > 1:
            return self.estimates
        return passes if self.separable else 1

    @property
    def target_smoothing(self) -> float:
        """ε of label smoothing over the image tokens, which the model's read-out applies."""
        return 0.0

    @abstractmethod
    def passes(self, rows: Rows, *, seed: int, step: int, update: int) -> list[Pass]:
        """The passes of one inner update.

        A pure function: the masks depend on seed, step, update, each row's key and its own tokens alone, so that they
        are the same whatever the micro-batching, the order of rows or the number of ranks.

        Args:
            rows: the completions.
            seed: of the run's masks.
            step: the training step.
            update: index of the inner update, from 0.
        """

    def fold(self, passes: Sequence[Pass], log_probs: Sequence[Tensor]) -> Tensor:
        """The estimate ℓ̂ of each token: Σ weight · log_prob over the passes.

        Args:
            passes: as `passes` gave them, or some of them where the estimator is separable. `noisy` is not read, so
                that an engine that no longer holds the canvases may put anything in its place.
            log_probs: for each pass (B, L), log-probabilities where it scores, anything elsewhere.

        Returns:
            (B, L), 0 where no pass scores; (B, L, 2) where the score is `bounds`.
        """
        terms = [torch.where(p.scored, p.weight.to(x.dtype) * x, 0.0) for p, x in zip(passes, log_probs, strict=True)]
        return torch.stack(terms).sum(0)

    def counted(self, rows: Rows, passes: Sequence[Pass]) -> Tensor:
        """(B, L) bool: the tokens that the loss and its mean run over; by default those that any pass scores."""
        return torch.stack([p.scored for p in passes]).any(0)

    def loss_weight(self, update: int) -> float:
        """Factor of an update's loss."""
        return 1.0

    def metrics(self, update: int) -> dict[str, float]:
        """Numbers that describe an update, such as its mask ratio, for the run's log."""
        return {}

    def maskable(self, rows: Rows) -> Tensor:
        """(B, L) bool: response tokens that may be masked and learned, all or those before the tail."""
        return rows.response if self.canvas == "full" else rows.response & ~rows.tail

    def clean(self, rows: Rows) -> Tensor:
        """(B, L) the tokens that the canvases start from, with the tail masked where `canvas` says so."""
        return rows.tokens.masked_fill(rows.tail, rows.mask_token_id) if self.canvas == "masked" else rows.tokens

    def attended(self, rows: Rows) -> Tensor:
        """(B, L) bool: what the model attends to; without the tail where the canvas is trimmed."""
        return rows.attended & ~rows.tail if self.canvas == "trimmed" else rows.attended


ESTIMATORS: ClassRegistry[Estimator] = ClassRegistry("estimator")
register_estimator = ESTIMATORS.register


def build_estimator(name: str, **options: Any) -> Estimator:
    """Build an estimator.

    Args:
        name: `maskgrpo`, `unigrpo`, `diffu_grpo`, `coupled`, `trajectory`, `sampled_steps`, `elbo`, `spg`, `positions`,
            or one that a module of yours registered.
        **options: the estimator's fields; see its class.

    Raises:
        OptionError: an unknown name or option, one that is missing, or a value that cannot work.
    """
    return ESTIMATORS.build(name, **options)
