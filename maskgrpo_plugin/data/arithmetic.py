"""Sums of two operands as a data set, in two parts that never meet, whatever the seed."""

import random
import zlib

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
    return zlib.crc32(f"{min(a, b)}+{max(a, b)}".encode()) % VALIDATION_SHARE == 0


def draw_sums(digits: int, rows: int, *, held_out: bool, seed: int) -> list[tuple[int, int]]:
    """Draw different operand pairs (a, b) of one part, in random order; a+b and b+a count as different.

    Args:
        digits: digits of each operand, 1 to 12.
        rows: pairs to draw, 0 or more.
        held_out: the validation part, else the training part.
        seed: of this call alone; no global generator is touched.

    Raises:
        ValueError: the part has fewer pairs than `rows`; the message gives their number.
    """
    operands = operand_range(digits)
    if rows < 0:
        raise ValueError(f"rows must be 0 or more, got {rows}")
    rng = random.Random(f"{seed}/{digits}/{held_out}")
    part = "validation" if held_out else "training"
    if digits <= _LARGEST_ENUMERATED:
        pairs = [(a, b) for a in operands for b in operands if is_held_out(a, b) == held_out]
        if rows > len(pairs):
            raise ValueError(f"{rows} {part} rows asked, but there are {len(pairs)} sums of {digits} digits for it")
        return rng.sample(pairs, rows)
    limit = len(operands) ** 2 // (2 * VALIDATION_SHARE)
    if rows > limit:
        raise ValueError(f"{rows} {part} rows asked, the most for {digits} digits is {limit}")
    chosen: dict[tuple[int, int], None] = {}
    while len(chosen) < rows:
        pair = (rng.choice(operands), rng.choice(operands))
        if is_held_out(*pair) == held_out:
            chosen[pair] = None
    return list(chosen)
