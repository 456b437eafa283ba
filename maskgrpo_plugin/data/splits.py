"""Which problems are held out for validation."""

import zlib


def is_held_out(problem: str, one_in: int) -> bool:
    """Whether a problem belongs to the validation part; no seed plays a role, so that the two parts never meet.

    Args:
        problem: a text that names the problem.
        one_in: number of problems of which one is held out, on average.
    """
    return zlib.crc32(problem.encode()) % one_in == 0
