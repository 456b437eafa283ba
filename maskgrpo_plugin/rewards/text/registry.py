"""The tasks that a text can be scored in, and the score of one completion.

A task is one file: a scorer under the decorator `register_task`, in `scorers/` or in a module of the user's
(`maskgrpo_plugin.extensions`).
"""

import functools
import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from maskgrpo_plugin.errors import OptionError
from maskgrpo_plugin.registry import Registry

__all__ = [
    "TASKS",
    "AnyScorer",
    "Scorer",
    "Settings",
    "Task",
    "check_weights",
    "get_task",
    "register_task",
    "score",
    "task_of",
    "tasks",
]

Scorer = Callable[..., Mapping[str, float]]
Settings = Callable[[Mapping[str, Any]], Mapping[str, Any]]
AnyScorer = TypeVar("AnyScorer", bound=Scorer)


@dataclass(frozen=True)
class Task:
    """A task that a text can be scored in.

    Attributes:
        scorer: called as scorer(completion, ground_truth, **options); gives one number for each of `keys`.
        keys: names of the scorer's numbers, the same for every sample; `score` is among them.
        extra: options that a sample's `extra_info` gives.
        components: the keys whose sum is `score`; none where the score has no parts.
        data_sources: data sets whose rows belong to the task where their `extra_info` names none.
        settings: options that a run's config gives; called with the section `reward`, it raises OptionError with keys
            relative to that section. None where there are no such options.

    Raises:
        ValueError: `score` is not among the keys, or a component is not.
    """

    scorer: Scorer
    keys: tuple[str, ...]
    extra: tuple[str, ...] = ()
    components: tuple[str, ...] = ()
    data_sources: tuple[str, ...] = ()
    settings: Settings | None = None

    def __post_init__(self) -> None:
        if "score" not in self.keys:
            raise ValueError(f"a task must give 'score', its keys are {self.keys}")
        if not set(self.components) <= set(self.keys):
            raise ValueError(f"a task has the components {self.components}, its keys are {self.keys}")

    @functools.cached_property
    def options(self) -> frozenset[str]:
        """Names of the scorer's keyword-only arguments."""
        parameters = inspect.signature(self.scorer).parameters.values()
        return frozenset(parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY)


TASKS: Registry[Task] = Registry("task")


def register_task(
    name: str,
    *,
    keys: tuple[str, ...],
    extra: tuple[str, ...] = (),
    components: tuple[str, ...] = (),
    data_sources: tuple[str, ...] = (),
    settings: Settings | None = None,
) -> Callable[[AnyScorer], AnyScorer]:
    """Decorator of a scorer: adds a task, so that a data set's `extra_info.task` may name it.

    ```python
    @register_task("length", keys=("score", "acc"))
    def score_length(completion: str, ground_truth: str) -> dict[str, float]:
        right = float(len(completion) == int(ground_truth))
        return {"score": right, "acc": right}
    ```

    Args:
        name: what data sets call the task.
        keys, extra, components, data_sources, settings: see `Task`.

    Raises:
        ValueError: the name is taken by another task, or what `Task` refuses.
    """

    def add(scorer: AnyScorer) -> AnyScorer:
        TASKS.add(name, Task(scorer, keys, extra, components, data_sources, settings))
        return scorer

    return add


def tasks() -> tuple[str, ...]:
    """Names of the tasks that `score` knows, sorted."""
    return TASKS.names()


def get_task(name: str) -> Task:
    """The task of that name.

    Raises:
        OptionError: there is none; the message lists those there are.
    """
    return TASKS[name]


def task_of(data_source: str) -> str | None:
    """Name of the task that a data set's rows belong to where they name none; None for an unknown data set."""
    return next((name for name, task in TASKS.items() if data_source in task.data_sources), None)


def check_weights(task: str, weights: Mapping[str, float]) -> None:
    """Check factors of a task's components.

    Raises:
        OptionError: unknown task, or, under the key `task.component`, a name that is no component of the task or a
            factor that is no finite number.
    """
    known = get_task(task).components
    for name, factor in weights.items():
        if name not in known:
            raise OptionError(
                f"{task}.{name}",
                factor,
                f"the task {task!r} has no reward component {name!r} to weight; it has {', '.join(known) or 'none'}",
            )
        if isinstance(factor, bool) or not isinstance(factor, int | float) or not math.isfinite(factor):
            raise OptionError(f"{task}.{name}", factor, "allowed: finite numbers")


def score(
    task: str, completion: str, ground_truth: Any, *, weights: Mapping[str, float] | None = None, **extra: Any
) -> dict[str, float]:
    """Score one completion.

    Args:
        task: name of a task, see `tasks()`.
        completion: text of the response; scorers drop what follows a stop token's text.
        ground_truth: what the task compares with; lists may come as JSON. gsm8k: the number or the full answer; math:
            LaTeX; countdown: [numbers, target]; sudoku: 16 digits; code: test statements; arithmetic: the integer;
            short_answer: the answer, or a list of accepted ones.
        weights: factors of the reward's components by name, 1 where not given. `score` becomes their weighted sum, and
            each component is returned times its factor; `acc` stays.
        extra: the scorer's options (sudoku: `puzzle`); names that it does not take are left out.

    Returns:
        at least `score` (the reward) and `acc` (for evaluation, 0.0 to 1.0); the other keys are the reward's
        components and counts.

    Raises:
        ValueError: unknown task or component, or a ground truth that the task cannot read.
        RuntimeError: what the task runs on is not there (math: math-verify; code: the sandbox).
    """
    found = get_task(task)
    check_weights(task, weights or {})
    options = {name: value for name, value in extra.items() if name in found.options}
    result = dict(found.scorer(completion, ground_truth, **options))
    if weights:
        for name, factor in weights.items():
            result[name] *= factor
        result["score"] = sum(result[name] for name in found.components)
    return result
