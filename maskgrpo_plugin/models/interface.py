"""What a mask predictor offers to engine, samplers and evaluation; and its read-out, written once for all of them.

A further architecture is a configuration and a class with an `encode`, its transformer: see `MaskPredictorModel`.
"""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from maskgrpo_plugin.diffusion.likelihood import (
    SamplingDistribution,
    fused_log_probs,
    masked_log_probs,
    sliced_log_probs,
)
from maskgrpo_plugin.diffusion.packing import Packing
from maskgrpo_plugin.diffusion.samplers.block_causal.cache import PrefixCache
from maskgrpo_plugin.diffusion.samplers.blocks.cache import BlockCache
from maskgrpo_plugin.models.layout import Layout, at_columns, lay_out, rectangular_mask
from maskgrpo_plugin.models.predictor import MaskedDiffusionOutput, MaskPredictor
from maskgrpo_plugin.models.two_copies import TwoCopies
from maskgrpo_plugin.models.weight_files import check_loaded

__all__ = ["Layout", "MaskPredictor", "MaskPredictorModel", "MaskedDiffusionOutput", "at_columns", "linear"]


class MaskPredictorModel(PreTrainedModel):
    """A `MaskPredictor` made of a transformer: subclasses give `encode`, this class embeds, lays out and reads out.

    A model of transformers with another attention mask inherits from both, this class first. `encode` obeys
    `Layout.attention_mask` and `Layout.columns`; with `supports_packing` also `Layout.packing`, with
    `supports_block_cache` also `Layout.cache`, with `supports_prefix_cache` also `Layout.prefix`, where
    `attends_in_tiles` also `Layout.tiles`.
    `supports_block_attention` says that `block_length` may be given: the mask then has the blocks. The embedding and
    the head are those that `get_input_embeddings` and `get_output_embeddings` (None: tied to the embedding) name.
    """

    supports_logits_positions: bool = True
    supports_vocab_slice: bool = True
    supports_packing: bool = False
    supports_block_cache: bool = False
    supports_prefix_cache: bool = False
    supports_block_attention: ClassVar[bool] = False
    main_input_name = "input_ids"

    def __init__(self, config: Any, *args: Any, **kwargs: Any):
        if config._attn_implementation == "auto":
            config._attn_implementation = "sdpa"
        super().__init__(config, *args, **kwargs)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: Any,
        *args: Any,
        output_loading_info: bool = False,
        ignore_mismatched_sizes: bool = False,
        **kwargs: Any,
    ) -> Any:
        """As transformers' own, whose arguments it takes; but weights that are missing are not made up.

        Raises:
            MissingWeightsError: parameters that the checkpoint lacks, or, unless `ignore_mismatched_sizes`, that have
                another shape there.
        """
        model, info = super().from_pretrained(
            pretrained_model_name_or_path, *args, output_loading_info=True, ignore_mismatched_sizes=True, **kwargs
        )
        check_loaded(str(pretrained_model_name_or_path), info, shapes=not ignore_mismatched_sizes)
        return (model, info) if output_loading_info else model

    @property
    def logits_shift(self) -> int:
        """The config's `logits_shift`, 0 where it has none; see `MaskPredictor`."""
        return getattr(self.config, "logits_shift", 0)

    @staticmethod
    def block_length_of(config: Any) -> int | None:
        """Tokens per block of a model with this config; None: attention is bidirectional, see `MaskPredictor`."""
        return None

    @property
    def block_length(self) -> int | None:
        """The config's, see `block_length_of`."""
        return self.block_length_of(self.config)

    def attends_in_tiles(self, device: torch.device) -> bool:
        """Whether `encode` is to be given `Layout.tiles`, for flex attention, rather than a mask of both copies."""
        return False

    def encode(self, inputs_embeds: Tensor, layout: Layout) -> Tensor:
        """The transformer up to and with its last norm.

        Args:
            inputs_embeds: (B, W, D), or (1, T, D) where `layout.packing` is given.
            layout: of these columns.

        Returns:
            (B, W, D) or (1, T, D); at `layout.columns`, where given, (B, K, D) or (1, N, D) (see `at_columns`).
        """
        raise NotImplementedError(f"{type(self).__name__} has no encode")

    def project(self, hidden: Tensor, vocab_slice: tuple[int, int] | None = None) -> Tensor:
        """The head; (…, D) -> (…, V), or the columns [start, stop) of the vocabulary alone."""
        matrix = self._head_matrix()
        if matrix is not None:
            return linear(hidden, matrix if vocab_slice is None else matrix[vocab_slice[0] : vocab_slice[1]])
        logits = self.get_output_embeddings()(hidden)
        return logits if vocab_slice is None else logits[..., vocab_slice[0] : vocab_slice[1]]

    def _head_matrix(self) -> Tensor | None:
        """The head's (V, D) matrix; None where the head is more than that, such as one with an adapter."""
        head = self.get_output_embeddings()
        if head is None:
            return self.get_input_embeddings().weight
        return head.weight if type(head) is nn.Linear and head.bias is None else None

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
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
        block_length: int | None = None,
        chunk_size: int = 512,
        label_smoothing: float = 0.0,
        sampling: SamplingDistribution | None = None,
        **kwargs: Any,
    ) -> MaskedDiffusionOutput:
        """Predict the tokens of a canvas.

        Two rows of 2 and 3 tokens whose last tokens are asked for, as a batch and as a line:

            model(batch, attention_mask=mask, logits_positions=last)                 (2, 3), (2, 3), (2, 3) bool
            model(line, packing=Packing.from_lengths([2, 3], device),                (1, 5)
                  logits_positions=torch.tensor([1, 4]))                             (2,) places in the line

        Args:
            input_ids: (B, L) tokens, masked positions holding the mask token; or (1, T), a packed line.
            attention_mask: (B, L), 1 = token, 0 = padding on either side, which takes no part (logits there are those
                of hidden states 0); or (B, 1, L, L) bool, true = attend, also instead of a model's own blocks; None
                attends everywhere.
            position_ids: (B, L); by default the number of tokens before, so that padding does not shift a row.
            inputs_embeds: (B, L, D) instead of `input_ids`.
            logits_positions: where the head runs. (B, L) bool, or (1, T) for a line: at these N positions, row by row.
                (N,) int64: at these places of the line; the device is not waited for. (B, K) int64: at these columns
                of each row, with the queries of the last layer at them alone; logits (B, K, V).
            target_ids: (N,) tokens at those positions; then log-probabilities come instead of logits.
            with_entropy: also the entropies there.
            vocab_slice: (start, stop) of the image tokens: a target among them is scored by a softmax over these
                columns alone, any other by one over the whole vocabulary; without targets: the columns of the logits.
            guidance_scale: above 0, the second half of the rows holds the first half's canvases without the prompt's
                text, both halves have as many positions, and `target_ids` are the first half's: the N/2
                log-probabilities are those of (1 + w)·logits − w·logits without the text. The head is linear, so the
                hidden states are combined before it.
            cache: empty: keeps the keys and values of this pass. Filled: `input_ids` are the columns from
                `first_column` on of a canvas that the mask covers whole; what the cache knows stands in for the others.
                A `PrefixCache`, for block-causal attention: `input_ids` (B, W) are a few columns of each row, at the
                positions `position_ids`; `attention_mask` (B, used) says which of the cache's columns hold a token of
                the row; `packing` tells padding among the W apart.
            first_column: the canvas's column of the first of `input_ids`; `logits_positions` count from it.
            packing: of the line, or of the (B, L) mask. Without it, a mask has the device waited for to make it.
            clean_ids: of a block-causal model, as `input_ids`: the clean tokens of the rows. Each block of `input_ids`
                then attends to itself and to the clean blocks before it, in one pass of twice the tokens.
            block_length: for block-causal models, another length than the config's.
            chunk_size: positions per chunk of the head.
            label_smoothing: ε ≥ 0: the log-probability ℓ of a target among the columns of `vocab_slice` becomes
                (1 − ε)·ℓ + ε·mean of the log-probabilities of those columns; of any other it stays.
            sampling: what a sampler drew the targets from: their log-probabilities there, whatever `vocab_slice` and
                `label_smoothing`. Its N tokens are those of `target_ids`.
            **kwargs: accepted for transformers' callers.

        Returns:
            `MaskedDiffusionOutput`.

        Raises:
            ValueError: a cache that is not for the model's attention or shift, a block length or clean tokens for
                bidirectional attention, or columns of a line.
        """
        blocks = self._blocks(block_length, cache)
        if clean_ids is not None and (
            blocks is None or cache is not None or position_ids is not None or inputs_embeds is not None
        ):
            raise ValueError("clean_ids: for block-causal attention, without cache, position_ids and inputs_embeds")
        if packing is None and cache is None and attention_mask is not None and attention_mask.dim() == 2:
            packing = Packing.of(attention_mask)
            attention_mask = None
        given = input_ids if inputs_embeds is None else inputs_embeds
        if clean_ids is not None and packing is None:
            packing = Packing.from_lengths([clean_ids.shape[1]] * clean_ids.shape[0], clean_ids.device)
        is_line = packing is not None and given is not None and packing.is_line(given)
        if packing is not None and not is_line:
            input_ids, inputs_embeds, position_ids = (
                None if part is None else packing.pack(part) for part in (input_ids, inputs_embeds, position_ids)
            )
        copies = None
        if clean_ids is not None and input_ids is not None and packing is not None and blocks is not None:
            copies = TwoCopies.of(packing, blocks)
            input_ids = copies.lay(input_ids, clean_ids if is_line else packing.pack(clean_ids))
        x = self.get_input_embeddings()(input_ids) if inputs_embeds is None else inputs_embeds
        places = self._places(logits_positions, packing, is_line)
        if places is not None and copies is not None:
            places = copies.places(places, self.logits_shift)
        elif places is not None and self.logits_shift:
            before = places % x.shape[1] if packing is None else packing.position_ids[0][places]
            places = places - (before > 0).long()
        columns = None if places is None or places.dim() == 1 else places
        if copies is None:
            layout = lay_out(x, attention_mask, position_ids, packing, columns, cache, first_column, blocks)
            hidden = self._encode(x, layout)
        else:
            hidden = self._encode(x, copies.layout(columns, tiled=self.attends_in_tiles(x.device)))
            hidden = copies.of_noisy(hidden) if places is None else hidden
        if places is not None and columns is None:
            return self.read_out(
                hidden.flatten(0, 1)[places],
                target_ids,
                with_entropy=with_entropy,
                vocab_slice=vocab_slice,
                guidance_scale=guidance_scale,
                chunk_size=chunk_size,
                label_smoothing=label_smoothing,
                sampling=sampling,
            )
        if columns is not None:
            hidden = hidden.view(*logits_positions.shape, hidden.shape[-1])  # type: ignore[union-attr]
        elif packing is not None and not is_line:
            hidden = packing.unpack(hidden)
        return MaskedDiffusionOutput(logits=self.project(hidden, vocab_slice), hidden_states=hidden)

    def read_out(
        self,
        hidden: Tensor,
        target_ids: Tensor | None = None,
        *,
        with_entropy: bool = False,
        vocab_slice: tuple[int, int] | None = None,
        guidance_scale: float = 0.0,
        chunk_size: int = 512,
        label_smoothing: float = 0.0,
        sampling: SamplingDistribution | None = None,
    ) -> MaskedDiffusionOutput:
        """Logits, or log-probabilities of `target_ids`, from hidden states (N, D); see `forward`."""
        if guidance_scale > 0:
            cond, uncond = hidden.chunk(2)
            hidden = (1 + guidance_scale) * cond - guidance_scale * uncond
        if target_ids is None:
            return MaskedDiffusionOutput(logits=self.project(hidden, vocab_slice))
        if sampling is not None:
            log_probs, entropy = masked_log_probs(
                hidden, self.project, target_ids, chunk_size=chunk_size, with_entropy=with_entropy, sampling=sampling
            )
            return MaskedDiffusionOutput(log_probs=log_probs, entropy=entropy)
        head = None if with_entropy else self._head_matrix()

        def score(rows: Tensor, targets: Tensor, columns: tuple[int, int] | None) -> tuple[Tensor, Tensor | None]:
            options: dict[str, Any] = {"chunk_size": chunk_size, "vocab_slice": columns}
            if head is not None:
                return fused_log_probs(rows, head, targets, **options), None
            return masked_log_probs(rows, self.project, targets, with_entropy=with_entropy, **options)

        if vocab_slice is None:
            log_probs, entropy = score(hidden, target_ids, None)
        else:
            log_probs, entropy = sliced_log_probs(hidden, score, target_ids, vocab_slice)
            if label_smoothing > 0:
                log_probs = log_probs + label_smoothing * self._smoothing(hidden, target_ids, vocab_slice)
        return MaskedDiffusionOutput(log_probs=log_probs, entropy=entropy)

    def _smoothing(self, hidden: Tensor, target_ids: Tensor, vocab_slice: tuple[int, int]) -> Tensor:
        """What a target's log-probability lacks to the columns' mean (N,): the mean logit minus the target's, since the
        normaliser is the same; 0 for targets outside the columns. The head is linear, so the mean logit is one product.
        """
        matrix = self._head_matrix()
        if matrix is None:
            raise ValueError("label_smoothing: the head is no plain matrix, such as one with an adapter")
        first, stop = vocab_slice
        inside = (target_ids >= first) & (target_ids < stop)
        rows = matrix[first:stop]
        away = rows.mean(0) - rows[(target_ids - first).clamp(0, stop - first - 1)]
        return torch.where(inside, (hidden.float() * away.float()).sum(-1), 0.0)

    def _blocks(self, block_length: int | None, cache: BlockCache | PrefixCache | None) -> int | None:
        """The block length of a pass, None for attention in both directions; ValueError for what does not fit it."""
        if block_length is not None and not self.supports_block_attention:
            raise ValueError(f"block_length={block_length}: {type(self).__name__} attends in both directions")
        if block_length is not None and block_length < 1:
            raise ValueError(f"block_length={block_length}: allowed are 1 or more")
        blocks = self.block_length if block_length is None else block_length
        if isinstance(cache, PrefixCache) and blocks is None:
            raise ValueError("cache: a PrefixCache is for block-causal attention")
        if isinstance(cache, BlockCache) and blocks is not None:
            raise ValueError(f"cache: a BlockCache is for attention in both directions, not for blocks of {blocks}")
        if isinstance(cache, BlockCache) and self.logits_shift:
            raise ValueError("cache: the logits of a block's first token stand before the block (logits_shift=1)")
        return blocks

    def _places(self, positions: Tensor | None, packing: Packing | None, is_line: bool) -> Tensor | None:
        """Where the tokens of `logits_positions` stand: (N,) of the flattened columns, or (B, K) or (1, B·K) each."""
        if positions is None:
            return None
        if positions.dtype == torch.bool:
            positions = positions if packing is None or is_line else packing.pack(positions)
            positions = positions.flatten().nonzero().squeeze(-1)
        elif packing is not None and positions.dim() == 2:
            if is_line and packing.rows > 1:
                raise ValueError("logits_positions (B, K): allowed for a line are (1, T) bool or (N,) places in it")
            positions = packing.pack_columns(positions)
        return positions

    def _encode(self, inputs_embeds: Tensor, layout: Layout) -> Tensor:
        """`encode`, by way of a padded batch where the class does not compute packed lines."""
        packing = layout.packing
        if packing is None or self.supports_packing:
            return self.encode(inputs_embeds, layout)
        mask = layout.attention_mask
        if mask is None:
            mask = rectangular_mask(packing.mask, packing.mask.shape[1])
        padded = Layout(packing.unpack(layout.position_ids), mask)
        hidden = packing.pack(self.encode(packing.unpack(inputs_embeds), padded))
        return hidden if layout.columns is None else at_columns(hidden, layout.columns)

    @classmethod
    def can_generate(cls) -> bool:
        """False: transformers' `generate` decodes left to right, this model is decoded by a sampler."""
        return False

    def prepare_inputs_for_generation(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, **_: Any
    ) -> dict[str, Any]:
        """Inputs of one forward pass; peft asks every model with a head for it. Decoding itself is a sampler's work."""
        return {"input_ids": input_ids, "attention_mask": attention_mask}


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """`F.linear` without a bias; (…, D), (V, D) -> (…, V).

    On the CPU and without gradients, few rows go through as the right factor: BLAS then reads a large weight 1.4 to 1.8
    times as fast, with the same sums.
    """
    rows = x.numel() // x.shape[-1] if x.shape[-1] else 0
    if x.device.type != "cpu" or torch.is_grad_enabled() or not 0 < rows <= 64:
        return F.linear(x, weight)
    return (weight @ x.reshape(rows, -1).T).T.contiguous().view(*x.shape[:-1], -1)
