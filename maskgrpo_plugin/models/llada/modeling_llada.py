"""LLaDA's bidirectional transformer in plain PyTorch, with the published module and weight names."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils import ModelOutput

from maskgrpo_plugin.diffusion.likelihood import fused_log_probs, masked_log_probs, sliced_log_probs
from maskgrpo_plugin.diffusion.packing import Packing
from maskgrpo_plugin.diffusion.samplers.blocks.cache import BlockCache
from maskgrpo_plugin.models.llada.configuration_llada import LLaDAConfig


@dataclass
class MaskedDiffusionOutput(ModelOutput):
    """What a masked diffusion model returns.

    Attributes:
        loss: unused; present for tools that expect it.
        logits: (B, L, V), or (N, V) at `logits_positions`; None where log-probabilities were asked for.
        log_probs: (N,) float32 log-probabilities of `target_ids` at `logits_positions`.
        entropy: (N,) entropies in nats, or None.
        hidden_states: (B, L, D) final hidden states, after the last norm.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    log_probs: Tensor | None = None
    entropy: Tensor | None = None
    hidden_states: Tensor | None = None


class LLaDARMSNorm(nn.Module):
    """Root-mean-square norm computed in float32; (…, D) -> (…, D)."""

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last dimension."""
        scaled = x.float()
        scaled = scaled * torch.rsqrt(scaled.square().mean(-1, keepdim=True) + self.eps)
        return self.weight * scaled.to(x.dtype)


def rotary_embedding(position_ids: Tensor, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines of rotary positions in float32; (B, L) -> two of (B, 1, L, head_dim)."""
    exponents = torch.arange(0, head_dim, 2, device=position_ids.device, dtype=torch.float32) / head_dim
    angles = position_ids[:, None, :, None].float() / theta**exponents
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply rotary positions (half rotation) to (B, H, L, head_dim) in float32, back in the input's dtype."""
    full = x.float()
    first, second = full.chunk(2, dim=-1)
    return (full * cos + torch.cat([-second, first], dim=-1) * sin).to(x.dtype)


