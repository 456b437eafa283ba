"""LLaDA's config: the published keys, with the names that transformers tools expect beside them."""

from typing import Any

from transformers import PretrainedConfig

from maskgrpo_plugin.models.lladamoe.configuration_lladamoe import LLaDAMoEConfig

MOE_ARCHITECTURE = "LLaDAMoEModelLM"  # published under `model_type: llada`
SUPPORTED = {
    "alibi": (False,),
    "rope": (True,),
    "layer_norm_type": ("rms",),
    "activation_type": ("silu",),
    "block_type": ("llama",),
    "attention_layer_norm": (False,),
    "input_emb_norm": (False,),
    "scale_logits": (False,),
    "include_bias": (False,),
    "include_qkv_bias": (False,),
    "bias_for_layer_norm": (False, None),
}


class LLaDAConfig(PretrainedConfig):
    """Config of a LLaDA checkpoint.

    Args:
        d_model: width D.
        n_heads: attention heads; D / n_heads is the head size.
        n_kv_heads: key and value heads (GQA); None: `n_heads`, or one with `multi_query_attention`.
        n_layers: number of blocks.
        mlp_hidden_size: width of the feed-forward layer; None: `mlp_ratio` · D.
        vocab_size: number of tokens of the tokenizer.
        embedding_size: rows of embedding and head; None: `vocab_size`.
        weight_tying: whether the head is the embedding; the `tie_word_embeddings` of published folders does not apply.
        mask_token_id: id of the mask token.
        **kwargs: the other published keys.

    Raises:
        ValueError: a setting that no published LLaDA checkpoint uses and this code does not compute.
    """

    model_type = "llada"
    attribute_map = {  # noqa: RUF012
        "hidden_size": "d_model",
        "num_attention_heads": "n_heads",
        "num_hidden_layers": "n_layers",
        "max_position_embeddings": "max_sequence_length",
    }

    def __init__(
        self,
        d_model: int = 4096,
        n_heads: int = 32,
        n_kv_heads: int | None = None,
        n_layers: int = 32,
        mlp_ratio: float = 4,
        mlp_hidden_size: int | None = 12288,
        activation_type: str = "silu",
        block_type: str = "llama",
        rope: bool = True,
        rope_theta: float = 500000.0,
        rope_full_precision: bool = True,
        alibi: bool = False,
        attention_dropout: float = 0.0,
        residual_dropout: float = 0.0,
        embedding_dropout: float = 0.0,
        multi_query_attention: bool | None = None,
        attention_layer_norm: bool = False,
        input_emb_norm: bool = False,
        layer_norm_type: str = "rms",
        rms_norm_eps: float = 1e-5,
        max_sequence_length: int = 4096,
        include_bias: bool = False,
        include_qkv_bias: bool = False,
        bias_for_layer_norm: bool | None = False,
        scale_logits: bool = False,
        vocab_size: int = 126464,
        embedding_size: int | None = 126464,
        weight_tying: bool = False,
        mask_token_id: int | None = 126336,
        init_std: float = 0.02,
        **kwargs: Any,
    ):
        settings = {key: value for key, value in locals().items() if key not in ("self", "kwargs", "__class__")}
        for key, allowed in SUPPORTED.items():
            if settings[key] not in allowed:
                raise ValueError(f"LLaDA config {key}={settings[key]!r} is not supported; allowed: {allowed[0]!r}")
        if d_model % n_heads:
            raise ValueError(f"LLaDA config n_heads={n_heads} must divide d_model={d_model}")
        for key, value in settings.items():
            setattr(self, key, value)
        if n_kv_heads is None:
            n_kv_heads = 1 if multi_query_attention else n_heads
        if n_heads % n_kv_heads:
            raise ValueError(f"LLaDA config n_kv_heads={n_kv_heads} must divide n_heads={n_heads}")
        self.n_kv_heads = n_kv_heads
        kwargs["tie_word_embeddings"] = weight_tying
        kwargs.setdefault("use_cache", False)
        kwargs.setdefault("architectures", ["LLaDAModelLM"])
        super().__init__(**kwargs)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As transformers'; a folder that names LLaDA-MoE's architecture gets a `LLaDAMoEConfig`."""
        if MOE_ARCHITECTURE in (config_dict.get("architectures") or ()):
            return LLaDAMoEConfig.from_dict(config_dict | {"model_type": LLaDAMoEConfig.model_type}, **kwargs)
        return super().from_dict(config_dict, **kwargs)

    @property
    def num_key_value_heads(self) -> int:
        """Key and value heads."""
        return self.n_kv_heads

    @property
    def intermediate_size(self) -> int:
        """Width of the feed-forward layer."""
        return self.mlp_hidden_size or int(self.mlp_ratio * self.d_model)

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.d_model // self.n_heads

    @property
    def embedding_rows(self) -> int:
        """Rows of the embedding and of the head."""
        return self.embedding_size or self.vocab_size
