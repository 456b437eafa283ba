"""The scorer of Countdown: which expression is taken, arithmetic without eval, each number exactly once."""

import json
from fractions import Fraction

import pytest

from maskgrpo_plugin import rewards
from maskgrpo_plugin.rewards.text.scorers.countdown import parse_expression

TRUTH = [[51, 99, 13], 61]


def score(completion, truth=TRUTH):
    return rewards.score("countdown", completion, truth)


@pytest.mark.parametrize(
    "completion",
    [
        "\\boxed{99 - 51 + 13}",
        "<answer>\n99 - 51 + 13\n</answer>",
        "<answer>\\boxed{13+(99-51)}</answer>",
        "\\boxed{99 - 51 + 13 = 61}",
        "\\boxed{99 - 51 + 13 = 60}",  # what it claims does not matter
        "\\boxed{1+1} no \\boxed{99 - 51 + 13}",
        "\\boxed{\\left(99 − 51\\right) + 13}",
        "\\boxed{-51 + 99 + 13}",
        "99 - 51 + 13",
        "So 99 - 51 + 13 = 61.",
        "\\boxed{99 - 51 + 13}<|eot_id|>\\boxed{1}",
    ],
)
def test_right_expressions(completion):
    assert score(completion) == {"score": 1.0, "acc": 1.0, "format": 0.0, "correct": 1.0}


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        ("\\boxed{99 - 51}", 0.1),  # not all numbers
        ("\\boxed{99 - 51 + 13 + 13 - 13}", 0.1),  # one of them thrice
        ("\\boxed{61}", 0.1),
        ("<answer>99 + 51 + 13</answer>", 0.1),  # another value
        ("\\boxed{51 + 10 = 61}", 0.1),
        ("\\boxed{99 / (13 - 13)}", 0.0),
        ("\\boxed{...}", 0.0),
        ("<answer>I do not know</answer>", 0.0),
        ("\\boxed{__import__('os').getpid()}", 0.0),
        ("99 - 51 = 48", 0.0),  # neither marked nor right
        ("\\boxed{99 - 51 + 13", 0.0),
        ("", 0.0),
    ],
)
def test_other_answers(completion, expected):
    result = score(completion)
    assert result == {"score": expected, "acc": 0.0, "format": expected, "correct": 0.0}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2*(3+4)", Fraction(14)),
        ("7 / 2", Fraction(7, 2)),
        ("1 / 3 * 3", Fraction(1)),
        ("-(2 - 5)", Fraction(3)),
        ("2 ** 3", None),
        ("7 // 2", None),
        ("2(3)", None),
        ("(2, 3)", None),
        ("1.5 + 2", None),
        ("1_0", None),
        ("a + 1", None),
        ("1 / 0", None),
        ("", None),
        ("(" * 90 + "1" + ")" * 90, Fraction(1)),
        ("(" * 300 + "1" + ")" * 300, None),
        ("9" * 300, None),
    ],
)
def test_arithmetic_is_exact_and_nothing_else_is_evaluated(text, value):
    expression = parse_expression(text)
    assert (expression.value if expression else None) == value


def test_latex_operators_and_equal_numbers():
    assert score("\\boxed{22 \\times 44 \\div 88}", [[22, 44, 88], 11])["acc"] == 1
    assert score("\\boxed{\\frac{28 \\cdot 23}{28}}", [[28, 23, 28], 23])["acc"] == 1
    assert score("\\boxed{28 * 23 / 28}", [[28, 23, 23], 23])["acc"] == 0


@pytest.mark.parametrize("truth", [json.dumps(TRUTH), tuple(TRUTH), [["51", "99", "13"], "61"], [[51.0, 99, 13], 61.0]])
def test_ground_truth_as_list_or_json(truth):
    assert score("\\boxed{99 - 51 + 13}", truth)["acc"] == 1


@pytest.mark.parametrize("truth", ["61", "[[1, 2]]", [[], 3], [[1.5, 2], 3], [5, 3], None, "abc", [["a"], 3]])
def test_other_ground_truths_are_refused(truth):
    with pytest.raises(ValueError, match="ground_truth"):
        score("\\boxed{1}", truth)
