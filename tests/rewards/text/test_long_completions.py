"""No completion, however it was made, keeps a scorer busy: their time is linear in its length, in every task."""

import functools

import pytest
from cpu_time import least_cpu_seconds

from maskgrpo_plugin import rewards
from maskgrpo_plugin.rewards.text.answers import boxed_contents
from maskgrpo_plugin.rewards.text.scorers.competition_math import LONGEST_ANSWER, normalize

LENGTH, SHORT = 100_000, 10_000
# CPU seconds; a scorer needs 0.01 to 0.1 for LENGTH characters, where it is not linear 5 to 90.
SECONDS, SHORT_SECONDS = 2.0, 0.25

TRUTHS = {
    "arithmetic": ("57", {}),
    "code": (["assert f(1) == 1"], {"run": lambda program, tests: {"pass_rate": 0.0, "acc": 0.0}}),
    "countdown": ([[2, 3], 5], {}),
    "gsm8k": ("18", {}),
    "math": ("\\frac{3}{4}", {}),
    "short_answer": (["yes", "two"], {}),
    "sudoku": ("4123231432411432", {"puzzle": "4020231402001000"}),
}


def inside(before: str, unit: str, after: str, length: int) -> str:
    return before + unit * ((length - len(before) - len(after)) // len(unit)) + after


UNITS = [
    *("1", "1+", "1 ", " ", "\n", "\t", "=", "= ", "1=", "9.", "1,", "1,234", "-", "- ", "(", "(1", "()", "1(", "+-"),
    *("$", "$ ", "$1", "\\$", "#", "####", "####9", "#### 9\n", "#### ", "^", "^{", "^{a", "^ ", "^a", "\\", "\\ "),
    *("{", "}", "{}", "{ ", "[", "\\text{", "\\text{a", "\\text ", "\\text{a}", "\\mathrm {"),
    *(
        "\\boxed{",
        "\\boxed{1",
        "\\boxed{1 ",
        "\\boxed{^5",
        "\\boxed{5=",
        "\\boxed {",
        "\\boxed",
        "\\fbox{1}",
        "\\boxed{}",
    ),
    *(
        "<answer>",
        "<answer>1",
        "<answer> ",
        "</answer>",
        "<answer></answer>",
        "<answer>=</answer>",
        "<answer>^5</answer>",
    ),
    *(
        "<",
        "<a",
        "<answer",
        "<|",
        "<|eot_id|",
        "```",
        "``` ",
        "```a",
        "```python",
        "```1 ",
        "```\n",
        "`",
        "` ",
        "```\n1",
    ),
    *("```python\n", "```python\n \n", "\n ", "\n```", "async ", "def ", "class\n", "\n \t", "async\n", "def f():\n"),
    *(
        "\\frac",
        "\\frac{",
        "\\frac{1",
        "\\frac{1}",
        "\\frac{1}{",
        "\\frac {1} {2}",
        "\\frac ",
        "\\times",
        "\\left",
        "\\right",
    ),
    *(
        "0",
        "0123456789012345",
        "1234123412341234 ",
        "x",
        "a",
        "aB",
        "é",
        "−",
        "𝟙",
        "\x00",
        "if ",
        "lambda:",
        "[[",
        "not ",
    ),
    *("{**", "f'{", "'''", '"', "# ", "a.", "a,", "a;", "a:", "@a\n", "*", "**", "//", "x=", "x==", "_"),
]
FRAMES = {
    "in a closed answer": ("<answer>", "</answer>"),
    "in an open answer": ("<answer>", ""),
    "in a box": ("\\boxed{", "}"),
    "in an open box": ("\\boxed{", ""),
    "in a block": ("```python\n", "\n```"),
    "in an open block": ("```python\n", ""),
    "in a fence": ("```", "```"),
    "before an equation": ("", "=5"),
    "before a word": ("1", "x"),
    "between": ("5\\text{a}", "= 1 )"),
}
SHAPES = {
    "nested boxes": "\\boxed{" * (LENGTH // 8) + "}" * (LENGTH // 8),
    "nested boxes without a number": "\\boxed{^5" * (LENGTH // 10) + "}" * (LENGTH // 10),
    "nested boxes that end with =": "\\boxed{5" * (LENGTH // 10) + "=}" * (LENGTH // 10),
    "nested boxes in an answer": "<answer>" + "\\boxed{" * (LENGTH // 8) + "}" * (LENGTH // 8) + "</answer>",
    "nested parentheses": "(" * (LENGTH // 2) + ")" * (LENGTH // 2),
    "nested parentheses around a number": "(" * (LENGTH // 2) + "1" + ")" * (LENGTH // 2) + "=1",
    "nested braces": "{" * (LENGTH // 2) + "}" * (LENGTH // 2),
    "a number of nines after hashes": "#### " + "9" * LENGTH,
    "a decimal": "0." + "9" * LENGTH,
    "spaces in a fence of digits": "```" + "1 " * (LENGTH // 2),
    "letters after a fence": "```" + "a" * LENGTH,
    "spaces before a unit": "\\boxed{1" + " " * LENGTH + "\\text{m}" + " " * LENGTH + "x}",
    "many blocks": "```python\ndef f():\n  pass\n```\n" * (LENGTH // 30),
    "a deep program": "```python\n" + "(" * 40_000 + ")" * 40_000 + "\n```",
    "a program of minus signs": "```python\nx = " + "-" * 40_000 + "1\n```",
    "a program of brackets": "```python\n" + "[" * 150 + "]" * 150 + "\n```" + " " * LENGTH,
    "a deep program of blocks": "```python\n" + "".join(" " * n + "if x:\n" for n in range(300)) + "\n```",
}


def texts():
    """Name, text and the CPU seconds that it may take."""
    for name, text in SHAPES.items():
        yield name, text, SECONDS
    for unit in UNITS:
        yield f"{unit!r} alone", inside("", unit, "", LENGTH), SECONDS
    for name, (before, after) in FRAMES.items():
        for unit in UNITS:
            yield f"{unit!r} {name}", inside(before, unit, after, SHORT), SHORT_SECONDS


@pytest.mark.parametrize("task", sorted(TRUTHS))
def test_a_long_completion_is_scored_in_little_time(task):
    truth, extra = TRUTHS[task]
    for name, text, most in texts():
        taken = least_cpu_seconds(functools.partial(rewards.score, task, text, truth, **extra), most)
        assert taken < most, f"{name}: {text[:40]!r}"


@pytest.mark.parametrize(
    ("text", "boxes"),
    [
        ("\\boxed{1} \\fbox{2}", ["1", "2"]),
        ("\\boxed{a\\boxed{1}b}", ["a\\boxed{1}b", "1"]),
        ("\\boxed{\\boxed{\\boxed{1}}}", ["\\boxed{\\boxed{1}}", "\\boxed{1}", "1"]),
    ],
)
def test_boxes_that_lie_apart_or_a_few_deep_are_all_found(text, boxes):
    assert boxed_contents(text) == boxes


def test_of_very_deep_boxes_the_inner_ones_are_found():
    found = boxed_contents("\\boxed{" * 10_000 + "7" + "}" * 10_000)
    assert found[-1] == "7" and sum(map(len, found)) <= 2 * 80_001
    assert rewards.score("gsm8k", "\\boxed{" * 10_000 + "7" + "}" * 10_000, "7")["acc"] == 1.0


def test_the_longest_answer_is_normalized_in_little_time():
    half = LONGEST_ANSWER // 2 - 10

    def read_all():
        for unit in UNITS:
            for before, after in (("", ""), ("1", "x"), ("5", "\\text{a}"), ("\\frac{", "x")):
                normalize(inside(before, unit, after, LONGEST_ANSWER))
                normalize("1" + inside("", unit, "", half) + "\\text{a}" + inside("", unit, "x", half))

    assert least_cpu_seconds(read_all, 5) < 5
