"""What all samplers share: their interface, the canvas, and the model's logits."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from maskgrpo_plugin.diffusion.samplers.noise import Generators
from maskgrpo_plugin.diffusion.samplers.options import number, option, token_ids
from maskgrpo_plugin.diffusion.samplers.record import TokenRecord
from maskgrpo_plugin.diffusion.shift import logits_in_place
from maskgrpo_plugin.errors import OptionError

OnStep = Callable[[int, Tensor, Tensor], None]
"""An observer of sampling: `on_step(step, tokens, probability)`, called after each step. It changes nothing of what is
sampled, and nothing is computed for it where there is none.

step: number of the step, from 0 over all blocks.
tokens: (B, L) int64, the tokens so far, a mask where one is hidden; a copy.
probability: (B, L) float32, of each token that this step revealed, as the sampler's model gave it (after guidance, at
    temperature 1, over the tokens that may be emitted); 0 elsewhere.
"""


@dataclass
class SamplerOutput:
    """A finished canvas.

    Attributes:
        sequences: (B, L) prompt and response, without a mask token.
        reveal_step: (B, L) int64, the step (from 0, over all blocks) that revealed a position; -1 where none did.
        model_calls: forward passes of the model over a batch.
        row_model_calls: (B,) forward passes that each row took part in.
        record: of the last R columns, the response, (B, R); None unless the sampler was asked to keep one.
    """

    sequences: Tensor
    reveal_step: Tensor
    model_calls: int
    row_model_calls: Tensor
    record: TokenRecord | None = None


@dataclass
class DecodedRow:
    """A row that has ended.

    Attributes:
        number: its number, as `RunningBatch.join` gave it.
        response: (R,) int64 tokens, without a mask token.
        reveal_step: (R,) int64, the row's own step that revealed a position; -1 where none did.
        model_calls: forward passes that the row took part in.
        record: of the response, (R,); None unless the sampler was asked to keep one.
    """

    number: int
    response: Tensor
    reveal_step: Tensor
    model_calls: int
    record: TokenRecord | None = None


class RunningBatch(Protocol):
    """A batch that rows join and leave between its blocks; a row's tokens do not depend on the others."""

    model_calls: int

    @property
    def running(self) -> bool:
        """Whether a row has blocks to decode."""

    @property
    def takes_rows(self) -> bool:
        """Whether `join` works now."""

    def join(
        self, tokens: Tensor, attention_mask: Tensor | None, generators: Sequence[torch.Generator | None]
    ) -> list[int]:
        """Add rows, (N, P + R) prompts and then masks, with one generator per row; returns a number for each row."""

    def decode_block(self) -> None:
        """Decode the next block of every row that has not ended."""

    def leave(self) -> list[DecodedRow]:
        """Take the rows that have ended out of the batch."""

    def output(self) -> SamplerOutput:
        """The whole batch, in the order in which rows joined; for a batch that none has left."""


