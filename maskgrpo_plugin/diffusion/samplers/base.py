"""What all samplers share: options, output, the canvas, and the guided forward pass."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from maskgrpo_plugin.diffusion.samplers.noise import Generators
from maskgrpo_plugin.diffusion.shift import logits_in_place


class SamplerOptionError(ValueError):
    """A sampler option that cannot work; names the option, its value and what is allowed."""

    def __init__(self, option: str, value: Any, allowed: str):
        super().__init__(f"sampler option {option}={value!r}: {allowed}")
        self.option, self.value, self.allowed = option, value, allowed


@dataclass
class SamplerOutput:
    """A finished canvas.

    Attributes:
        sequences: (B, L) prompt and response, without a mask token.
        reveal_step: (B, L) int64, the step (from 0, over all blocks) that revealed a position; -1 where none did.
        model_calls: forward passes of the model over a batch.
        row_model_calls: (B,) forward passes that each row took part in.
    """

    sequences: Tensor
    reveal_step: Tensor
    model_calls: int
    row_model_calls: Tensor


@dataclass
class Canvas:
    """The sequence being filled: `tokens` (B, L), `attention_mask` (B, L) or None, and where the response starts."""

    tokens: Tensor
    attention_mask: Tensor | None
    start: int


def check_number(option: str, value: Any, low: float, *, whole: bool = False) -> None:
    """Raise SamplerOptionError unless `value` is a (whole) number of at least `low`."""
    kinds = int if whole else (int, float)
    if isinstance(value, bool) or not isinstance(value, kinds) or not low <= value < math.inf:
        raise SamplerOptionError(option, value, f"allowed: {'whole numbers' if whole else 'numbers'} from {low}")


def check_token_ids(option: str, value: Any) -> None:
    """Raise SamplerOptionError unless `value` is a sequence of token ids, whole numbers from 0."""
    whole = isinstance(value, Sequence) and all(
        isinstance(i, int) and not isinstance(i, bool) and i >= 0 for i in value
    )
    if not whole:
        raise SamplerOptionError(option, value, "allowed: a tuple of token ids, whole numbers from 0")


def check_choice(option: str, value: Any, allowed: Sequence[str]) -> None:
    """Raise SamplerOptionError unless `value` is one of `allowed`."""
    if value not in allowed:
        raise SamplerOptionError(option, value, f"allowed: {', '.join(allowed)}")


OnStep = Callable[[int, Tensor], None]


@dataclass(frozen=True)
class Sampler(ABC):
    """Fills the masked positions of a canvas."""

    @abstractmethod
    def generate(
        self,
        model: Callable[..., Any],
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        *,
        mask_token_id: int,
        generator: Generators = None,
        on_step: OnStep | None = None,
    ) -> SamplerOutput:
        """Sample a batch, without gradients.

        Args:
            model: a `maskgrpo_plugin.models.interface.MaskPredictor`, or any callable (input_ids, attention_mask=…)
                returning `.logits` (B, L, V). Logits are overwritten.
            input_ids: (B, P) prompts, padded on the left; or a canvas (B, L) that already holds mask tokens: what is
                visible in it stays.
            attention_mask: (B, P), 1 = token, 0 = padding; None where nothing is padded.
            mask_token_id: id of the mask token; never emitted.
            generator: source of the noise: one, or one a row (a row's result then does not depend on its batch).
            on_step: called after each step with its number and the tokens so far, (B, L) with masks where hidden.

        Returns:
            `SamplerOutput`.

        Raises:
            ValueError: as many generators as rows are needed, and other inputs that do not fit each other.
        """


def make_canvas(input_ids: Tensor, attention_mask: Tensor | None, response_length: int, mask_token_id: int) -> Canvas:
    """Append `response_length` masks, or take `input_ids` as the canvas where it already holds masks.

    Returns:
        The canvas; its response starts after the prompt, or at the first mask of any row.
    """
    input_ids = input_ids.long()
    masked = input_ids == mask_token_id
    if bool(masked.any()):
        start = int(masked.any(0).nonzero()[0])
        return Canvas(input_ids.clone(), attention_mask, start)
    masks = input_ids.new_full((input_ids.shape[0], response_length), mask_token_id)
    if attention_mask is not None:
        attention_mask = torch.cat([attention_mask, torch.ones_like(masks, dtype=attention_mask.dtype)], dim=1)
    return Canvas(torch.cat([input_ids, masks], dim=1), attention_mask, input_ids.shape[1])


def logits_at(
    model: Callable[..., Any],
    tokens: Tensor,
    attention_mask: Tensor | None,
    positions: Tensor,
    vocab_slice: tuple[int, int] | None = None,
) -> Tensor:
    """Logits at the true positions of (B, L) `positions`, row by row; (N, V), or (N, V') of `vocab_slice`."""
    options: dict[str, Any] = {}
    if vocab_slice is not None and getattr(model, "supports_vocab_slice", False):
        options, vocab_slice = {"vocab_slice": vocab_slice}, None
    if getattr(model, "supports_logits_positions", False):
        logits = model(tokens, attention_mask=attention_mask, logits_positions=positions, **options).logits
    else:
        logits = _whole_logits(model, tokens, attention_mask, **options)[positions]
    if vocab_slice is None:
        return logits
    if vocab_slice[1] > logits.shape[-1]:
        raise SamplerOptionError("vocab_slice", vocab_slice, f"the model has {logits.shape[-1]} tokens")
    return logits[:, vocab_slice[0] : vocab_slice[1]]


def logits_of_columns(
    model: Callable[..., Any], tokens: Tensor, attention_mask: Tensor | None, columns: Tensor, **options: Any
) -> Tensor:
    """Logits at `columns` (B, K) int64 of each row; (B, K, V), which the caller may overwrite."""
    if getattr(model, "supports_logits_positions", False):
        return model(tokens, attention_mask=attention_mask, logits_positions=columns, **options).logits
    logits = _whole_logits(model, tokens, attention_mask, **options)
    return logits.gather(1, columns.unsqueeze(-1).expand(-1, -1, logits.shape[-1]))


def _whole_logits(model: Callable[..., Any], tokens: Tensor, attention_mask: Tensor | None, **options: Any) -> Tensor:
    """Logits (B, L, V), each at its token's column, of a model that computes them all."""
    logits = model(tokens, attention_mask=attention_mask, **options).logits
    return logits_in_place(logits, getattr(model, "logits_shift", 0), attention_mask)


def ban(logits: Tensor, token_ids: Sequence[int], first: int = 0) -> Tensor:
    """Float32 logits (…, V), or float64 ones, with −∞ at the tokens that must not be emitted; column 0 is the token
    `first`. What is given in float32 or float64 is overwritten.

    Raises:
        ValueError: nothing is left to emit.
    """
    columns = sorted({i - first for i in token_ids if 0 <= i - first < logits.shape[-1]})
    if len(columns) == logits.shape[-1]:
        raise ValueError(f"tokens {first} to {first + len(columns) - 1} are all forbidden: nothing is left to emit")
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    for column in columns:
        logits[..., column] = float("-inf")
    return logits


def top_k_per_row(scores: Tensor, counts: Tensor) -> Tensor:
    """Mark the `counts[b]` highest scores of each row; among equals the leftmost; (B, L) -> (B, L) bool.

    The sort is stable, so that a row's marks depend on that row alone: torch.topk breaks ties by length and k, which
    come from the batch.
    """
    order = scores.sort(dim=-1, descending=True, stable=True).indices
    ranks = torch.arange(scores.shape[-1], device=scores.device)
    return torch.zeros_like(scores, dtype=torch.bool).scatter(-1, order, ranks[None, :] < counts[:, None])
