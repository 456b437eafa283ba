"""Monte-Carlo estimate of a response's log-likelihood under a masked diffusion model (arXiv 2502.09992, Eq. 6)."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from maskgrpo_plugin.diffusion.likelihood import masked_log_probs
from maskgrpo_plugin.diffusion.samplers.base import logits_at


def draw_masks(length: int, samples: int, generator: torch.Generator | None = None) -> Tensor:
    """Masks with l of the L positions, drawn without replacement, l uniform on 1 … L.

    The l of the samples are stratified: spread evenly over 1 … L from a random start. Each is uniform, and an estimate
    varies less than with independent draws.

    Args:
        length: number of positions L, 1 or more.
        samples: number of masks S, 1 or more.
        generator: source of the draws, on the CPU.

    Returns:
        (S, L) bool, True where masked.

    Raises:
        ValueError: a number out of range.
    """
    if length < 1 or samples < 1:
        raise ValueError(f"length={length}, samples={samples}: allowed are 1 or more")
    start = torch.randint(length, (), generator=generator)
    counts = (start + torch.arange(samples) * length // samples) % length + 1
    ranks = torch.rand(samples, length, generator=generator).argsort(-1).argsort(-1)
    return ranks < counts[:, None]


def conditional_log_likelihood(
    model: Callable[..., Any],
    prompt_ids: Tensor,
    response_ids: Tensor,
    *,
    mask_token_id: int,
    samples: int = 128,
    batch_size: int = 32,
    generator: torch.Generator | None = None,
) -> float:
    """log p(r | p), estimated as the mean over masks of (L / l) Σ log p(r_i | p, r with l tokens masked).

    Its expectation is the lower bound of arXiv 2502.09992, Eq. 6 (Algorithm 3 there); for one token it is exact. Of a
    block-causal model it is that of each block behind the clean ones before it (BD3-LM, arXiv 2503.09573), and exact
    for blocks of one token, whose single mask is all of them.

    Args:
        model: a mask predictor, or a callable (input_ids, attention_mask=…) with `.logits`; see `Sampler.generate`.
            Logits that stand before their token (`logits_shift`) are read there.
        prompt_ids: (P,) tokens; P may be 0.
        response_ids: (L,) tokens, at least one.
        mask_token_id: id of the mask token.
        samples: number of masks drawn; the estimate's spread falls with it.
        batch_size: masks per forward pass.
        generator: source of the masks, on the CPU.

    Returns:
        nats, at most 0.

    Raises:
        ValueError: an empty response, or `samples` or `batch_size` below 1.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size}: allowed are 1 or more")
    block_length = getattr(model, "block_length", None)
    samples = 1 if block_length == 1 and samples > 0 else samples
    length, start = response_ids.shape[0], prompt_ids.shape[0]
    masks = draw_masks(length, samples, generator).to(response_ids.device)
    masks = masks | (block_length == 1)
    tokens = torch.cat([prompt_ids, response_ids])
    total = torch.zeros((), dtype=torch.float64)
    for part in masks.split(batch_size):
        masked = torch.cat([part.new_zeros(part.shape[0], start), part], dim=1)
        noisy = tokens.expand(part.shape[0], -1).masked_fill(masked, mask_token_id)
        with torch.no_grad():
            if block_length is None:
                logits = logits_at(model, noisy, None, masked)
            else:
                logits = model(noisy, clean_ids=tokens.expand_as(noisy), logits_positions=masked).logits
            targets = tokens.expand_as(masked)[masked]
            log_probs, _ = masked_log_probs(logits, lambda rows: rows, targets)
        weights = (length / part.sum(-1, keepdim=True)).expand_as(part)[part]
        total += (weights.double() * log_probs.double()).sum().cpu()
    return float(total / samples)
