"""Scorer of GSM8K: finds the final number in a completion and compares it with the right one."""

import re
from decimal import Decimal

from maskgrpo_plugin.rewards.text.answers import answer_tag_contents, boxed_contents, cut_at_stop
from maskgrpo_plugin.rewards.text.registry import register_task

FORMAT_REWARD = 0.5
INTEGER_REWARD = 0.5
CORRECT_REWARD = 2.0

# A minus sign belongs to the number unless it follows something it could be subtracted from.
_NUMBER = re.compile(
    r"(?:(?<![\w.)\]}])-)?(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])(?:\.[0-9]+)?|[0-9]+(?:\.[0-9]+)?|\.[0-9]+)"
)
_HASHES = re.compile(r"####([^\n]*)")
_UNIT_TEXT = re.compile(r"\\(?:text|mathrm|textbf|mbox)\s*\{[^{}]*\}")
_EXPONENT = re.compile(r"\^\s*(?:\{[^{}]*\}|\\?\w+)")


@register_task(
    "gsm8k",
    keys=("score", "acc", "format", "integer", "correct"),
    components=("format", "integer", "correct"),
    data_sources=("openai/gsm8k", "gsm8k"),
)
def score_gsm8k(completion: str, ground_truth: str | int | float) -> dict[str, float]:
    """Score one completion; everything after the first stop token's text is ignored.

    Args:
        completion: text of the response.
        ground_truth: the number, or the data set's full answer, whose number follows `####`.

    Returns:
        `format` 0 or 0.5 (there is `<answer>…</answer>` or a closed `\\boxed{…}`), `integer` 0 or 0.5 (the number found
        is whole), `correct` 0 or 2, `score` their sum (0 to 3), `acc` 0 or 1.

    Raises:
        ValueError: `ground_truth` holds no number.
    """
    truth = parse_ground_truth(ground_truth)
    text = cut_at_stop(completion)
    answer = extract_answer(text)
    has_format = bool(answer_tag_contents(text) or boxed_contents(text))
    correct = answer is not None and answer == truth
    components = {
        "format": FORMAT_REWARD * has_format,
        "integer": INTEGER_REWARD * (answer is not None and answer == answer.to_integral_value()),
        "correct": CORRECT_REWARD * correct,
    }
    return {"score": sum(components.values()), "acc": float(correct), **components}


def extract_answer(completion: str) -> Decimal | None:
    """The number that a completion gives as its final answer, or None where it holds none.

    The first of these that holds a number: the last `<answer>…</answer>`, the last `\\boxed{…}`, the last `#### …`, the
    last number of the text. Dollar signs, thousands separators, units and a trailing full stop are dropped.
    """
    text = cut_at_stop(completion)
    for content in reversed(answer_tag_contents(text)):
        numbers = _boxed_numbers(content) or _numbers(content.rpartition("=")[2])[-1:]
        if numbers:
            return numbers[0]
    numbers = _boxed_numbers(text)
    if numbers:
        return numbers[0]
    for content in reversed(_HASHES.findall(text)):
        numbers = _numbers(content)
        if numbers:
            return numbers[0]
    return next(reversed(_numbers(text)), None)


def parse_ground_truth(ground_truth: str | int | float) -> Decimal:
    """The number of a ground truth: what follows the last `####` where there is one, else the whole string.

    Raises:
        ValueError: there is not exactly one number.
    """
    text = str(ground_truth).rpartition("####")[2]
    numbers = _numbers(text)
    if len(numbers) != 1:
        raise ValueError(f"ground_truth of a gsm8k task must be a number, or end with '#### number': {ground_truth!r}")
    return numbers[0]


def _boxed_numbers(text: str) -> list[Decimal]:
    """The number of the last `\\boxed{…}` that has one (at most one entry): the first after its last `=`."""
    for content in reversed(boxed_contents(text)):
        numbers = _numbers(content.rpartition("=")[2])
        if numbers:
            return numbers[:1]
    return []


def _numbers(text: str) -> list[Decimal]:
    """All numbers of a text in order, units' exponents (`m^2`, `82^\\circ`) left out."""
    text = text.replace("−", "-").replace("{,}", ",")
    for noise in ("\\$", "$", "\\,", "\\!", "\\%"):
        text = text.replace(noise, "")
    text = _EXPONENT.sub(" ", _UNIT_TEXT.sub(" ", text))
    return [Decimal(match.replace(",", "")) for match in _NUMBER.findall(text)]
