"""The counter-based generator of masks and seeds: integer hashes that are equal on every device, process and machine.

None of torch's random generators is read or changed. By hand, since torch has no counter-based generator whose numbers
are equal on CPU and CUDA.
"""

import operator

import torch
from torch import Tensor

__all__ = [
    "LARGEST_SEED",
    "check_keys",
    "combine_seed",
    "uniform_noise",
    "uniforms",
    "unit_float",
]

LARGEST_SEED = 2**63 - 1

# SplitMix64 (Steele, Lea and Flood, 2014)
_GOLDEN = 0x9E3779B97F4A7C15
_MULTIPLIER_1 = 0xBF58476D1CE4E5B9
_MULTIPLIER_2 = 0x94D049BB133111EB
_WORD = (1 << 64) - 1


def combine_seed(*parts: int) -> int:
    """Hash integers, in their order, to one seed that is the same on every machine and Python process.

    Args:
        parts: integers such as (run seed, step, level); each counts modulo 2**64. At least one.

    Returns:
        An integer in [0, 2**63).

    Raises:
        ValueError: no part was given.
        TypeError: a part is not an integer.
    """
    if not parts:
        raise ValueError("combine_seed needs at least one integer")
    state = _mix_int(len(parts))
    for part in parts:
        state = _mix_int(state + (operator.index(part) + 1) * _GOLDEN)
    return state >> 1


def unit_float(seed: int) -> float:
    """A number in [0, 1) from a seed of `combine_seed`, 53 bits of it."""
    return (seed >> 10) * 2.0**-53


def uniform_noise(seed: int, keys: Tensor, length: int) -> Tensor:
    """Draw uniforms in [0, 1) that depend on (seed, key, column) alone; equal bit for bit on CPU and CUDA.

    Args:
        seed: an integer, counted modulo 2**64; see `combine_seed`.
        keys: (B,) integers naming each row's stream; rows with equal keys get equal uniforms.
        length: number of columns, 0 or more. A longer row begins with the shorter one.

    Returns:
        (B, length) float64 on the device of `keys`, 53 random bits each.

    Raises:
        ValueError: `keys` is not a one-dimensional integer tensor, or `length` is negative.
    """
    check_keys(keys)
    if length < 0:
        raise ValueError(f"length must be 0 or more, got {length}")
    counters = torch.arange(length, dtype=torch.int64, device=keys.device)
    return uniforms(seed, keys, counters.unsqueeze(0))


def uniforms(seed: int, keys: Tensor, counters: Tensor) -> Tensor:
    """Uniforms in [0, 1), float64, for keys (B,) and counters (B, L) or (1, L)."""
    start = _mix_int(operator.index(seed) + _GOLDEN)
    stream = _mix((keys.to(torch.int64) + 1) * _signed(_GOLDEN) + _signed(start))
    bits = _mix(stream.unsqueeze(1) + (counters + 1) * _signed(_GOLDEN))
    return _shift_right(bits, 11).double() * 2.0**-53


def _mix(x: Tensor) -> Tensor:
    """SplitMix64's finaliser on int64 tensors, whose products wrap as those of unsigned words do."""
    x = (x ^ _shift_right(x, 30)) * _signed(_MULTIPLIER_1)
    x = (x ^ _shift_right(x, 27)) * _signed(_MULTIPLIER_2)
    return x ^ _shift_right(x, 31)


def _mix_int(x: int) -> int:
    """SplitMix64's finaliser on one Python integer, taken modulo 2**64."""
    x &= _WORD
    x = ((x ^ (x >> 30)) * _MULTIPLIER_1) & _WORD
    x = ((x ^ (x >> 27)) * _MULTIPLIER_2) & _WORD
    return x ^ (x >> 31)


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Logical right shift of int64 tensors (torch's own keeps the sign)."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _signed(word: int) -> int:
    """The unsigned 64-bit word as the signed integer of the same bits."""
    return word - (1 << 64) if word >= 1 << 63 else word


def check_keys(keys: Tensor) -> None:
    if keys.dim() != 1 or keys.is_floating_point() or keys.dtype == torch.bool:
        raise ValueError(f"keys must be (B,) integers, got shape {tuple(keys.shape)} of {keys.dtype}")
