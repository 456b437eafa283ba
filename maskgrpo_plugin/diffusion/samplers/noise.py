"""Noise for samplers: drawn from the caller's generators only, row by row where each row has its own."""

from collections.abc import Sequence

import torch
from torch import Tensor

Generators = torch.Generator | Sequence[torch.Generator | None] | None


def uniform_rows(counts: Tensor, generator: Generators, device: torch.device) -> Tensor:
    """Uniform draws in [0, 1) for `counts[b]` positions of each row b, stacked row after row.

    Args:
        counts: (B,) number of positions per row.
        generator: one per row (the draws of a row then depend on its own generator and count alone), one for all, or
            None for torch's global one.
        device: where the draws are wanted; a generator on another device draws there, and the result is moved.

    Returns:
        (Σ counts,) float64.

    Raises:
        ValueError: the number of generators is not that of the rows.
    """
    if generator is None or isinstance(generator, torch.Generator):
        return _uniform(int(counts.sum()), generator, device)
    return torch.cat([_uniform(count, own, device) for count, own in zip(counts.tolist(), generator, strict=True)])


def uniform_table(counts: Sequence[int], width: int, generator: Generators, device: torch.device) -> Tensor:
    """Uniform draws in [0, 1) for the first `counts[b]` columns of each row b, and 0 in the others.

    Rows that draw [0.2, 0.7, 0.1] and [0.5]: `uniform_table([3, 1], 4, …)` is [[0.2, 0.7, 0.1, 0], [0.5, 0, 0, 0]].

    Args:
        counts: B numbers of draws, each at most `width`.
        width: number of columns.
        generator: see `uniform_rows`; a row's draws depend on its own generator and count alone.
        device: see `uniform_rows`.

    Returns:
        (B, width) float64.
    """
    if generator is None or isinstance(generator, torch.Generator):
        draws = list(_uniform(sum(counts), generator, device).split(list(counts)))
    else:
        draws = [_uniform(count, own, device) for count, own in zip(counts, generator, strict=True)]
    return torch.stack([torch.nn.functional.pad(row, (0, width - row.shape[0])) for row in draws])


def draw_categories(logits: Tensor, temperature: float, uniform: Tensor) -> Tensor:
    """Draw from softmax(logits / temperature) by inverting its distribution function, summed in float64.

    Probabilities 0.25, 0.5 and 0.25 give token 0 for a uniform below 0.25, token 1 below 0.75, token 2 above.

    Args:
        logits: (…, V), float32 or float64.
        temperature: above 0.
        uniform: (…), in [0, 1).

    Returns:
        (…) int64; never a token of probability 0.
    """
    cumulative = (logits / temperature).softmax(-1).cumsum(-1, dtype=torch.float64)
    wanted = uniform.unsqueeze(-1) * cumulative[..., -1:]
    return torch.searchsorted(cumulative, wanted, right=True).squeeze(-1).clamp(max=logits.shape[-1] - 1)


def check_generators(generator: Generators, rows: int) -> None:
    """Raise ValueError where a list of generators does not hold one per row."""
    if generator is not None and not isinstance(generator, torch.Generator) and len(generator) != rows:
        raise ValueError(f"generator holds {len(generator)} generators for a batch of {rows} rows: give one per row")


def rows_of(generator: Generators, rows: Sequence[int]) -> Generators:
    """The generators of the rows with these indices; one generator for all stays as it is."""
    if generator is None or isinstance(generator, torch.Generator):
        return generator
    return [generator[row] for row in rows]


def gumbel(uniform: Tensor) -> Tensor:
    """Standard Gumbel noise −log(−log u) in float64, finite for u in [0, 1)."""
    tiny = torch.finfo(torch.float64).tiny
    return -torch.log(-torch.log(uniform.clamp(min=tiny)))


def _uniform(count: int, generator: torch.Generator | None, device: torch.device) -> Tensor:
    source = device if generator is None else generator.device
    return torch.rand(count, generator=generator, dtype=torch.float64, device=source).to(device)
