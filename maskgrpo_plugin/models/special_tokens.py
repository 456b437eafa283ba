"""Token ids that a masked diffusion model needs: the mask token and the tokens that end a response."""

from collections.abc import Collection, Sequence
from typing import Any

__all__ = ["END_OF_TURN_TOKENS", "answer_length", "mask_token_problem", "stop_token_ids"]

END_OF_TURN_TOKENS = ("<|eot_id|>", "<|im_end|>", "<|endoftext|>", "<|role_end|>")


def stop_token_ids(tokenizer: Any) -> tuple[int, ...]:
    """Ids that end a response: the tokenizer's eos and, where they are in the vocabulary, its end-of-turn tokens.

    LLaDA's turns end with `<|eot_id|>` although its eos is `<|endoftext|>`, so both count. `Family.end_tokens` adds to
    them.
    """
    vocabulary = tokenizer.get_vocab()
    ids = [tokenizer.eos_token_id, *(vocabulary.get(token) for token in END_OF_TURN_TOKENS)]
    return tuple(dict.fromkeys(int(i) for i in ids if i is not None))


def answer_length(token_ids: Sequence[int], stops: Collection[int]) -> int:
    """Number of tokens of a response before its first stop token; of all where there is none."""
    return next((n for n, token in enumerate(token_ids) if token in stops), len(token_ids))


def mask_token_problem(mask_token_id: object, vocab_size: int, tokenizer: Any) -> str | None:
    """Say why `mask_token_id` cannot be the mask token, or None where it can.

    Args:
        mask_token_id: the id from the checkpoint's config.json or the run's override.
        vocab_size: rows of the checkpoint's embedding.
        tokenizer: a transformers tokenizer, or None to check the range alone.
    """
    if not isinstance(mask_token_id, int) or isinstance(mask_token_id, bool):
        return "the checkpoint's config.json names no mask_token_id; set it to the id of the tokenizer's mask token"
    if not 0 <= mask_token_id < vocab_size:
        return f"allowed: 0 to {vocab_size - 1}, the checkpoint's vocabulary"
    if tokenizer is None:
        return None
    if tokenizer.mask_token_id is not None:
        if tokenizer.mask_token_id != mask_token_id:
            return f"the tokenizer's mask token {tokenizer.mask_token!r} has the id {tokenizer.mask_token_id}"
        return None
    token = tokenizer.convert_ids_to_tokens(mask_token_id)
    if token is not None and "mask" not in token.lower():
        return f"that id is the ordinary token {token!r}; use the id of the tokenizer's mask token"
    return None
