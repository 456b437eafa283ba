"""Noise for samplers: drawn from the caller's generators only, row by row where each row has its own."""

from collections.abc import Sequence

import torch
from torch import Tensor

Generators = torch.Generator | Sequence[torch.Generator] | None


def uniform_rows(counts: Tensor, width: int | None, generator: Generators, device: torch.device) -> Tensor:
    """Uniform draws in [0, 1) for `counts[b]` positions of each row b, stacked row after row.

    Args:
        counts: (B,) how many positions each row draws for.
        width: draws a position (the vocabulary), or None for one.
        generator: one a row (the draws of a row then depend on its own generator and count alone), one for all, or
            None for torch's global one.
        device: where to draw; a generator's device must be the same.

    Returns:
        (Σ counts, width) or (Σ counts,), float64.
    """
    tail = () if width is None else (width,)
    if generator is None or isinstance(generator, torch.Generator):
        return torch.rand((int(counts.sum()), *tail), generator=generator, dtype=torch.float64, device=device)
    draws = [
        torch.rand((count, *tail), generator=own, dtype=torch.float64, device=device)
        for count, own in zip(counts.tolist(), generator, strict=True)
    ]
    return torch.cat(draws)


def gumbel(uniform: Tensor) -> Tensor:
    """Standard Gumbel noise −log(−log u) in float64, finite for u in [0, 1)."""
    tiny = torch.finfo(torch.float64).tiny
    return -torch.log(-torch.log(uniform.clamp(min=tiny)))
