"""Grids of image tokens."""

import math


def filled_grid(tokens: int, grid: tuple[int, int] | None = None) -> tuple[int, int]:
    """Rows and columns that image tokens fill; without a grid the square: 16 tokens fill (4, 4).

    Raises:
        ValueError: they do not fill the grid, or any square, or there are none.
    """
    side = math.isqrt(tokens)
    rows, columns = grid or (side, side)
    if rows * columns != tokens or tokens == 0:
        raise ValueError(f"{tokens} image tokens do not fill a grid of {rows} × {columns}")
    return rows, columns
