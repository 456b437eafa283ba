"""LLaDA's bidirectional transformer in plain PyTorch, with the published module and weight names."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from maskgrpo_plugin.diffusion.packing import Packing
from maskgrpo_plugin.models.attention import attend_by_row, eager_attention
from maskgrpo_plugin.models.interface import MaskPredictorModel
from maskgrpo_plugin.models.layout import Layout, at_columns, mask_at_columns
from maskgrpo_plugin.models.llada.configuration_llada import LLaDAConfig
from maskgrpo_plugin.models.registry import register_model


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


class Rotary:
    """Rotary positions (half rotation) of a batch's columns, in float32 whatever the model is in.

    FSDP2's mixed precision casts every floating tensor among a block's arguments, but looks into no object of a class
    that it does not know: so the blocks of a sharded actor get the same angles as those of a rollout server.

    Attributes:
        cos, sin: (B, 1, W, head_dim).
    """

    def __init__(self, cos: Tensor, sin: Tensor):
        self.cos, self.sin = cos, sin

    @classmethod
    def at_positions(cls, position_ids: Tensor, head_dim: int, theta: float) -> "Rotary":
        """Those of positions (B, W)."""
        exponents = torch.arange(0, head_dim, 2, device=position_ids.device, dtype=torch.float32) / head_dim
        angles = position_ids[:, None, :, None].float() / theta**exponents
        angles = torch.cat([angles, angles], dim=-1)
        return cls(angles.cos(), angles.sin())

    def at_columns(self, columns: Tensor) -> "Rotary":
        """Those of some of the columns alone; see `Layout.columns`."""
        return Rotary(*(at_columns(part.squeeze(1), columns).unsqueeze(1) for part in (self.cos, self.sin)))

    def __call__(self, x: Tensor) -> Tensor:
        """Rotate (B, H, W, head_dim) in float32, back in the input's dtype."""
        full = x.float()
        first, second = full.chunk(2, dim=-1)
        return (full * self.cos + torch.cat([-second, first], dim=-1) * self.sin).to(x.dtype)


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

    def forward(self, x: Tensor, rotary: Rotary, layout: Layout) -> Tensor:
        """(B, W, D) -> (B, W, D), or (B, K, D) at the layout's columns; (1, T, D) -> (1, T, D) or (1, N, D) of a line.

        Args:
            x: hidden states.
            rotary: of the W columns.
            layout: of the columns.
        """
        h = self.attn_norm(x)
        columns, packing, mask = layout.columns, layout.packing, layout.attention_mask
        shape = (*h.shape[:2], -1, self.head_dim)
        key = rotary(self.k_proj(h).view(shape).transpose(1, 2))
        value = self.v_proj(h).view(shape).transpose(1, 2)
        if layout.cache is not None:
            key, value = layout.cache.update(self.layer_idx, key, value, layout.first_column)
        if columns is not None:
            x, h = at_columns(x, columns), at_columns(h, columns)
            rotary = rotary.at_columns(columns)
            mask = None if mask is None else mask_at_columns(mask, columns)
        query = rotary(self.q_proj(h).view(*h.shape[:2], -1, self.head_dim).transpose(1, 2))
        if packing is None:
            attended = self._attend(query, key, value, mask)
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
                longest = query.shape[2] // packing.rows
                boundaries = torch.arange(packing.rows + 1, device=query.device, dtype=torch.int32) * longest
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
        return attend_by_row(self._attend, query, key, value, packing, at_columns=at_columns)

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


class LLaDAModelLM(MaskPredictorModel):
    """LLaDA with its head: a bidirectional mask predictor (arXiv 2502.09992)."""

    config_class = LLaDAConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    supports_block_cache = True
    supports_packing = True
    _no_split_modules = ["LLaDALlamaBlock"]  # noqa: RUF012
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

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

    def encode(self, inputs_embeds: Tensor, layout: Layout) -> Tensor:
        """Blocks and final norm; see `MaskPredictorModel.encode`."""
        transformer = self.model.transformer
        x = transformer["emb_drop"](inputs_embeds)
        rotary = Rotary.at_positions(layout.position_ids, self.config.head_dim, self.config.rope_theta)
        *blocks, last = transformer["blocks"]
        all_columns = replace(layout, columns=None)
        for block in blocks:
            x = block(x, rotary, all_columns)
        return transformer["ln_f"](last(x, rotary, layout))


register_model(LLaDAConfig, LLaDAModelLM)
