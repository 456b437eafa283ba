"""Rewards of completions: a registry of tasks, each a pure scorer and the names of the numbers it gives."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from maskgrpo_plugin.rewards.text.scorers import code as _code
from maskgrpo_plugin.rewards.text.scorers.arithmetic import score_arithmetic
from maskgrpo_plugin.rewards.text.scorers.competition_math import score_math
from maskgrpo_plugin.rewards.text.scorers.countdown import score_countdown
from maskgrpo_plugin.rewards.text.scorers.gsm8k import score_gsm8k
from maskgrpo_plugin.rewards.text.scorers.sudoku import score_sudoku

Scorer = Callable[..., Mapping[str, float]]


@dataclass(frozen=True)
class Task:
    """A task that can be scored.

    Args:
        scorer: called as scorer(completion, ground_truth, **extra); returns one number for each of `keys`.
        keys: what the scorer returns, the same for every sample; `score` is among them.
        extra: names of the keyword arguments that the scorer takes from a sample's `extra_info`.
        components: the keys whose sum is `score`; none where the score has no parts.
    """

    scorer: Scorer
    keys: tuple[str, ...]
    extra: tuple[str, ...] = ()
    components: tuple[str, ...] = ()


_TASKS: dict[str, Task] = {
    "gsm8k": Task(
        score_gsm8k,
        keys=("score", "acc", "format", "integer", "correct"),
        components=("format", "integer", "correct"),
    ),
    "math": Task(
        score_math,
        keys=("score", "acc", "timeout", "format", "correct"),
        components=("format", "correct"),
    ),
    "countdown": Task(score_countdown, keys=("score", "acc", "format", "correct"), components=("format", "correct")),
    "sudoku": Task(score_sudoku, keys=("score", "acc", "correct"), extra=("puzzle",), components=("correct",)),
    "code": Task(
        _code.score_code,
        keys=("score", "acc", "pass_rate", "format", "correct", *_code.COUNTS),
        extra=("preamble", "run"),
        components=("format", "correct"),
    ),
    "arithmetic": Task(score_arithmetic, keys=("score", "acc")),
}


def tasks() -> tuple[str, ...]:
    """Names of the tasks that `score` knows, sorted."""
    return tuple(sorted(_TASKS))


def get_task(name: str) -> Task:
    """The task of that name.

    Raises:
        ValueError: there is none; the message lists those there are.
    """
    if name not in _TASKS:
        raise ValueError(f"unknown task {name!r}; available: {', '.join(tasks())}")
    return _TASKS[name]


def register_task(name: str, task: Task) -> None:
    """Add a task, so that a data set's `extra_info.task` may name it.

    Raises:
        ValueError: the name is taken by another task, `score` is not among its keys, or a component is not.
    """
    if "score" not in task.keys:
        raise ValueError(f"task {name!r} must give 'score', its keys are {task.keys}")
    if not set(task.components) <= set(task.keys):
        raise ValueError(f"task {name!r} has the components {task.components}, its keys are {task.keys}")
    if _TASKS.get(name, task) != task:
        raise ValueError(f"the task {name!r} is already registered")
    _TASKS[name] = task


def check_weights(task: str, weights: Mapping[str, float]) -> None:
    """Check factors of a task's components.

    Raises:
        ValueError: unknown task, a name that is no component of it (the message lists them), or no finite number.
    """
    known = get_task(task).components
    for name, factor in weights.items():
        if name not in known:
            raise ValueError(
                f"the task {task!r} has no reward component {name!r} to weight; it has {', '.join(known) or 'none'}"
            )
        if isinstance(factor, bool) or not isinstance(factor, int | float) or not math.isfinite(factor):
            raise ValueError(f"the weight of {task}.{name} must be a finite number, got {factor!r}")


def score(
    task: str, completion: str, ground_truth: Any, *, weights: Mapping[str, float] | None = None, **extra: Any
) -> dict[str, float]:
    """Score one completion.

    Args:
        task: name of a task, see `tasks()`.
        completion: text of the response; scorers drop what follows a stop token's text.
        ground_truth: what the task compares with; lists may come as JSON. gsm8k: the number or the full answer; math:
            LaTeX; countdown: [numbers, target]; sudoku: 16 digits; code: test statements; arithmetic: the integer.
        weights: factors of the reward's components by name, 1 where not given. `score` becomes their weighted sum, and
            each component is returned times its factor; `acc` stays.
        extra: what else is known of the sample (sudoku: `puzzle`); only what the task takes is passed on.

    Returns:
        at least `score` (the reward) and `acc` (for evaluation, 0.0 to 1.0); the other keys are the reward's
        components and counts.

    Raises:
        ValueError: unknown task or component, or a ground truth that the task cannot read.
        RuntimeError: what the task runs on is not there (math: math-verify; code: the sandbox).
    """
    found = get_task(task)
    check_weights(task, weights or {})
    result = dict(found.scorer(completion, ground_truth, **{k: v for k, v in extra.items() if k in found.extra}))
    if weights:
        for name, factor in weights.items():
            result[name] *= factor
        result["score"] = sum(result[name] for name in found.components)
    return result


__all__ = ["Task", "check_weights", "get_task", "register_task", "score", "tasks"]
