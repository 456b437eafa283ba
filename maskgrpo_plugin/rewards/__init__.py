"""Rewards of completions: a registry of tasks, each a pure scorer and the names of the numbers it gives."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from maskgrpo_plugin.rewards.scorers.arithmetic import score_arithmetic
from maskgrpo_plugin.rewards.scorers.gsm8k import score_gsm8k

Scorer = Callable[..., Mapping[str, float]]


@dataclass(frozen=True)
class Task:
    """A task that can be scored.

    Args:
        scorer: called as scorer(completion, ground_truth, **extra); returns one number for each of `keys`.
        keys: what the scorer returns, the same for every sample; `score` is among them.
        extra: names of the keyword arguments that the scorer takes from a sample's `extra_info`.
    """

    scorer: Scorer
    keys: tuple[str, ...]
    extra: tuple[str, ...] = ()


_TASKS: dict[str, Task] = {
    "gsm8k": Task(score_gsm8k, keys=("score", "acc", "format", "integer", "correct")),
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
        ValueError: the name is taken by another task, or `score` is not among its keys.
    """
    if "score" not in task.keys:
        raise ValueError(f"task {name!r} must give 'score', its keys are {task.keys}")
    if _TASKS.get(name, task) != task:
        raise ValueError(f"the task {name!r} is already registered")
    _TASKS[name] = task


def score(task: str, completion: str, ground_truth: Any, **extra: Any) -> dict[str, float]:
    """Score one completion.

    Args:
        task: name of a task, see `tasks()`.
        completion: text of the response; scorers drop what follows a stop token's text.
        ground_truth: what the task compares with (gsm8k: the number or the full answer; arithmetic: the integer).
        extra: what else is known of the sample; only what the task takes is passed on.

    Returns:
        at least `score` (the reward) and `acc` (0.0 or 1.0); the other keys are the reward's components.

    Raises:
        ValueError: unknown task, or a ground truth that the task cannot read.
    """
    found = get_task(task)
    return dict(found.scorer(completion, ground_truth, **{k: v for k, v in extra.items() if k in found.extra}))


__all__ = ["Task", "get_task", "register_task", "score", "tasks"]
