"""What a mask predictor is to engine, samplers and evaluation."""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor
from transformers.utils import ModelOutput

from maskgrpo_plugin.diffusion.likelihood import SamplingDistribution
from maskgrpo_plugin.diffusion.packing import Packing
from maskgrpo_plugin.diffusion.samplers.block_causal.cache import PrefixCache
from maskgrpo_plugin.diffusion.samplers.blocks.cache import BlockCache


@dataclass
class MaskedDiffusionOutput(ModelOutput):
    """What a mask predictor returns.

    Attributes:
        loss: unused; present for tools that expect it.
        logits: (B, L, V), (B, K, V) or (N, V), by what `logits_positions` asked for; None where log-probabilities were.
        log_probs: (N,) float32 log-probabilities of `target_ids` at `logits_positions`.
        entropy: (N,) entropies in nats, or None.
        hidden_states: (B, L, D) or (B, K, D), what the head was applied to; None at single positions.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    log_probs: Tensor | None = None
    entropy: Tensor | None = None
    hidden_states: Tensor | None = None


class MaskPredictor(Protocol):
    """A model that predicts the masked tokens of a canvas from all that it may attend to.

    Samplers also take any callable (input_ids, attention_mask=…) with `.logits` (B, L, V): an attribute that it lacks
    counts as False, 0 or None.

    Attributes:
        supports_logits_positions: takes `logits_positions`, so that few logits are computed.
        supports_vocab_slice: takes `vocab_slice` without targets.
        supports_packing: computes packed lines without padding; others take them and pad inside.
        supports_block_cache: takes `cache` and `first_column` (Fast-dLLM's approximate caches).
        supports_prefix_cache: takes a `PrefixCache` as `cache`: the exact one of block-causal attention.
        logits_shift: how many positions before a token its logits stand, 0 or 1. Only the logits of a whole canvas are
            as the model gives them; at `logits_positions`, and as log-probabilities, they are those of the token there.
        block_length: None where attention is bidirectional. Else attention is block-causal: a token attends to its own
            block of so many and to those before it, counted from the row's first token, prompt included.

    A block-causal model is trained with the noisy and the clean copy of a row in one forward pass, since a noisy block
    attends to the clean ones before it: `input_ids` are the noisy rows, and `clean_ids` of the same form the clean
    ones, which add keys and values but no logits.
    """

    supports_logits_positions: bool
    supports_vocab_slice: bool
    supports_packing: bool
    supports_block_cache: bool
    supports_prefix_cache: bool

    @property
    def logits_shift(self) -> int:
        """See above."""

    @property
    def block_length(self) -> int | None:
        """See above."""

    def __call__(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        *,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        logits_positions: Tensor | None = None,
        target_ids: Tensor | None = None,
        with_entropy: bool = False,
        vocab_slice: tuple[int, int] | None = None,
        guidance_scale: float = 0.0,
        cache: BlockCache | PrefixCache | None = None,
        first_column: int = 0,
        packing: Packing | None = None,
        clean_ids: Tensor | None = None,
        sampling: SamplingDistribution | None = None,
    ) -> MaskedDiffusionOutput:
        """Predict the tokens of a canvas; see `MaskPredictorModel.forward`."""