@dataclass(frozen=True, kw_only=True)
class Sampler(ABC):
    """Fills the masked positions of a canvas. A subclass declares its options as fields made by `option`; building one
    checks them.

    Attributes:
        modalities: of what it can be asked for, of `text` (and answers about images) and `t2i` (images). A sampler of
            `t2i` also takes the option `vocab_slice`, (start, stop) of the ids that it may emit, and `generate`'s
            `uncond_input_ids` and `uncond_attention_mask`, prompts (B, P) without their text and their mask.
        block_causal: whether it is for models that attend block by block, rather than in both directions.
        steps: denoising steps in total.
        response_length: tokens appended to a prompt that holds no mask token.
        temperature: 0 takes the most probable token; above, see the sampler.
        cfg_scale: guidance weight w, 0 for none; see the sampler.
        forbidden_token_ids: tokens that are never emitted, like the mask token.

    Raises:
        OptionError: a value that cannot work.
    """

    modalities: ClassVar[tuple[str, ...]]
    block_causal: ClassVar[bool] = False

    steps: int = option(number(1, whole=True))
    response_length: int = option(number(1, whole=True), by_run=True)
    temperature: float = option(number(0), 0.0, by_run=True)
    cfg_scale: float = option(number(0), 0.0)
    forbidden_token_ids: tuple[int, ...] = option(token_ids, ())

    def __post_init__(self):
        for each in fields(self):
            value = getattr(self, each.name)
            if not (value is None and each.default is None):
                each.metadata["check"](each.name, value)

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
            generator: source of the noise: one, or one per row (a row's result then does not depend on its batch).
            on_step: observer, see `OnStep`.

        Returns:
            `SamplerOutput`.

        Raises:
            ValueError: the number of generators is not the batch size, or shapes disagree.
        """

    def decoder(self, model: Callable[..., Any], *, mask_token_id: int, pad_token_id: int = 0) -> RunningBatch | None:
        """How a server serves it: an empty batch that rows join and leave; None: `generate` fills whole canvases."""
        return None

    @property
    def draws(self) -> bool:
        """Whether two samples of a prompt can differ."""
        return self.temperature > 0

    @property
    def takes_compiled_models(self) -> bool:
        """Whether the model's layers may be compiled for any shape (`rollout.compile`)."""
        return True


@dataclass
class Canvas:
    """The sequence being filled: `tokens` (B, L), `attention_mask` (B, L) or None, and where the response starts."""

    tokens: Tensor
    attention_mask: Tensor | None
    start: int


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


def hide_prompt(prompt: Tensor, mask_token_id: int) -> Tensor:
    """The unconditional prompt of a text under guidance: as long as the prompt, every token masked; (…,) -> (…,)."""
    return torch.full_like(prompt, mask_token_id)


def logits_at(
    model: Callable[..., Any],
    tokens: Tensor,
    attention_mask: Tensor | None,
    positions: Tensor,
    vocab_slice: tuple[int, int] | None = None,
) -> Tensor:
    """Logits at the true positions of (B, L) `positions`, row by row; (N, V), or (N, V') of `vocab_slice`.

    Raises:
        OptionError: a block-causal model, or a slice outside the vocabulary.
    """
    _check_bidirectional(model)
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
        raise OptionError("vocab_slice", vocab_slice, f"the model has {logits.shape[-1]} tokens")
    return logits[:, vocab_slice[0] : vocab_slice[1]]


def logits_of_columns(
    model: Callable[..., Any], tokens: Tensor, attention_mask: Tensor | None, columns: Tensor, **options: Any
) -> Tensor:
    """Logits at `columns` (B, K) int64 of each row; (B, K, V), which the caller may overwrite.

    Raises:
        OptionError: a block-causal model.
    """
    _check_bidirectional(model)
    if getattr(model, "supports_logits_positions", False):
        return model(tokens, attention_mask=attention_mask, logits_positions=columns, **options).logits
    logits = _whole_logits(model, tokens, attention_mask, **options)
    return logits.gather(1, columns.unsqueeze(-1).expand(-1, -1, logits.shape[-1]))


def _check_bidirectional(model: Callable[..., Any]) -> None:
    length = getattr(model, "block_length", None)
    if length is not None:
        raise OptionError(
            "model", type(model).__name__, f"it attends block by block ({length} tokens), not to a canvas"
        )


def _whole_logits(model: Callable[..., Any], tokens: Tensor, attention_mask: Tensor | None, **options: Any) -> Tensor:
    """Logits (B, L, V), each at its token's column, of a model that computes them all."""
    logits = model(tokens, attention_mask=attention_mask, **options).logits
    return logits_in_place(logits, getattr(model, "logits_shift", 0), attention_mask)


def ban(logits: Tensor, token_ids: Sequence[int], first: int = 0) -> Tensor:
    """Logits with −∞ at tokens that must not be emitted.

    Args:
        logits: (…, V), whose column 0 is the token `first`; overwritten where they are float32 or float64.
        token_ids: tokens that must not be emitted; those outside the columns are passed over.
        first: token of column 0.

    Returns:
        (…, V), float32 (float64 stays).

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


def token_probability(logits: Tensor, chosen: Tensor) -> Tensor:
    """Probability of each chosen token under the softmax of its logits; (…, V), (…) -> (…) float32."""
    return logits.softmax(-1).gather(-1, chosen.unsqueeze(-1)).squeeze(-1).float()


def revealed_probability(logits: Tensor, chosen: Tensor, hidden: Tensor, revealed: Tensor) -> Tensor:
    """The probabilities that an observer is told (`OnStep`), (B, L) float32.

    Args:
        logits: (N, V) at the N true positions of `hidden`, row by row.
        chosen: (N,) columns of `logits` that were drawn.
        hidden: (B, L) bool, masked before the step.
        revealed: (B, L) bool, the part of them that the step reveals.
    """
    everywhere = torch.zeros(hidden.shape, device=logits.device)
    return everywhere.masked_scatter(hidden, token_probability(logits, chosen)).masked_fill(~revealed, 0)


def top_k_per_row(scores: Tensor, counts: Tensor) -> Tensor:
    """Mark the `counts[b]` highest scores of each row, among equals the leftmost; (B, L) -> (B, L) bool.

    The sort is stable, so that a row's marks depend on that row alone: torch.topk breaks ties by length and k, which
    come from the batch.

    >>> top_k_per_row(torch.tensor([[0.5, 0.9, 0.5, 0.1], [0.2, 0.3, 0.4, 0.1]]), torch.tensor([2, 1]))
    tensor([[ True,  True, False, False],
            [False, False,  True, False]])
    """
    order = scores.sort(dim=-1, descending=True, stable=True).indices
    ranks = torch.arange(scores.shape[-1], device=scores.device)
    return torch.zeros_like(scores, dtype=torch.bool).scatter(-1, order, ranks[None, :] < counts[:, None])
