"""Scorer of sums such as `12+34=`: the completion is the integer, and nothing else."""

import re

from maskgrpo_plugin.rewards.text.answers import cut_at_stop
from maskgrpo_plugin.rewards.text.registry import register_task

_INTEGER = re.compile(r"-?[0-9]+")


@register_task("arithmetic", keys=("score", "acc"), data_sources=("arithmetic",))
def score_arithmetic(completion: str, ground_truth: str | int) -> dict[str, float]:
    """Score a completion that should be one integer in digits.

    Args:
        completion: text of the response; white space and all after the first stop text are dropped.
        ground_truth: the integer, as a string of digits or a number.

    Returns:
        `score` and `acc`, equal, 0.0 or 1.0.

    Raises:
        ValueError: `ground_truth` is not an integer.
    """
    truth = str(ground_truth).strip()
    if not _INTEGER.fullmatch(truth):
        raise ValueError(f"ground_truth of an arithmetic task must be an integer in digits, got {ground_truth!r}")
    answer = "".join(cut_at_stop(completion).split())
    correct = float(answer == truth)
    return {"score": correct, "acc": correct}
