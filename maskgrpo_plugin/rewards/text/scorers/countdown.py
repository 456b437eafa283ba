"""Scorer of Countdown: an arithmetic expression over given numbers, each used exactly once, that gives a target."""

import ast
import operator
import re
from collections.abc import Callable
from fractions import Fraction
from typing import Any, NamedTuple

from maskgrpo_plugin.rewards.text.answers import answer_tag_contents, boxed_contents, cut_at_stop, from_json
from maskgrpo_plugin.rewards.text.registry import register_task

CORRECT_REWARD = 1.0
FORMAT_REWARD = 0.1
LONGEST_EXPRESSION = 200

_OPERATORS: dict[type[ast.operator], Callable[[Fraction, Fraction], Fraction]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
_SPELLINGS = (
    (re.compile(r"\\[dt]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}"), r"((\1)/(\2))"),
    (re.compile(r"\\(?:times|cdot|ast)(?![a-zA-Z])|[×·∗⋅]"), "*"),
    (re.compile(r"\\div(?![a-zA-Z])|[÷∕]"), "/"),
    (re.compile(r"[−–]"), "-"),
    (re.compile(r"\\(?:left|right)(?![a-zA-Z])|\\[()\[\],;! ]|\$|```"), " "),
)
_EQUALS = re.compile(r"=[ \t]*-?[0-9.]")
_SIGNS = "0123456789+-*/() \t"
_EXPRESSION = re.compile(r"[0-9+\-*/()\s]+")


class Expression(NamedTuple):
    """An arithmetic expression: its value, and its numbers as they stand in it."""

    value: Fraction
    numbers: list[int]


@register_task("countdown", keys=("score", "acc", "format", "correct"), components=("format", "correct"))
def score_countdown(completion: str, ground_truth: Any) -> dict[str, float]:
    """Score one completion; everything after the first stop token's text is ignored.

    Args:
        completion: text of the response.
        ground_truth: [numbers, target], or the JSON of it.

    Returns:
        `correct` 1 where the expression uses each number exactly once and gives the target, else 0; `format` 0.1 where
        it is not correct, but a box or `<answer>…</answer>` holds an expression, else 0; `score` their sum (0, 0.1 or
        1); `acc` 0 or 1.

    Raises:
        ValueError: `ground_truth` is not a list of whole numbers and a whole number.
    """
    numbers, target = parse_ground_truth(ground_truth)
    content, is_marked = _answer(cut_at_stop(completion))
    expression = parse_expression(_left_side(content))
    correct = expression is not None and sorted(expression.numbers) == sorted(numbers) and expression.value == target
    components = {
        "format": FORMAT_REWARD * (expression is not None and is_marked and not correct),
        "correct": CORRECT_REWARD * correct,
    }
    return {"score": sum(components.values()), "acc": float(correct), **components}


def parse_ground_truth(ground_truth: Any) -> tuple[list[int], int]:
    """Numbers and target of [numbers, target] or its JSON.

    Raises:
        ValueError: it is not of that form, or a number is not whole.
    """
    try:
        numbers, target = from_json(ground_truth)
        whole = [int(number) for number in numbers], int(target)
        if not whole[0] or [*whole[0], whole[1]] != [float(number) for number in [*numbers, target]]:
            raise ValueError("not whole numbers")
    except (TypeError, ValueError) as error:
        raise ValueError(f"ground_truth of a countdown task must be [numbers, target], got {ground_truth!r}") from error
    return whole


def parse_expression(text: str) -> Expression | None:
    """Evaluate an expression of whole numbers, `+ - * /` and parentheses, exactly.

    Returns:
        its value and numbers, or None where it is something else, divides by zero, or is longer than
        LONGEST_EXPRESSION characters.
    """
    text = " ".join(text.split())
    if len(text) > LONGEST_EXPRESSION or not _EXPRESSION.fullmatch(text):
        return None
    numbers: list[int] = []
    try:
        return Expression(_evaluate(ast.parse(text, mode="eval").body, numbers), numbers)
    except (SyntaxError, ZeroDivisionError, ValueError, RecursionError, MemoryError):
        return None


def _evaluate(node: ast.AST, numbers: list[int]) -> Fraction:
    """Value of a node; appends its numbers. Raises ValueError for what is no arithmetic."""
    if isinstance(node, ast.Constant) and type(node.value) is int:
        numbers.append(node.value)
        return Fraction(node.value)
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        return _OPERATORS[type(node.op)](_evaluate(node.left, numbers), _evaluate(node.right, numbers))
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.UAdd | ast.USub):
        value = _evaluate(node.operand, numbers)
        return -value if isinstance(node.op, ast.USub) else value
    raise ValueError(f"no arithmetic: {type(node).__name__}")


def _answer(text: str) -> tuple[str, bool]:
    """The last closed box, else the last `<answer>…</answer>`, else the whole text; True for the first two."""
    marked = boxed_contents(text)[-1:] or answer_tag_contents(text)[-1:]
    return (marked[0], True) if marked else (text, False)


def _left_side(content: str) -> str:
    """The expression of an answer in plain signs: what stands before the `=` of its first equation, else all of it."""
    for pattern, replacement in _SPELLINGS:
        content = pattern.sub(replacement, content)
    start = 0
    for equals in _EQUALS.finditer(content):
        before = content[start : equals.start()]
        expression = before[len(before.rstrip(_SIGNS)) :]
        if expression.rstrip(" \t").endswith(tuple("0123456789)")):
            return expression
        start = equals.start() + 1
    return content
