"""Mask levels at which one step estimates importance, and the schedules of the image samplers; plain functions."""

import math
from collections.abc import Callable

from maskgrpo_plugin.errors import check_choice

Schedule = Callable[[float], float]


def linear(x: float) -> float:
    """k(x) = 1 − x: the same number of tokens in each step."""
    return 1.0 - x


def cosine(x: float) -> float:
    """k(x) = cos(πx/2): few tokens in early steps, many in late ones."""
    return math.sin((1.0 - x) * (math.pi / 2))  # a sine, since cos(π/2) in floating point is not 0


SCHEDULES: dict[str, Schedule] = {"cosine": cosine, "linear": linear}


def get_schedule(name: str) -> Schedule:
    """The share of positions still masked, k(x), as sampling goes from x = 0 (all) to x = 1 (none).

    It is the k of the emerge sampler (arXiv 2510.02880, Alg. 4) and of MaskGIT: exactly 1 at 0 and 0 at 1, decreasing.

    Args:
        name: `cosine` or `linear`.

    Raises:
        OptionError: an unknown name.
    """
    check_choice("schedule", name, tuple(SCHEDULES))
    return SCHEDULES[name]


def mask_levels(mu: int, gamma: float, cap: float = 0.999) -> list[float]:
    """Mask levels of the μ inner updates, t_j = min(γ + (1 − γ)·j/μ, cap) for j = 1…μ (arXiv 2510.02880).

    >>> mask_levels(4, 0.6)
    [0.7, 0.8, 0.9, 0.999]

    Args:
        mu: number of inner updates over the same rollouts, 1 or more.
        gamma: lower bound of the levels, in the open interval (0, 1); the paper has 0.6 for text and 0.8 for images.
        cap: upper bound, in (0, 1]; below 1 something stays visible.

    Returns:
        mu levels in (0, cap], not decreasing.

    Raises:
        ValueError: mu, gamma or cap is out of range.
    """
    if isinstance(mu, bool) or not isinstance(mu, int) or mu < 1:
        raise ValueError(f"mu must be an integer of 1 or more, got {mu!r}")
    if not 0.0 < gamma < 1.0:
        raise ValueError(f"gamma must be in the open interval (0, 1), got {gamma}")
    if not 0.0 < cap <= 1.0:
        raise ValueError(f"cap must be in (0, 1], got {cap}")
    return [min(gamma + (1.0 - gamma) * j / mu, cap) for j in range(1, mu + 1)]
