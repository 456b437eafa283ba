"""Scorer of 4x4 Sudoku: the share of the puzzle's empty cells that a completion fills rightly."""

import re
from collections.abc import Iterator
from typing import Any

from maskgrpo_plugin.rewards.text.answers import cut_at_stop
from maskgrpo_plugin.rewards.text.registry import register_task

CELLS = 16

_FENCED = re.compile(r"```[a-z]*\s*([0-9][0-9\s]*)```")
_OPENED = re.compile(r"<answer>(.*?)(?:</answer>|$)", re.DOTALL | re.IGNORECASE)
_CLOSED = re.compile(r"</answer>(.*)", re.DOTALL | re.IGNORECASE)
_BEFORE_CLOSING = re.compile(r"([0-9]{16})\s*</answer>", re.IGNORECASE)
_GRID = re.compile(r"(?<![0-9])[0-9]{16}(?![0-9])")


@register_task("sudoku", keys=("score", "acc", "correct"), extra=("puzzle",), components=("correct",))
def score_sudoku(completion: str, ground_truth: str, *, puzzle: str | None = None) -> dict[str, float]:
    """Score one completion; everything after the first stop token's text is ignored.

    Args:
        completion: text of the response.
        ground_truth: the 16 digits 1 to 4 of the solution, row by row.
        puzzle: the 16 digits of the puzzle, 0 for an empty cell.

    Returns:
        `score`, `correct` and `acc`, equal: the share of empty cells that are right, 0 to 1. Cells that were given do
        not count, whatever the completion makes of them.

    Raises:
        ValueError: `puzzle` is missing, one of the two is no grid, they contradict each other, or no cell is empty.
    """
    solution, clues = parse_grid(ground_truth, "ground_truth"), parse_grid(puzzle, "puzzle")
    empty = check_puzzle(clues, solution)
    cells = extract_cells(completion)
    share = sum(cells[i : i + 1] == solution[i] for i in empty) / len(empty)
    return {"score": share, "acc": share, "correct": share}


def check_puzzle(puzzle: str, solution: str) -> list[int]:
    """Indices of a puzzle's empty cells.

    Raises:
        ValueError: the solution has an empty cell or contradicts the puzzle, or the puzzle has no empty cell.
    """
    empty = [i for i, cell in enumerate(puzzle) if cell == "0"]
    if "0" in solution:
        raise ValueError(f"ground_truth of a sudoku task has an empty cell: {solution!r}")
    if not empty:
        raise ValueError(f"puzzle of a sudoku task has no empty cell: {puzzle!r}")
    if any(clue not in ("0", cell) for clue, cell in zip(puzzle, solution, strict=True)):
        raise ValueError(f"ground_truth {solution!r} is no solution of the puzzle {puzzle!r}")
    return empty


def parse_grid(value: Any, name: str) -> str:
    """The 16 digits 0 to 4 of a grid; white space is dropped. `name` is for the error.

    Raises:
        ValueError: it is something else.
    """
    digits = "".join(str(value).split())
    if len(digits) != CELLS or set(digits) - set("01234"):
        raise ValueError(f"{name} of a sudoku task must be 16 digits from 0 to 4, got {value!r}")
    return digits


def extract_cells(completion: str) -> str:
    """The cells that a completion gives, row by row: digits in order, at most 16, and fewer where it gives fewer.

    The first of these that holds a digit: a fenced block of digits in the first `<answer>`, that answer (closed or
    not), what follows `</answer>`, 16 digits before `</answer>`, 16 digits anywhere.
    """
    for content in _candidates(cut_at_stop(completion)):
        digits = re.sub(r"[^0-9]", "", content)
        if digits:
            return digits[:CELLS]
    return ""


def _candidates(text: str) -> Iterator[str]:
    opened = _OPENED.search(text)
    if opened:
        fenced = _FENCED.search(text, opened.start())
        yield fenced[1] if fenced else ""
        yield opened[1]
    for pattern in (_CLOSED, _BEFORE_CLOSING):
        match = pattern.search(text)
        yield match[1] if match else ""
    grid = _GRID.search(text)
    yield grid[0] if grid else ""
