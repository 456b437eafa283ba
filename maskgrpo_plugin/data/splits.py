"""Which rows are held out for validation."""

import hashlib
import zlib


def is_held_out(problem: str, one_in: int) -> bool:
    """Whether a problem belongs to the validation part; no seed plays a role, so that the two parts never meet.

    Args:
        problem: a text that names the problem.
        one_in: number of problems of which one is held out, on average.
    """
    return zlib.crc32(problem.encode()) % one_in == 0


def is_in_share(content: bytes, share: float, seed: int) -> bool:
    """Whether a row belongs to a share of its data set: a function of the row and the seed alone.

    Equal rows are on the same side, wherever they stand, and rows keep their side where others are added.

    Args:
        content: the row, or what names it.
        share: of the rows, 0 to 1, on average.
        seed: any whole number; another one draws another share.
    """
    digest = hashlib.sha256(f"{seed}\n".encode() + content).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64
