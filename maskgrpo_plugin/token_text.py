"""The text that each token of a completion adds, for pages and terminals that show tokens one by one."""

from collections.abc import Callable


def token_pieces(decode: Callable[[list[int]], str], ids: list[int]) -> list[str]:
    """The text that each token adds to those before it.

    A character that several tokens make together is the first one's, and the others add nothing. White space that
    stands between tokens belongs to the later one.

    Args:
        decode: from tokens to text.
        ids: tokens that follow one another.
    """
    pieces = [""] * len(ids)
    start = read = 0  # the last group of tokens that made whole characters: from `start` below `read`
    for end in range(1, len(ids) + 1):
        before, after = decode(ids[start:read]), decode(ids[start:end])
        if after.endswith("\ufffd") and end < len(ids):
            continue
        pieces[read] = after[len(before) :]
        start, read = read, end
    return pieces
