"""Scorer of MATH and its like: compares the answer in a completion's last box with the right one.

The normalisation is not verl's (`math_reward.strip_string`, `prime_math.math_normalize`): those decide equality by the
spelling that is left, and a fraction that is not in lowest terms, or a decimal for it, must be told apart here.
"""

import re
from fractions import Fraction
from math import gcd
from typing import NamedTuple

from maskgrpo_plugin.rewards.text.answers import answer_tag_contents, boxed_contents, cut_at_stop
from maskgrpo_plugin.rewards.text.equivalence import Verdict, compare_latex
from maskgrpo_plugin.rewards.text.registry import register_task

CORRECT_REWARD = 2.0
BOX_IN_TAGS_REWARD = 1.0
TAGS_REWARD = 0.75
BOX_REWARD = 0.5
TIME_LIMIT_S = 5.0
LONGEST_ANSWER = 500
LONGEST_DECIMAL_FOR_A_FRACTION = 2

_NAME = r"(?:\\?[A-Za-z]+(?:_(?:\{\w+\}|\w))?(?:\([\w,]*\))?)"
_NAMED = re.compile(rf"{_NAME}(?:=|\\in(?![a-z]))([^=]+)")
_TEXT = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mbox|operatorname)\s*\{([^{}]*)\}")
_UNIT = re.compile(
    r"(?<=[\d}])\s*(?:(?:\\[ ,;!])+\s*)?\\(?:text|textbf|mathrm|mbox)\s*\{[^{}]*\}\s*(?:\^\s*\{?\d\}?\s*)?$"
)
_SPACING = re.compile(r"(?<!\\)\\[!,;:> ]|\\(?:quad|qquad|left|right|displaystyle)(?![a-zA-Z])")
_DEGREES = re.compile(r"\^\s*(?:\{\s*\\circ\s*\}|\\circ)|\\degree|°")
_FRACTION_ARGUMENTS = re.compile(r"\\frac(?:\{([^{}]*)\}|(\w))(?:\{([^{}]*)\}|(\w))")
_SHORT_ROOT = re.compile(r"\\sqrt(\w)")
_SLASH = re.compile(r"(-?)([0-9]+)/([0-9]+)")
_INTEGER_OR_DECIMAL = re.compile(r"[-+]?(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)?(?:\.([0-9]*))?")
_FRACTION = re.compile(r"([-+]?)([0-9]*)\\frac\{(-?)([0-9]+)\}\{([0-9]+)\}")
_DOLLARS = re.compile(r"\\?\$")
_CHOICE = re.compile(r"\(([A-Z])\)")
_WORDS = re.compile(r"[A-Za-z]{3,}")


class Number(NamedTuple):
    """A number as it was written: its value, whether as a fraction, and its decimal places."""

    value: Fraction
    is_fraction: bool
    decimals: int


@register_task(
    "math",
    keys=("score", "acc", "timeout", "format", "correct"),
    components=("format", "correct"),
    data_sources=("DigitalLearningGmbH/MATH-lighteval", "HuggingFaceH4/MATH-500"),
)
def score_math(
    completion: str, ground_truth: str | int | float, *, time_limit_s: float = TIME_LIMIT_S
) -> dict[str, float]:
    """Score one completion; everything after the first stop token's text is ignored.

    Args:
        completion: text of the response.
        ground_truth: the right answer in LaTeX, with or without its box or dollar signs.
        time_limit_s: wall-clock seconds for one comparison by math-verify.

    Returns:
        `format` 1 for a box inside `<answer>…</answer>`, 0.75 for such tags alone, 0.5 for a box alone, else 0;
        `correct` 0 or 2; `score` their sum (0 to 3); `acc` 0 or 1; `timeout` 1 where math-verify took more than its
        time or memory, which counts as wrong, else 0.

    Raises:
        ValueError: `ground_truth` is empty.
        EquivalenceFailure: math-verify failed with an error of its own, so that the answer was not judged.
        RuntimeError: math-verify is needed and not installed.
    """
    truth = _unboxed(str(ground_truth))
    if not truth:
        raise ValueError(f"ground_truth of a math task must be a LaTeX answer, got {ground_truth!r}")
    text = cut_at_stop(completion)
    answer = extract_answer(text)
    verdict = Verdict.DIFFERENT if answer is None else compare_answers(truth, answer, time_limit_s=time_limit_s)
    components = {"format": _format_reward(text), "correct": CORRECT_REWARD * (verdict is Verdict.EQUAL)}
    return {
        "score": sum(components.values()),
        "acc": float(verdict is Verdict.EQUAL),
        "timeout": float(verdict is Verdict.UNDECIDED),
        **components,
    }


