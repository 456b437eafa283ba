"""The scorer of Sudoku: where the grid is looked for, and the share of empty cells that are right."""

import pytest

from maskgrpo_plugin import rewards

PUZZLE, SOLUTION = "4020231402001000", "4123231432411432"


def share(completion, solution=SOLUTION, puzzle=PUZZLE):
    result = rewards.score("sudoku", completion, solution, puzzle=puzzle)
    assert result["score"] == result["acc"] == result["correct"]
    return result["acc"]


@pytest.mark.parametrize(
    "completion",
    [
        f"<answer>{SOLUTION}</answer>",
        "<answer>\n4123\n2314\n3241\n1432\n</answer>",
        "<answer>4 1 2 3 | 2 3 1 4 | 3 2 4 1 | 1 4 3 2</answer>",
        f"<answer>The grid:\n```\n{SOLUTION}\n```</answer>",
        f"<answer>{SOLUTION}<|eot_id|>",
        f"<answer>\\boxed{{{SOLUTION}}}</answer>",
        f"<answer></answer>\n{SOLUTION}",
        f"{SOLUTION}\n</answer>",
        f"It is {SOLUTION}.",
        f"<answer>{SOLUTION}99</answer>",  # what is too much is cut
        "<answer>0123031032410432</answer>",  # given cells do not count
    ],
)
def test_solved(completion):
    assert share(completion) == 1.0


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        (f"<answer>{PUZZLE}</answer>", 0.0),
        ("<answer>4123</answer>", 2 / 8),
        ("<answer>4123231432410000</answer>", 5 / 8),
        (f"<answer>1{SOLUTION}</answer>", 0.0),  # moved by one
        (f"<|endoftext|><answer>{SOLUTION}</answer>", 0.0),
        ("<answer></answer>", 0.0),
        ("", 0.0),
    ],
)
def test_partly_solved(completion, expected):
    assert share(completion) == expected


@pytest.mark.parametrize(
    ("solution", "puzzle", "message"),
    [
        (SOLUTION, None, "puzzle"),
        (SOLUTION, "402", "puzzle"),
        (SOLUTION, "9" * 16, "puzzle"),
        (SOLUTION, SOLUTION, "no empty cell"),
        (SOLUTION, "1" + PUZZLE[1:], "no solution"),
        (PUZZLE, PUZZLE, "empty cell"),
        ("abc", PUZZLE, "ground_truth"),
    ],
)
def test_grids_that_cannot_be_are_refused(solution, puzzle, message):
    with pytest.raises(ValueError, match=message):
        share("x", solution, puzzle)
