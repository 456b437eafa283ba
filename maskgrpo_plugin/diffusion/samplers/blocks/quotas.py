"""How many tokens of a block each step reveals: as published samplers share a block out."""

from collections.abc import Callable

import torch
from torch import Tensor

Quota = Callable[[int, int], list[int]]
DREAM_EPS = 1e-3  # the last of Dream's time steps, as published


def even(masked: int, steps: int) -> list[int]:
    """LLaDA's: the same number in each step, the first ones taking the remainder.

    >>> even(7, 3)
    [3, 2, 2]
    """
    base, extra = divmod(masked, steps)
    return [base + (step < extra) for step in range(steps)]


def rounded(masked: int, steps: int) -> list[int]:
    """dLLM's (A2D, LLaDA-MoE): what is left over the steps that are left, rounded to even; the share that stays masked
    is in single precision, as published, which decides where half a token is left over.

    >>> rounded(8, 3)
    [3, 2, 3]
    """
    hidden = 1 - (1 - torch.tensor([step / steps for step in range(steps, -1, -1)], dtype=torch.float32))
    counts, left = [], masked
    for kept in (hidden[1:] / hidden[:-1]).tolist():
        counts.append(min(round(left * (1 - kept)), left))
        left -= counts[-1]
    return counts


def dream(masked: int, steps: int) -> list[int]:
    """Dream's: times fall evenly from 1 to 0.001, each step takes that share of what is left, rounded down, in single
    precision; the last step takes the rest. So with as many steps as tokens the first reveals none.

    >>> dream(8, 4)
    [1, 2, 2, 3]
    """
    times = torch.linspace(1, DREAM_EPS, steps + 1)
    counts, left = [], masked
    for step in range(steps - 1):
        counts.append(int(torch.tensor(float(left)) * (1 - times[step + 1] / times[step])))
        left -= counts[-1]
    return [*counts, left]


QUOTAS: dict[str, Quota] = {"even": even, "rounded": rounded, "dream": dream}


def reveal_quota(masked: Tensor, steps: Tensor, quota: str = "even") -> Tensor:
    """Share masked positions over steps; steps that would reveal none are left out.

    >>> reveal_quota(torch.tensor([7, 4]), torch.tensor([3, 2]))
    tensor([[3, 2, 2],
            [2, 2, 0]])

    Args:
        masked: (N,) number of positions per row.
        steps: (N,) number of steps per row, each at least 1.
        quota: a name of `QUOTAS`.

    Returns:
        (N, most steps) positions per row and step.
    """
    of_rows = zip(masked.tolist(), steps.tolist(), strict=True)
    counts = [[count for count in QUOTAS[quota](left, number) if count] for left, number in of_rows]
    width = max([1, *(len(row) for row in counts)])
    return torch.tensor([row + [0] * (width - len(row)) for row in counts])
