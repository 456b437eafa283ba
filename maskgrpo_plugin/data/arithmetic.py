"""Sums of two operands as a data set, in two parts that never meet, whatever the seed."""

import random
from collections.abc import Callable

from maskgrpo_plugin.data import splits

VALIDATION_SHARE = 5  # one in so many sums is held out
_LARGEST_ENUMERATED = 3


def operand_range(digits: int) -> range:
    """Operands of `digits` digits: 0 to 9 for one digit, 10 to 99 for two, and so on.

    Raises:
        ValueError: `digits` is outside 1 to 12.
    """
    if not 1 <= digits <= 12:
        raise ValueError(f"digits must be 1 to 12, got {digits}")
    return range(0 if digits == 1 else 10 ** (digits - 1), 10**digits)


def is_held_out(a: int, b: int) -> bool:
    """Whether a+b belongs to the validation part; b+a belongs to the same part, and no seed plays a role."""
    return splits.is_held_out(f"{min(a, b)}+{max(a, b)}", VALIDATION_SHARE)


def has_carry(a: int, b: int) -> bool:
    """Whether the ones of a and b add to ten or more."""
    return a % 10 + b % 10 > 9


def draw_sums(
    digits: int, rows: int, *, held_out: bool, seed: int, carry_share: float | None = None
) -> list[tuple[int, int]]:
    """Draw different operand pairs (a, b) of one part, in random order; a+b and b+a count as different.

    Args:
        digits: digits of each operand, 1 to 12.
        rows: pairs to draw, 0 or more.
        held_out: the validation part, else the training part.
        seed: of this call alone; no global generator is touched.
        carry_share: share of the rows whose ones carry, 0 to 1; None draws uniformly (0.45 of them for two digits).

    Raises:
        ValueError: the part has fewer such pairs than `rows` (the message gives their number), or a value is out of
            range.
    """
    if rows < 0:
        raise ValueError(f"rows must be 0 or more, got {rows}")
    rng = random.Random(f"{seed}/{digits}/{held_out}")
    if carry_share is None:
        return _draw(digits, rows, rng, lambda a, b: is_held_out(a, b) == held_out, held_out)
    if not 0 <= carry_share <= 1:
        raise ValueError(f"carry_share must be in [0, 1], got {carry_share}")
    carrying = round(rows * carry_share)
    drawn: list[tuple[int, int]] = []
    for count, carries in ((carrying, True), (rows - carrying, False)):

        def belongs(a: int, b: int, carries: bool = carries) -> bool:
            return is_held_out(a, b) == held_out and has_carry(a, b) == carries

        drawn += _draw(digits, count, rng, belongs, held_out)
    rng.shuffle(drawn)
    return drawn


def _draw(
    digits: int, rows: int, rng: random.Random, belongs: Callable[[int, int], bool], held_out: bool
) -> list[tuple[int, int]]:
    """Draw `rows` different pairs for which `belongs` holds."""
    operands = operand_range(digits)
    part = "validation" if held_out else "training"
    if digits <= _LARGEST_ENUMERATED:
        pairs = [(a, b) for a in operands for b in operands if belongs(a, b)]
        if rows > len(pairs):
            raise ValueError(f"{rows} {part} rows asked, but there are {len(pairs)} such sums of {digits} digits")
        return rng.sample(pairs, rows)
    limit = len(operands) ** 2 // (2 * VALIDATION_SHARE)
    if rows > limit:
        raise ValueError(f"{rows} {part} rows asked, the most for {digits} digits is {limit}")
    chosen: dict[tuple[int, int], None] = {}
    while len(chosen) < rows:
        pair = (rng.choice(operands), rng.choice(operands))
        if belongs(*pair):
            chosen[pair] = None
    return list(chosen)