class LLaDALlamaBlock(GradientCheckpointingLayer):
    """One pre-norm block: bidirectional attention, then a SwiGLU feed-forward layer."""

    def __init__(self, config: LLaDAConfig, layer_idx: int):
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.head_dim = config.head_dim
        self.num_key_value_groups = config.n_heads // config.n_kv_heads
        self.is_causal = False
        width, inner = config.d_model, config.intermediate_size
        self.attn_norm = LLaDARMSNorm(width, config.rms_norm_eps)
        self.q_proj = nn.Linear(width, config.n_heads * self.head_dim, bias=False)
        self.k_proj = nn.Linear(width, config.n_kv_heads * self.head_dim, bias=False)
        self.v_proj = nn.Linear(width, config.n_kv_heads * self.head_dim, bias=False)
        self.attn_out = nn.Linear(width, width, bias=False)
        self.ff_norm = LLaDARMSNorm(width, config.rms_norm_eps)
        self.ff_proj = nn.Linear(width, inner, bias=False)
        self.up_proj = nn.Linear(width, inner, bias=False)
        self.ff_out = nn.Linear(inner, width, bias=False)
        self.dropout = nn.Dropout(config.residual_dropout)

    def forward(
        self,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        attention_mask: Tensor | None,
        columns: Tensor | None = None,
        cache: BlockCache | None = None,
        first_column: int = 0,
        packing: Packing | None = None,
    ) -> Tensor:
        """(B, L, D) -> (B, L, D), or (B, K, D) at `columns`; of a packed batch (1, T, D) -> (1, T, D) or (1, B·K, D).

        Args:
            x: hidden states.
            cos, sin: rotary embedding, (B, 1, L, head_dim).
            attention_mask: what the configured attention implementation takes, or None to attend everywhere.
            columns: (B, K) int64, the positions whose output is wanted; None: all.
            cache: keys and values to attend to and to renew.
            first_column: of `x` in the cache.
            packing: of a batch without its padding; `attention_mask` is then None, and each row has as many `columns`.
        """
        h = self.attn_norm(x)
        shape = (*h.shape[:2], -1, self.head_dim)
        key = rotate(self.k_proj(h).view(shape).transpose(1, 2), cos, sin)
        value = self.v_proj(h).view(shape).transpose(1, 2)
        if cache is not None:
            key, value = cache.update(self.layer_idx, key, value, first_column)
        if columns is not None:
            x, h = at_columns(x, columns), at_columns(h, columns)
            cos, sin = (at_columns(part.squeeze(1), columns).unsqueeze(1) for part in (cos, sin))
        query = rotate(self.q_proj(h).view(*h.shape[:2], -1, self.head_dim).transpose(1, 2), cos, sin)
        if packing is None:
            attended = self._attend(query, key, value, attention_mask)
        else:
            attended = self._attend_packed(query, key, value, packing, columns is not None)
        x = x + self.dropout(self.attn_out(attended.flatten(2)))
        h = self.ff_norm(x)
        return x + self.dropout(self.ff_out(F.silu(self.ff_proj(h)) * self.up_proj(h)))

    def _attend_packed(self, query: Tensor, key: Tensor, value: Tensor, packing: Packing, at_columns: bool) -> Tensor:
        """Each row attends to itself; (1, H, T or B·K, d), two of (1, H', T, d) -> (1, T or B·K, H, d)."""
        if "flash" in (self.config._attn_implementation or ""):
            boundaries, longest = packing.boundaries, packing.longest
            if at_columns:
                rows = packing.mask.shape[0]
                longest = query.shape[2] // rows
                boundaries = torch.arange(rows + 1, device=query.device, dtype=torch.int32) * longest
            return self._attend(
                query,
                key,
                value,
                None,
                cu_seq_lens_q=boundaries,
                cu_seq_lens_k=packing.boundaries,
                max_length_q=longest,
                max_length_k=packing.longest,
            )
        key, value = (packing.unpack(part.transpose(1, 2)).transpose(1, 2) for part in (key, value))
        query = query.transpose(1, 2)
        by_row = query.unflatten(1, (packing.mask.shape[0], -1))[0] if at_columns else packing.unpack(query)
        mask = packing.mask[:, None, None, :].expand(-1, 1, by_row.shape[1], -1)
        attended = self._attend(by_row.transpose(1, 2), key, value, mask)
        return attended.flatten(0, 1).unsqueeze(0) if at_columns else packing.pack(attended)

    def _attend(
        self, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
    ) -> Tensor:
        """(B, H, K, d), two of (B, H', L, d) -> (B, K, H, d)."""
        implementation = self.config._attn_implementation
        if "flash" in (implementation or "") and attention_mask is not None and attention_mask.dim() == 4:
            implementation = "sdpa"  # flash attention takes no mask of queries and keys
        attention: Callable[..., tuple[Tensor, Any]] = ALL_ATTENTION_FUNCTIONS.get_interface(
            implementation, eager_attention
        )
        attended, _ = attention(
            self,
            query,
            key,
            value,
            attention_mask,
            dropout=self.config.attention_dropout if self.training else 0.0,
            scaling=self.head_dim**-0.5,
            is_causal=False,
            **options,
        )
        return attended


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """`F.linear` without a bias; (…, D), (V, D) -> (…, V).

    On the CPU and without gradients, few rows go through as the right factor: BLAS then reads a large weight 1.4 to 1.8
    times as fast, with the same sums.
    """
    rows = x.numel() // x.shape[-1] if x.shape[-1] else 0
    if x.device.type != "cpu" or torch.is_grad_enabled() or not 0 < rows <= 64:
        return F.linear(x, weight)
    return (weight @ x.reshape(rows, -1).T).T.contiguous().view(*x.shape[:-1], -1)


def at_columns(x: Tensor, columns: Tensor) -> Tensor:
    """Rows (B, K, D) of x (B, L, D) at `columns` (B, K)."""
    return x.gather(1, columns.unsqueeze(-1).expand(-1, -1, x.shape[-1]))


