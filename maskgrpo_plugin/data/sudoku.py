"""Sudoku of 4x4 cells, from files or drawn at random with a unique solution."""

import functools
import itertools
import random
from collections.abc import Iterator
from typing import Any

from maskgrpo_plugin.data.records import DataError, as_object, text_field
from maskgrpo_plugin.data.rows import Row, verl_row
from maskgrpo_plugin.data.splits import is_held_out
from maskgrpo_plugin.data.templates import TaskTemplates, Template, answer_form
from maskgrpo_plugin.rewards.text.scorers.sudoku import CELLS, check_puzzle, parse_grid

EMPTY_CELLS = 8
VALIDATION_SHARE = 5  # one in so many puzzles is held out
TEMPLATES = TaskTemplates(
    names=("puzzle",),
    project="Solve this 4x4 Sudoku. Its 16 cells are given row by row, 0 is an empty cell: {puzzle}\n"
    "Fill the empty cells so that every row, every column and each of the four 2x2 boxes holds 1, 2, 3 and 4 once.\n\n"
    "Answer in this form:\n" + answer_form("your reasoning, step by step", "the 16 digits of the solved grid"),
    published="Solve the 4x4 Sudoku below. It is a string of 16 characters, the cells from left to right and from top "
    "to bottom, with 0 for an empty cell. The digits 1 to 4 have to occur once in every row, once in every column and "
    "once in each of the four 2x2 boxes. The solution is the whole string of 16 digits, without a 0 and without "
    "spaces.\nWrite your reply in this form:\n"
    + answer_form("the steps of your solution", "\\boxed{the 16 digits}")
    + "\n\nPuzzle: {puzzle}",
)
UNITS = (
    *(tuple(range(4 * row, 4 * row + 4)) for row in range(4)),
    *(tuple(range(column, CELLS, 4)) for column in range(4)),
    *(tuple(corner + step for step in (0, 1, 4, 5)) for corner in (0, 2, 8, 10)),
)


def sudoku_row(record: Any, split: str, index: int, template: Template = TEMPLATES.default) -> Row:
    """One row in verl's format from one record with `Puzzle` and `Solution` (in any case), 16 digits each.

    Raises:
        DataError: a field is missing or is not a grid, or the solution does not solve the puzzle.
    """
    record = {str(key).lower(): value for key, value in as_object(record).items()}
    try:
        puzzle = parse_grid(text_field(record, "puzzle"), "puzzle")
        solution = parse_grid(text_field(record, "solution"), "solution")
        check_puzzle(puzzle, solution)
    except ValueError as error:
        raise DataError(str(error)) from error
    if solution not in solved_grids():
        raise DataError(f"the solution {solution!r} breaks the rules")
    return verl_row(
        data_source="sudoku",
        task="sudoku",
        ability="logic",
        content=template.fill(puzzle=puzzle),
        ground_truth=solution,
        split=split,
        index=index,
        puzzle=puzzle,
        **template.extra_info(),
    )


def problem_key(row: Row) -> str:
    """What makes two rows the same problem: the puzzle."""
    return row["extra_info"]["puzzle"]


def draw_records(*, held_out: bool, seed: int) -> Iterator[dict[str, Any]]:
    """Draw puzzles of EMPTY_CELLS empty cells and one solution, without end, no two alike. Training and held-out
    puzzles never meet, whatever the seed.

    Args:
        held_out: puzzles for validation, else for training.
        seed: of this call alone; no global generator is touched.
    """
    rng = random.Random(f"{seed}/{held_out}")
    seen: set[str] = set()
    while True:
        solution = rng.choice(solved_grids())
        empty = set(rng.sample(range(CELLS), EMPTY_CELLS))
        puzzle = "".join("0" if cell in empty else digit for cell, digit in enumerate(solution))
        if puzzle not in seen and is_held_out(puzzle, VALIDATION_SHARE) == held_out and len(solutions(puzzle)) == 1:
            seen.add(puzzle)
            yield {"puzzle": puzzle, "solution": solution}


def solutions(puzzle: str) -> list[str]:
    """All solutions of a puzzle of 16 digits."""
    clues = [(cell, digit) for cell, digit in enumerate(puzzle) if digit != "0"]
    return [grid for grid in solved_grids() if all(grid[cell] == digit for cell, digit in clues)]


@functools.cache
def solved_grids() -> tuple[str, ...]:
    """All 288 solved grids."""
    rows = ["".join(row) for row in itertools.permutations("1234")]
    grids = ("".join(grid) for grid in itertools.product(rows, repeat=4))
    return tuple(grid for grid in grids if all(len({grid[cell] for cell in unit}) == 4 for unit in UNITS))
