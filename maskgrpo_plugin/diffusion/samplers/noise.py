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
        device: where the draws are wanted; a generator on another device draws there, and the result is moved.

    Returns:
        (Σ counts, width) or (Σ counts,), float64.

    Raises:
        ValueError: the number of generators is not that of the rows.
    """
    tail = () if width is None else (width,)
    if generator is None or isinstance(generator, torch.Generator):
        return _uniform((int(counts.sum()), *tail), generator, device)
    return torch.cat(
        [_uniform((count, *tail), own, device) for count, own in zip(counts.tolist(), generator, strict=True)]
    )


def check_generators(generator: Generators, rows: int) -> None:
    """Raise ValueError where a list of generators does not hold one for each of `rows` rows."""
    if generator is not None and not isinstance(generator, torch.Generator) and len(generator) != rows:
        raise ValueError(f"generator holds {len(generator)} generators for a batch of {rows} rows: give one a row")


def rows_of(generator: Generators, rows: Tensor) -> Generators:
    """The generators of the rows with indices `rows` (N,); one generator for all stays as it is."""
    if generator is None or isinstance(generator, torch.Generator):
        return generator
    return [generator[row] for row in rows.tolist()]


def _uniform(shape: tuple[int, ...], generator: torch.Generator | None, device: torch.device) -> Tensor:
    source = device if generator is None else generator.device
    return torch.rand(shape, generator=generator, dtype=torch.float64, device=source).to(device)


def gumbel(uniform: Tensor) -> Tensor:
    """Standard Gumbel noise −log(−log u) in float64, finite for u in [0, 1)."""
    tiny = torch.finfo(torch.float64).tiny
    return -torch.log(-torch.log(uniform.clamp(min=tiny)))
