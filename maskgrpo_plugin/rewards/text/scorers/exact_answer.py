"""Scorer of short answers, such as those to questions about images: equal to an accepted one once both are normalised.

The normalisation is in the manner of the VQA evaluation (arXiv 1505.00468): case, articles and punctuation are of no
account, and numbers up to ten may be words. Its agreement among ten annotators is not computed; a list of answers is a
list of right ones.
"""

import re
import unicodedata
from typing import Any

from maskgrpo_plugin.rewards.text.answers import answer_tag_contents, cut_at_stop, from_json
from maskgrpo_plugin.rewards.text.registry import register_task

ARTICLES = frozenset(("a", "an", "the"))
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")

_DIGITS = {word: str(number) for number, word in enumerate(NUMBERS)}
_THOUSANDS = re.compile(r"(?<=[0-9]),(?=[0-9]{3}(?![0-9]))")
_KEPT = re.compile(r"(?<=[0-9])\.(?=[0-9])|(?<![^\s(])[-−](?=\.?[0-9])")  # decimal points, and signs of numbers
_APOSTROPHES = "'’‘`´"


@register_task("short_answer", keys=("score", "acc"))
def score_short_answer(completion: str, ground_truth: str | list[str]) -> dict[str, float]:
    """Score a completion that should be the answer and nothing else.

    Args:
        completion: text of the response; what follows the first stop text is dropped, and where it has
            `<answer>…</answer>` the last of them is the answer.
        ground_truth: the right answer, or a list of right ones, which may come as JSON.

    Returns:
        `score` and `acc`, equal, 0.0 or 1.0.

    Raises:
        ValueError: `ground_truth` is neither, or holds an answer of punctuation alone.
    """
    accepted = {normalise(answer) for answer in _answers(ground_truth)}
    if "" in accepted or not accepted:
        raise ValueError(f"ground_truth of a short_answer task must be an answer, or a list of some: {ground_truth!r}")
    text = cut_at_stop(completion)
    tagged = answer_tag_contents(text)
    right = float(normalise(tagged[-1] if tagged else text) in accepted)
    return {"score": right, "acc": right}


def normalise(answer: str) -> str:
    """An answer as it is compared: `The Two dogs.` is `2 dogs`, `1,000.5%` is `1000.5`, `A` stays `a`.

    Lower case; no punctuation and no symbols but decimal points and signs of numbers; no articles unless there is
    nothing else; numbers up to ten in digits; one space between words.
    """
    text = _THOUSANDS.sub("", unicodedata.normalize("NFKC", answer).lower())
    kept = {match.start() for match in _KEPT.finditer(text)}
    words = "".join(_sign(sign, number in kept) for number, sign in enumerate(text)).split()
    words = [word for word in words if word not in ARTICLES] or words
    return " ".join(_DIGITS.get(word, word) for word in words)


def _sign(sign: str, is_kept: bool) -> str:
    if is_kept:
        return "-" if sign == "−" else sign
    if sign in _APOSTROPHES:
        return ""
    return " " if unicodedata.category(sign)[0] in "PS" else sign


def _answers(ground_truth: Any) -> list[str]:
    value = from_json(ground_truth)
    if not isinstance(value, list):
        value = [ground_truth]
    if not all(isinstance(each, str | int | float) for each in value):
        raise ValueError(f"ground_truth of a short_answer task must be an answer, or a list of some: {ground_truth!r}")
    return [str(each) for each in value]
