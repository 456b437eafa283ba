"""Check that the rows of a run's data can be scored: a task that is known, and a ground truth that it can read."""

import ast
import functools
import inspect
from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

from maskgrpo_plugin.data.checks import check_python_object
from maskgrpo_plugin.data.row_files import Row, data_files
from maskgrpo_plugin.errors import OptionError, first_line
from maskgrpo_plugin.rewards.images.config import IMAGE_REWARD_MANAGER
from maskgrpo_plugin.rewards.text.config import SECTION, TEXT_REWARD_MANAGER, TextRewardConfig
from maskgrpo_plugin.rewards.text.registry import TASKS, score, task_of

OWN_SCORERS = "maskgrpo_plugin.rewards.text.scorers."
FUNCTION = f"{SECTION}.custom_reward_function"


def check_text_rows(config: DictConfig) -> None:
    """Check the scorer of a run's own, or that each row of a text has a task and a ground truth; nothing where another
    reward manager than the plugin's is named.

    Ground truths are read by scoring an empty text, in the plugin's own tasks that run nothing.

    Raises:
        OptionError: a scorer that is not there, a column that is missing, or the first row that cannot be scored.
    """
    check_python_object(config, FUNCTION)
    manager = config.reward.reward_manager.name
    if manager not in (TEXT_REWARD_MANAGER, IMAGE_REWARD_MANAGER):
        return
    is_custom = bool(OmegaConf.select(config, f"{FUNCTION}.path"))
    weights = TextRewardConfig.from_config(config).weights
    for file in data_files(config):
        texts = [(n, row) for n, row in file.numbered() if manager == TEXT_REWARD_MANAGER or not _asks_for_image(row)]
        if not texts:
            continue
        for column in ("data_source", "reward_model"):
            if column not in file.content.columns:
                columns = ", ".join(file.content.columns)
                raise OptionError(file.key, file.name, f"the file has no column {column}; it has {columns}")
        for number, row in texts:
            problem = row_problem(row, weights, is_custom=is_custom)
            if problem:
                raise file.refuse(number, problem)


def _asks_for_image(row: Row) -> bool:
    return (row.get("extra_info") or {}).get("modality") == "t2i"


def reward_problem(row: Mapping[str, Any], *, needs_truth: bool) -> str | None:
    """What is missing in a data row for any scorer, or None; of an image the scorers may do without a ground truth."""
    if row.get("data_source") is None:
        return "its data_source is null"
    reward = row.get("reward_model")
    if not isinstance(reward, Mapping) or (needs_truth and "ground_truth" not in reward):
        return f"its reward_model is {reward!r}; allowed: a struct with ground_truth"
    return None


def row_problem(row: Row, weights: Mapping[str, Mapping[str, float]], *, is_custom: bool = False) -> str | None:
    """Why a data row cannot be scored, or None.

    Args:
        row: of a data set in verl's format.
        weights: factors of reward components by task.
        is_custom: whether the run has a scorer of its own, which may do without task and ground truth.
    """
    problem = reward_problem(row, needs_truth=True)
    if problem or is_custom:
        return problem
    source, reward = row["data_source"], row["reward_model"]
    info = row.get("extra_info") or {}
    named = info.get("task")
    if named is not None and named not in TASKS:
        return f"its extra_info.task is {named!r}; available: {', '.join(TASKS.names())}"
    task = named or task_of(str(source))
    if task is None and not _verl_scores(str(source)):
        return (
            f"nobody scores its data_source {source!r}: name one of {', '.join(TASKS.names())} in extra_info.task, "
            f"or set {FUNCTION}.path"
        )
    truth = reward["ground_truth"]
    if truth is None:
        return "its reward_model.ground_truth is null"
    return None if task is None else _truth_problem(task, truth, info, weights.get(task))


def _truth_problem(task: str, truth: Any, info: Mapping[str, Any], weights: Mapping[str, float] | None) -> str | None:
    found = TASKS[task]
    if found.settings is not None or not getattr(found.scorer, "__module__", "").startswith(OWN_SCORERS):
        return None
    extra = {name: info[name] for name in found.extra if info.get(name) is not None}
    try:
        score(task, "", truth, weights=weights, **extra)
    except (ValueError, TypeError, AttributeError) as error:
        return first_line(error)
    except RuntimeError:  # what the task runs on is not here, which is checked elsewhere
        return None
    return None


def _verl_scores(source: str) -> bool:
    names, prefixes = _verl_data_sources()
    return source in names or source.startswith(prefixes)


@functools.cache
def _verl_data_sources() -> tuple[frozenset[str], tuple[str, ...]]:
    """The data sources that verl's own scorers know, and beginnings of further ones.

    They are read from the source of its function, an if-chain, since calling it would score.
    """
    from verl.utils.reward_score import default_compute_score  # verl's import needs this module

    names: set[str] = set()
    prefixes: list[str] = []
    for node in ast.walk(ast.parse(inspect.getsource(default_compute_score))):
        if isinstance(node, ast.Compare) and isinstance(node.left, ast.Name) and node.left.id == "data_source":
            names.update(str(part.value) for part in ast.walk(node) if isinstance(part, ast.Constant))
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "startswith":
            prefixes.extend(str(argument.value) for argument in node.args if isinstance(argument, ast.Constant))
    return frozenset(names), tuple(prefixes)
