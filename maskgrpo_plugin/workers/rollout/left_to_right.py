"""Ancestral sampling of an autoregressive transformers model with a key-value cache."""

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor


def decode_left_to_right(
    model: Any,
    input_ids: Tensor,
    attention_mask: Tensor | None,
    generators: Sequence[torch.Generator],
    *,
    temperature: float,
    response_length: int,
    stop_token_ids: Collection[int],
) -> list[list[int]]:
    """Continue a batch of prompts, without gradients.

    Args:
        model: a transformers model for causal language modelling.
        input_ids: (B, P) prompts, padded on the left.
        attention_mask: (B, P), 1 = token, 0 = padding; None where nothing is padded.
        generators: each row's noise.
        temperature: 0 takes the most probable token.
        response_length: most tokens per response, at least 1.
        stop_token_ids: tokens that end a response.

    Returns:
        B responses, each up to and with its first stop token; each of its tokens took a forward pass.
    """
    if attention_mask is None:
        attention_mask = torch.ones_like(input_ids)
    rows = input_ids.shape[0]
    stops = torch.tensor(list(stop_token_ids), device=input_ids.device)
    alive = torch.ones(rows, dtype=torch.bool, device=input_ids.device)
    positions = (attention_mask.cumsum(-1) - 1).clamp(min=0)
    responses: list[list[int]] = [[] for _ in range(rows)]
    cache, tokens = None, input_ids
    for _ in range(response_length):
        output = model(
            input_ids=tokens,
            attention_mask=attention_mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        cache = output.past_key_values
        chosen = _choose(output.logits[:, -1].float(), generators, temperature, alive)
        for row in alive.nonzero().flatten().tolist():
            responses[row].append(int(chosen[row]))
        alive &= ~torch.isin(chosen, stops)
        if not alive.any():
            break
        tokens = chosen.unsqueeze(-1)
        positions = positions[:, -1:] + 1
        attention_mask = torch.cat([attention_mask, attention_mask.new_ones(rows, 1)], dim=-1)
    return responses


def _choose(logits: Tensor, generators: Sequence[torch.Generator], temperature: float, alive: Tensor) -> Tensor:
    """Greedy at temperature 0, else one draw per living row from the row's own generator; (B, V) -> (B,)."""
    if temperature == 0:
        return logits.argmax(-1)
    probabilities = torch.softmax(logits / temperature, dim=-1)
    draws = [
        torch.multinomial(row, 1, generator=generator) if living else row.new_zeros(1, dtype=torch.long)
        for row, generator, living in zip(probabilities, generators, alive.tolist(), strict=True)
    ]
    return torch.cat(draws)
