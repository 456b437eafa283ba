"""Scores of generations by the reward managers that training uses."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from verl import DataProto
from verl.trainer.ppo.reward import load_reward_manager

from maskgrpo_plugin.errors import OptionError
from maskgrpo_plugin.evaluation.problems import Problem
from maskgrpo_plugin.rewards.images.config import IMAGE_REWARD_MANAGER, ImageRewardConfig, check_scorer
from maskgrpo_plugin.rewards.images.manager import IMAGE_FIELD
from maskgrpo_plugin.rewards.text.config import TEXT_REWARD_MANAGER, TextRewardConfig

FAILURES = {"reward_timed_out": "timed_out", "reward_sandbox_lost": "sandbox_lost"}
_NOT_COMPONENTS = ("score", "acc", "reward_failed", *FAILURES)


def reward_config(overrides: list[str], *, images: bool) -> DictConfig:
    """verl's config as far as reward managers read it.

    Args:
        overrides: `reward.<key>=<value>` as on a run's command line.
        images: whether images are scored, by `reward.image.scorers`.

    Raises:
        OptionError: another section, or a value that cannot work.
    """
    for override in overrides:
        if not override.startswith("reward.") or "=" not in override:
            raise OptionError("--set", override, "allowed: reward.<key>=<value>")
    base = {
        "reward": {
            "reward_manager": {"source": "register", "name": IMAGE_REWARD_MANAGER if images else TEXT_REWARD_MANAGER},
            "custom_reward_function": {"path": None, "name": "compute_score"},
        }
    }
    config = OmegaConf.merge(base, OmegaConf.from_dotlist(overrides))
    assert isinstance(config, DictConfig)
    if images:
        for scorer in ImageRewardConfig.from_config(config.reward.get("image")).scorers:
            check_scorer(scorer)
        return config
    TextRewardConfig.from_config(config)
    return config


class Scorer:
    """Scores generations.

    Args:
        config: see `reward_config`.
        tokenizer: the checkpoint's.
    """

    def __init__(self, config: DictConfig, tokenizer: Any):
        self.manager: Any = load_reward_manager(config, tokenizer)

    async def score(self, problem: Problem, token_ids: list[int], image: np.ndarray | None) -> dict[str, Any]:
        """Score one generation; a scorer that fails is told, not raised.

        Args:
            problem: what was asked.
            token_ids: the response, an answer's prefix included, up to the end of a text.
            image: (H, W, 3) uint8 where one was made.

        Returns:
            `score` (None where it failed), `acc` (None where the task has no right answer), `reward` (the components;
            of an image those whose own scorer did not fail), and `failure`: None, `timed_out`, `sandbox_lost` or
            `error`.

        Raises:
            ValueError: nobody can score the problem's task.
        """
        result = await self.manager.run_single(rollout_of(problem, token_ids, image))
        info = result["reward_extra_info"]
        kinds = [kind for name, kind in FAILURES.items() if info.get(name)]
        failure = [*kinds, "error"][0] if info["reward_failed"] else None
        return {
            "score": result["reward_score"] if failure is None else None,
            "acc": info.get("acc"),
            "reward": _components(info, failure),
            "failure": failure,
        }


def _components(info: Mapping[str, float], failure: str | None) -> dict[str, float]:
    scorers = [name.removesuffix("_failed") for name in info if name.endswith("_failed") and name != "reward_failed"]
    if scorers:
        return {name: info[name] for name in scorers if not info[f"{name}_failed"]}
    return {} if failure else {name: value for name, value in info.items() if name not in _NOT_COMPONENTS}


def rollout_of(problem: Problem, token_ids: list[int], image: np.ndarray | None) -> DataProto:
    """verl's batch of one rollout, as the agent loop would have made it."""
    rows: Mapping[str, Any] = {
        "data_source": problem.data_source,
        "reward_model": problem.values["reward_model"],
        "extra_info": problem.extra_info,
        "raw_prompt": problem.messages,
        "tool_extra_fields": {} if image is None else {IMAGE_FIELD: image},
    }
    columns = {name: np.empty(1, dtype=object) for name in rows}
    for name, value in rows.items():
        columns[name][0] = value
    responses = torch.tensor([token_ids], dtype=torch.long)
    tensors = {"responses": responses, "attention_mask": torch.ones_like(responses)}
    return DataProto.from_dict(tensors=tensors, non_tensors=columns)
