"""MMaDA's config: LLaDA's keys and the published ones about image tokens."""

from typing import Any

from maskgrpo_plugin.models.llada.configuration_llada import LLaDAConfig


class MMadaConfig(LLaDAConfig):
    """Config of an MMaDA checkpoint.

    Args:
        w_clip_vit: whether a CLIP encoder feeds the model; no published checkpoint has one.
        llm_vocab_size: rows of the text model that the checkpoint grew from.
        new_vocab_size: rows of embedding and head with the image tokens; LLaDA's `vocab_size` and `embedding_size` are
            set to it.
        codebook_size: number of codes of the image tokenizer.
        num_vq_tokens: number of tokens of an image.
        num_new_special_tokens: number of tokens between the text tokenizer's last one and the first image token.
        max_text_length: number of tokens of a text-to-image prompt before the image, padding included; 257 in
            training, and not named by the published folders.
        attend_to_padding: whether the padding before a text-to-image prompt is attended to; see `MMaDAFamily`.
        special_token_ids: ids by name, over the tokenizer's and the published ones; None for none.
        **kwargs: LLaDA's keys.

    Raises:
        ValueError: a setting that this code does not compute, or numbers that do not fit each other.
    """

    model_type = "mmada"

    def __init__(
        self,
        w_clip_vit: bool = False,
        llm_vocab_size: int = 126464,
        new_vocab_size: int = 134656,
        codebook_size: int = 8192,
        num_vq_tokens: int = 1024,
        num_new_special_tokens: int = 0,
        max_text_length: int = 257,
        attend_to_padding: bool = False,
        special_token_ids: dict[str, int] | None = None,
        **kwargs: Any,
    ):
        if w_clip_vit:
            raise ValueError("MMaDA config w_clip_vit=True is not supported; allowed: False")
        for key, value in (("codebook_size", codebook_size), ("num_vq_tokens", num_vq_tokens)):
            if value < 1:
                raise ValueError(f"MMaDA config {key}={value}: allowed are 1 or more")
        if codebook_size > new_vocab_size:
            raise ValueError(f"MMaDA config codebook_size={codebook_size} exceeds new_vocab_size={new_vocab_size}")
        self.w_clip_vit = w_clip_vit
        self.llm_vocab_size = llm_vocab_size
        self.new_vocab_size = new_vocab_size
        self.codebook_size = codebook_size
        self.num_vq_tokens = num_vq_tokens
        self.num_new_special_tokens = num_new_special_tokens
        self.max_text_length = max_text_length
        self.attend_to_padding = attend_to_padding
        self.special_token_ids = special_token_ids
        kwargs |= {"vocab_size": new_vocab_size, "embedding_size": new_vocab_size}
        kwargs.setdefault("architectures", ["MMadaModelLM"])
        super().__init__(**kwargs)