def eager_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention written out; (B, H, L, d) -> (B, L, H, d). `attention_mask` (B, 1, L, L) bool, true = attend."""
    groups = module.num_key_value_groups
    key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    scores = query @ key.transpose(-1, -2) * scaling
    if attention_mask is not None:
        scores = scores.masked_fill(~attention_mask, torch.finfo(scores.dtype).min)
    weights = F.dropout(scores.softmax(-1, dtype=torch.float32).to(query.dtype), dropout, module.training)
    return (weights @ value).transpose(1, 2), None


class LLaDAModel(nn.Module):
    """Embedding, blocks, final norm and head under the published name `transformer`."""

    def __init__(self, config: LLaDAConfig):
        super().__init__()
        modules: dict[str, nn.Module] = {
            "wte": nn.Embedding(config.embedding_rows, config.d_model),
            "emb_drop": nn.Dropout(config.embedding_dropout),
            "ln_f": LLaDARMSNorm(config.d_model, config.rms_norm_eps),
            "blocks": nn.ModuleList(LLaDALlamaBlock(config, i) for i in range(config.n_layers)),
        }
        if not config.weight_tying:
            modules["ff_out"] = nn.Linear(config.d_model, config.embedding_rows, bias=False)
        self.transformer: Any = nn.ModuleDict(modules)


class LLaDAModelLM(PreTrainedModel):
    """LLaDA with its head: a bidirectional mask predictor (arXiv 2502.09992)."""

    config_class = LLaDAConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    supports_logits_positions = True
    supports_vocab_slice = True
    supports_block_cache = True
    supports_packing = True
    _no_split_modules = ["LLaDALlamaBlock"]  # noqa: RUF012
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    main_input_name = "input_ids"

    def __init__(self, config: LLaDAConfig):
        super().__init__(config)
        self.model = LLaDAModel(config)
        self.gradient_checkpointing = False
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=self.config.init_std)
        elif isinstance(module, LLaDARMSNorm):
            nn.init.ones_(module.weight)

    def get_input_embeddings(self) -> nn.Module:
        """The embedding `wte`."""
        return self.model.transformer["wte"]

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the embedding."""
        self.model.transformer["wte"] = value

    def get_output_embeddings(self) -> nn.Module | None:
        """The head `ff_out`; None where it is tied to the embedding."""
        return None if self.config.weight_tying else self.model.transformer["ff_out"]

    def set_output_embeddings(self, value: nn.Module) -> None:
        """Replace the head."""
        self.model.transformer["ff_out"] = value

    def project(self, hidden: Tensor, vocab_slice: tuple[int, int] | None = None) -> Tensor:
        """The head; (…, D) -> (…, V), or the columns [start, stop) of the vocabulary alone."""
        matrix = self._head_matrix()
        if matrix is not None:
            return linear(hidden, matrix if vocab_slice is None else matrix[vocab_slice[0] : vocab_slice[1]])
        logits = self.model.transformer["ff_out"](hidden)
        return logits if vocab_slice is None else logits[..., vocab_slice[0] : vocab_slice[1]]

    def _head_matrix(self) -> Tensor | None:
        """The head's (V, D) matrix; None where the head is more than that, such as one with an adapter."""
        if self.config.weight_tying:
            return self.model.transformer["wte"].weight
        head = self.model.transformer["ff_out"]
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
        cache: BlockCache | None = None,
        first_column: int = 0,
        packing: Packing | None = None,
        chunk_size: int = 512,
        use_cache: bool | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> MaskedDiffusionOutput:
        """Predict the tokens of a canvas.

        Args:
            input_ids: (B, L) tokens, masked positions holding the mask token.
            attention_mask: (B, L), 1 = token, 0 = padding on either side, which takes no part (logits there are 0, and
                no other output is for it); or (B, 1, L, L) bool, true = attend; None attends everywhere.
            position_ids: (B, L); by default the count of tokens before, so that padding does not shift a row.
            inputs_embeds: (B, L, D) instead of `input_ids`.
            logits_positions: (B, L) bool, the head runs at these N positions only, row by row; or (B, K) int64, the
                columns of each row where it runs, and the queries of the last layer with it: logits (B, K, V).
            target_ids: (N,) tokens at those positions; then log-probabilities come instead of logits.
            with_entropy: also the entropies there.
            vocab_slice: (start, stop) of the image tokens: a target among them is scored by a softmax over these
                columns alone, any other by one over the whole vocabulary; without targets: the columns of the logits.
            guidance_scale: above 0, the second half of the batch holds the first half's canvases without the prompt's
                text, both halves mark as many positions, and `target_ids` are the first half's: the N/2
                log-probabilities are those of (1 + w)·logits − w·logits without the text. The head is linear, so
                that the hidden states are combined before it.
            cache: empty: keeps the keys and values of this pass. Filled: `input_ids` are the columns from
                `first_column` on of a canvas that the mask covers whole; what the cache knows stands in for the others.
            first_column: the canvas's column of the first of `input_ids`; `logits_positions` count from it.
            packing: of the (B, L) mask, where the caller has it; without it the device is waited for to make it.
            chunk_size: positions a chunk of the head.
            use_cache, return_dict, kwargs: accepted for transformers' callers; a diffusion model keeps no cache.

        Returns:
            `MaskedDiffusionOutput`.
        """
        transformer = self.model.transformer
        if packing is None and cache is None and attention_mask is not None and attention_mask.dim() == 2:
            packing = Packing.of(attention_mask)
            attention_mask = None if packing is None else attention_mask
        columns = None
        if logits_positions is not None and logits_positions.dtype != torch.bool:
            columns = logits_positions
        rows = None if columns is None else columns.shape
        if packing is not None:
            attention_mask = None
            input_ids, inputs_embeds, position_ids = (
                None if part is None else packing.pack(part) for part in (input_ids, inputs_embeds, position_ids)
            )
            position_ids = packing.position_ids if position_ids is None else position_ids
            columns = None if columns is None else packing.pack_columns(columns)
        if inputs_embeds is None:
            inputs_embeds = transformer["wte"](input_ids)
        x = transformer["emb_drop"](inputs_embeds)
        if position_ids is None:
            position_ids = default_positions(x, attention_mask, first_column)
        cos, sin = rotary_embedding(position_ids, self.config.head_dim, self.config.rope_theta)
        mask = self._attention_input(attention_mask, x)
        blocks = transformer["blocks"]
        for block in blocks if columns is None else blocks[:-1]:
            x = block(x, cos, sin, mask, cache=cache, first_column=first_column, packing=packing)
        if columns is not None:
            seen = None if mask is None else mask_of_columns(mask, columns)
            x = blocks[-1](x, cos, sin, seen, columns, cache, first_column, packing)
        hidden = transformer["ln_f"](x)
        if rows is not None:
            hidden = hidden.view(*rows, -1)
            return MaskedDiffusionOutput(logits=self.project(hidden, vocab_slice), hidden_states=hidden)
        if packing is not None:
            hidden = packing.unpack(hidden)
        if logits_positions is None:
            return MaskedDiffusionOutput(logits=self.project(hidden, vocab_slice), hidden_states=hidden)
        chosen = hidden[logits_positions]
        if guidance_scale > 0:
            cond, uncond = chosen.chunk(2)
            chosen = (1 + guidance_scale) * cond - guidance_scale * uncond
        if target_ids is None:
            return MaskedDiffusionOutput(logits=self.project(chosen, vocab_slice), hidden_states=hidden)
        head = None if with_entropy else self._head_matrix()

        def score(rows: Tensor, targets: Tensor, columns: tuple[int, int] | None) -> tuple[Tensor, Tensor | None]:
            options: dict[str, Any] = {"chunk_size": chunk_size, "vocab_slice": columns}
            if head is not None:
                return fused_log_probs(rows, head, targets, **options), None
            return masked_log_probs(rows, self.project, targets, with_entropy=with_entropy, **options)

        if vocab_slice is None:
            log_probs, entropy = score(chosen, target_ids, None)
        else:
            log_probs, entropy = sliced_log_probs(chosen, score, target_ids, vocab_slice)
        return MaskedDiffusionOutput(log_probs=log_probs, entropy=entropy, hidden_states=hidden)

    @classmethod
    def can_generate(cls) -> bool:
        """False: transformers' `generate` decodes left to right, this model is decoded by a sampler."""
        return False

    def prepare_inputs_for_generation(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, **_: Any
    ) -> dict[str, Any]:
        """Inputs of one forward pass; peft asks every model with a head for it. Decoding itself is a sampler's work."""
        return {"input_ids": input_ids, "attention_mask": attention_mask}

    @staticmethod
    def _attention_input(attention_mask: Tensor | None, x: Tensor) -> Tensor | None:
        """The mask as (B, 1, W, L) bool, from one of that shape or from the (B, L) that comes with a cache."""
        if attention_mask is None or attention_mask.dim() == 4:
            return attention_mask
        if attention_mask.device.type == "cpu" and bool(attention_mask.all()):
            return None
        return attention_mask.bool()[:, None, None, :].expand(-1, 1, x.shape[1], -1)


def mask_of_columns(mask: Tensor, columns: Tensor) -> Tensor:
    """The mask (B, 1, K, L) of the queries at `columns` (B, K), from (B, 1, L', L)."""
    return at_columns(mask.squeeze(1), columns).unsqueeze(1)


def default_positions(x: Tensor, attention_mask: Tensor | None, first_column: int = 0) -> Tensor:
    """Positions of (B, W, …), the columns from `first_column` on: counted over tokens alone where a (B, L) mask tells
    padding apart; (B, W) int64.
    """
    last = first_column + x.shape[1]
    if attention_mask is not None and attention_mask.dim() == 2:
        return (attention_mask.long().cumsum(-1) - 1).clamp(min=0)[:, first_column:last]
    return torch.arange(first_column, last, device=x.device).expand(x.shape[0], -1)