def extract_answer(completion: str) -> str | None:
    """The final answer of a completion in LaTeX, or None where it holds none.

    The content of the last closed box, else of the last `<answer>…</answer>`. A box that is never closed is no answer,
    and neither is a number that just stands in the text.
    """
    text = cut_at_stop(completion)
    boxes = boxed_contents(text)
    candidates = boxes[-1:] or [content for content in answer_tag_contents(text) if content.strip()][-1:]
    return candidates[0].strip() or None if candidates else None


def compare_answers(truth: str, answer: str, *, time_limit_s: float = TIME_LIMIT_S) -> Verdict:
    """Whether an answer is the right one in the form that MATH asks for.

    Spelling is free: spaces, units, degree, dollar and percent signs, `x =`, thousands separators, `\\dfrac`. Where the
    truth is a number, the answer must be written as one: as an integer or decimal of the same value, or as a fraction
    in lowest terms. A decimal of more than LONGEST_DECIMAL_FOR_A_FRACTION places is no fraction. Words are compared
    letter by letter. All else is left to math-verify, but for a decimal in place of an expression.

    Args:
        truth, answer: LaTeX. An answer longer than LONGEST_ANSWER characters is different.
        time_limit_s: wall-clock seconds for math-verify.
    """
    if len(answer) > LONGEST_ANSWER:
        return Verdict.DIFFERENT
    right, given = normalize(truth), normalize(answer)
    if not given:
        return Verdict.DIFFERENT
    if right == given:
        return Verdict.EQUAL
    number = parse_number(right)
    if number is not None:
        return Verdict.EQUAL if _same_number(number, parse_number(given.rpartition("=")[2])) else Verdict.DIFFERENT
    given_number = parse_number(given)
    if given_number is not None and not given_number.is_fraction and given_number.decimals:
        return Verdict.DIFFERENT
    if "\\text" in truth or _WORDS.fullmatch(right):
        return Verdict.EQUAL if right.casefold() == given.casefold() else Verdict.DIFFERENT
    return compare_latex(_DOLLARS.sub("", truth), _DOLLARS.sub("", answer), time_limit_s=time_limit_s)


def normalize(latex: str) -> str:
    """One spelling for many: no spaces, units or signs of currency, `\\frac{a}{b}` for all short forms of it."""
    text = latex.strip().replace("\n", " ").replace("{,}", ",").replace("−", "-")
    text = re.sub(r"\\[dtc]frac", r"\\frac", text)
    text = _UNIT.sub("", text)
    text = _TEXT.sub(r"\1", text)
    text = _DEGREES.sub("", _SPACING.sub("", text))
    text = re.sub(r"\\?[$%]|\s|\\[()\[\]]", "", text)
    text = text.rstrip(".")
    named = _NAMED.fullmatch(text)
    text = named[1] if named else text
    text = _FRACTION_ARGUMENTS.sub(lambda m: f"\\frac{{{m[1] or m[2] or ''}}}{{{m[3] or m[4] or ''}}}", text)
    text = _SHORT_ROOT.sub(r"\\sqrt{\1}", text)
    choice = _CHOICE.fullmatch(text)
    text = choice[1] if choice else text
    slash = _SLASH.fullmatch(text)
    return f"{slash[1]}\\frac{{{slash[2]}}}{{{slash[3]}}}" if slash else text


def parse_number(text: str) -> Number | None:
    """The number that a normalized text is, or None: integer, decimal, or a fraction (mixed too) in lowest terms."""
    match = _FRACTION.fullmatch(text)
    if match:
        sign, whole, inner_sign, numerator, denominator = match.groups()
        top, bottom = int(numerator), int(denominator)
        if bottom < 2 or gcd(top, bottom) != 1 or (whole and inner_sign):
            return None
        value = int(whole or 0) + Fraction(top, bottom)
        return Number(-value if (sign == "-") != bool(inner_sign) else value, True, 0)
    match = _INTEGER_OR_DECIMAL.fullmatch(text)
    if match is None or not any(character.isdigit() for character in text):
        return None
    return Number(Fraction(text.replace(",", "")), False, len(match[1] or ""))


def _same_number(truth: Number, answer: Number | None) -> bool:
    if answer is None or answer.value != truth.value:
        return False
    return not truth.is_fraction or answer.decimals <= LONGEST_DECIMAL_FOR_A_FRACTION


def _format_reward(text: str) -> float:
    contents = answer_tag_contents(text)
    if any(boxed_contents(content) for content in contents):
        return BOX_IN_TAGS_REWARD
    if contents:
        return TAGS_REWARD
    return BOX_REWARD if boxed_contents(text) else 0.0


def _unboxed(truth: str) -> str:
    boxes = boxed_contents(truth)
    text = (boxes[-1] if boxes else truth).strip()
    return text[1:-1].strip() if len(text) > 1 and text[0] == text[-1] == "$" else text
