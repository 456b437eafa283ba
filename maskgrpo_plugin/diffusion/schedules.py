"""Noise schedules of masked diffusion, and the mask levels at which one step estimates importance."""

import math
from abc import ABC, abstractmethod
from typing import TypeVar

import torch
from torch import Tensor

from maskgrpo_plugin.diffusion.remasking import combine_seed

Progress = TypeVar("Progress", float, Tensor)

# uniform_levels draws from [_LOWEST_LEVEL, _HIGHEST_LEVEL]: a level of 0 masks nothing, one of 1 divides by no signal
_LOWEST_LEVEL = 0.001
_HIGHEST_LEVEL = 0.999
_LEVEL_STREAM = 0x6C6576656C  # "level": keeps these draws apart from the masks of the same seed and step


class NoiseSchedule(ABC):
    """The share of masked positions k(x) as sampling goes from x = 0 (all masked) to x = 1 (none masked).

    It is the schedule k of the emerge sampler (arXiv 2510.02880, Alg. 4) and of MaskGIT. `mask_ratio` and `derivative`
    take a float or a tensor of any shape with values in [0, 1] and return the same kind.
    """

    def mask_ratio(self, x: Progress) -> Progress:
        """Share of positions still masked at progress x: exactly 1 at x = 0 and 0 at x = 1, decreasing.

        Raises:
            ValueError: x is outside [0, 1].
        """
        _check_progress(x)
        return self._mask_ratio(x)

    def derivative(self, x: Progress) -> Progress:
        """d mask_ratio / dx at progress x, 0 or negative.

        Raises:
            ValueError: x is outside [0, 1].
        """
        _check_progress(x)
        return self._derivative(x)

    @abstractmethod
    def _mask_ratio(self, x: Progress) -> Progress: ...

    @abstractmethod
    def _derivative(self, x: Progress) -> Progress: ...


class LinearSchedule(NoiseSchedule):
    """k(x) = 1 − x: the same number of tokens in each step."""

    def _mask_ratio(self, x: Progress) -> Progress:
        return 1.0 - x

    def _derivative(self, x: Progress) -> Progress:
        return -1.0 + 0.0 * x


class CosineSchedule(NoiseSchedule):
    """k(x) = cos(πx/2): few tokens in early steps, many in late ones."""

    def _mask_ratio(self, x: Progress) -> Progress:
        # as a sine, since cos(π/2) in floating point is not 0
        return _sin((1.0 - x) * (math.pi / 2))

    def _derivative(self, x: Progress) -> Progress:
        return -(math.pi / 2) * _sin(x * (math.pi / 2))


SCHEDULES: dict[str, NoiseSchedule] = {"linear": LinearSchedule(), "cosine": CosineSchedule()}


def get_schedule(name: str) -> NoiseSchedule:
    """Look up a noise schedule by name: `linear` or `cosine`.

    Raises:
        ValueError: the name is unknown; the message lists the available ones.
    """
    if name not in SCHEDULES:
        raise ValueError(f"unknown noise schedule {name!r}; available: {', '.join(sorted(SCHEDULES))}")
    return SCHEDULES[name]


def mask_levels(mu: int, gamma: float, cap: float = 0.999) -> list[float]:
    """Mask levels of the μ inner updates, t_j = min(γ + (1 − γ)·j/μ, cap) for j = 1…μ (arXiv 2510.02880).

    Args:
        mu: number of inner updates over the same rollouts, 1 or more.
        gamma: lower bound of the levels, in the open interval (0, 1); the paper has 0.6 for text and 0.8 for images.
        cap: upper bound, in (0, 1]; below 1 something stays visible.

    Returns:
        mu levels in (0, cap], not decreasing.

    Raises:
        ValueError: mu, gamma or cap is out of range.
    """
    _check_mu(mu)
    if not 0.0 < gamma < 1.0:
        raise ValueError(f"gamma must be in the open interval (0, 1), got {gamma}")
    if not 0.0 < cap <= 1.0:
        raise ValueError(f"cap must be in (0, 1], got {cap}")
    return [min(gamma + (1.0 - gamma) * j / mu, cap) for j in range(1, mu + 1)]


def uniform_levels(mu: int, *, seed: int, step: int) -> list[float]:
    """Mask levels of UniGRPO: μ independent uniform draws from [0.001, 0.999].

    Draw j depends on (seed, step, j) alone, so that every process finds the same levels.

    Args:
        mu: number of levels, 1 or more.
        seed: seed of the run.
        step: training step.

    Raises:
        ValueError: mu is less than 1.
    """
    _check_mu(mu)
    uniforms = [(combine_seed(_LEVEL_STREAM, seed, step, j) >> 10) * 2.0**-53 for j in range(1, mu + 1)]
    return [_LOWEST_LEVEL + (_HIGHEST_LEVEL - _LOWEST_LEVEL) * u for u in uniforms]


def _sin(x: Progress) -> Progress:
    return torch.sin(x) if isinstance(x, Tensor) else math.sin(x)


def _check_progress(x: float | Tensor) -> None:
    inside = bool(((x >= 0) & (x <= 1)).all()) if isinstance(x, Tensor) else 0.0 <= x <= 1.0
    if not inside:
        raise ValueError(f"progress must be in [0, 1], got {x}")


def _check_mu(mu: int) -> None:
    if isinstance(mu, bool) or not isinstance(mu, int) or mu < 1:
        raise ValueError(f"mu must be an integer of 1 or more, got {mu!r}")
