"""The verl reward manager `maskgrpo_text`: decodes a response up to its first stop token and scores the text."""

import functools
import inspect
import logging
import math
from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf
from verl import DataProto
from verl.experimental.reward_loop.reward_manager import register as register_reward_manager
from verl.experimental.reward_loop.reward_manager.base import RewardManagerBase
from verl.experimental.reward_loop.reward_manager.registry import REWARD_MANAGER
from verl.utils.reward_score import default_compute_score

from maskgrpo_plugin.models.families import load_family
from maskgrpo_plugin.models.special_tokens import answer_length, stop_token_ids
from maskgrpo_plugin.registry import Registered
from maskgrpo_plugin.rewards.failures import SandboxLost
from maskgrpo_plugin.rewards.text.config import TEXT_REWARD_MANAGER, TextRewardConfig
from maskgrpo_plugin.rewards.text.deadline import DeadlineThreads, within
from maskgrpo_plugin.rewards.text.registry import get_task, score, task_of, tasks

logger = logging.getLogger(__name__)


@register_reward_manager(TEXT_REWARD_MANAGER)
class TextRewardManager(RewardManagerBase):
    """Scores text responses, one at a time.

    The scorer is the user's `reward.custom_reward_function` where one is set; else the plugin's for the task named by
    the sample's `extra_info.task` or its data source; else verl's own for the data source.

    A scorer that raises, hangs for longer than `reward.timeout_s`, loses its sandbox, or whose score is not finite,
    costs the sample its reward and nothing more: score 0, `reward_failed` 1, the cause in the log and, for two of
    them, in `reward_timed_out` or `reward_sandbox_lost`. A task that nobody can score is a mistake in the data set and
    is raised.

    Args:
        config: verl's whole configuration.
        tokenizer: the rollout's tokenizer; its stop tokens, and those of the model's family, end a response.
        compute_score: as verl gives it, its default or the user's, plain or async.
        reward_router_address, reward_model_tokenizer: passed on to a user's function where verl runs a reward model.

    Raises:
        OptionError: a key of `reward` that cannot work, see `TextRewardConfig`.
    """

    def __init__(
        self,
        config: Any,
        tokenizer: Any,
        compute_score: Any = None,
        reward_router_address: str | None = None,
        reward_model_tokenizer: Any = None,
    ):
        super().__init__(config, tokenizer, compute_score)
        self.compute_score = compute_score or default_compute_score
        self.is_custom = _innermost(self.compute_score) is not default_compute_score
        self.router = (
            {"reward_router_address": reward_router_address, "reward_model_tokenizer": reward_model_tokenizer}
            if reward_router_address is not None
            else {}
        )
        self.stop_token_ids = frozenset(_stop_token_ids(config, tokenizer))
        self.settings = TextRewardConfig.from_config(config)
        self.threads = DeadlineThreads(self.settings.timeout_s)
        self._keys_seen: dict[str, tuple[str, ...]] = {}

    async def run_single(self, data: DataProto) -> dict[str, Any]:
        """Score the last sequence of `data`.

        Args:
            data: verl's batch of one rollout: `responses` (B, L), `attention_mask` (B, P + L), and per row
                `data_source`, `reward_model` with `ground_truth`, `extra_info`.

        Returns:
            `reward_score`, a finite float, and `reward_extra_info`, floats by name: the scorer's numbers, `acc` and
            `reward_failed`, `reward_timed_out`, `reward_sandbox_lost` (0 or 1), the same names for every sample of a
            task.

        Raises:
            ValueError: neither the plugin nor verl has a scorer for the sample's task.
        """
        item = data[-1]
        rows = item.non_tensor_batch
        data_source = str(rows["data_source"])
        extra_info = dict(rows.get("extra_info") or {})
        extra_info.update(rows.get("tool_extra_fields") or {})
        ground_truth = rows["reward_model"]["ground_truth"]
        task = None if self.is_custom else self._task(data_source, extra_info)

        try:
            completion = self.decode(item.batch["responses"], item.batch["attention_mask"])
            if task is not None:
                scorer = functools.partial(score, task, completion, ground_truth, **self._options(task, extra_info))
                result = await self.threads.call(scorer)
            else:
                extra_info["num_turns"] = rows.get("__num_turns__")
                extra_info["rollout_reward_scores"] = rows.get("reward_scores", {})
                result = await self._call_compute_score(data_source, completion, ground_truth, extra_info)
            numbers = _numbers(result)
            if not math.isfinite(numbers["score"]):
                raise ValueError(f"the score is {numbers['score']}")
        except NotImplementedError as error:
            if self.is_custom or task is not None:
                return self._failed(error, task, data_source, extra_info)
            raise ValueError(
                f"no reward for data_source {data_source!r}: name one of {', '.join(tasks())} in the "
                "data set's extra_info.task, or set reward.custom_reward_function.path"
            ) from error
        except Exception as error:
            return self._failed(error, task, data_source, extra_info)

        info = {"acc": numbers["score"], **numbers, **_outcome(None)}
        self._keys_seen[data_source] = tuple(info)
        return {"reward_score": numbers["score"], "reward_extra_info": info}

    def decode(self, responses: Any, attention_mask: Any) -> str:
        """Text of a response (L,) up to its first stop token or padding; attention_mask is (P + L,)."""
        length = responses.shape[-1]
        ids = responses[: int(attention_mask[-length:].sum())].tolist()
        return self.tokenizer.decode(ids[: answer_length(ids, self.stop_token_ids)], skip_special_tokens=True)

    def _task(self, data_source: str, extra_info: Mapping[str, Any]) -> str | None:
        """Name of the plugin's task for a sample, or None where verl's own scorer is to be asked."""
        named = extra_info.get("task")
        if named is not None:
            get_task(named)
            return named
        return task_of(data_source)

    def _options(self, task: str, extra_info: Mapping[str, Any]) -> dict[str, Any]:
        """Keyword arguments of `score` besides completion and ground truth."""
        of_sample = {name: extra_info[name] for name in get_task(task).extra if extra_info.get(name) is not None}
        return {"weights": self.settings.weights.get(task), **of_sample, **self.settings.settings.get(task, {})}

    async def _call_compute_score(self, data_source: str, completion: str, ground_truth: Any, extra_info: dict) -> Any:
        arguments = {
            "data_source": data_source,
            "solution_str": completion,
            "ground_truth": ground_truth,
            "extra_info": extra_info,
            **self.router,
        }
        if inspect.iscoroutinefunction(self.compute_score):
            return await within(self.compute_score(**arguments), self.threads.timeout_s)
        result = await self.threads.call(functools.partial(self.compute_score, **arguments))
        return await within(result, self.threads.timeout_s) if inspect.isawaitable(result) else result

    def _failed(
        self, error: Exception, task: str | None, data_source: str, extra_info: Mapping[str, Any]
    ) -> dict[str, Any]:
        """What a sample gets whose scorer failed; to be called while the exception is handled."""
        logger.exception(
            "reward failed and is 0: data_source=%s task=%s index=%s", data_source, task, extra_info.get("index")
        )
        keys = get_task(task).keys if task is not None else self._keys_seen.get(data_source, ("score",))
        return {
            "reward_score": 0.0,
            "reward_extra_info": {"acc": 0.0, **dict.fromkeys(keys, 0.0), **_outcome(error)},
        }


def _outcome(error: Exception | None) -> dict[str, float]:
    """The counters of failures for one sample; `error` is what its scorer failed with, None where it did not."""
    return {
        "reward_failed": float(error is not None),
        "reward_timed_out": float(isinstance(error, TimeoutError)),
        "reward_sandbox_lost": float(isinstance(error, SandboxLost)),
    }


def _stop_token_ids(config: Any, tokenizer: Any) -> tuple[int, ...]:
    """Ids that end a response: the family's, as in sampling and training; the tokenizer's where no model is named."""
    model = OmegaConf.select(config, "actor_rollout_ref.model") if isinstance(config, DictConfig) else None
    if model is None or model.get("model_type") != "masked_diffusion":
        return stop_token_ids(tokenizer)
    return load_family(model, tokenizer).stop_token_ids


def _innermost(function: Any) -> Any:
    """The function under any number of functools.partial (verl wraps its own and the user's)."""
    while isinstance(function, functools.partial):
        function = function.func
    return function


def _numbers(result: Any) -> dict[str, float]:
    """The numbers of a scorer's result, a number or a dict with `score`; entries that are no numbers are left out."""
    if not isinstance(result, Mapping):
        return {"score": float(result)}
    if "score" not in result:
        raise KeyError(f"a reward function must return a number or a dict with 'score', got the keys {sorted(result)}")
    numbers = {"score": float(result["score"])}
    for key, value in result.items():
        try:
            numbers[key] = float(value)
        except (TypeError, ValueError):
            logger.debug("reward component %r is no number and is left out: %r", key, value)
    return numbers


REGISTERS = (
    Registered(
        f"reward manager {TEXT_REWARD_MANAGER}", lambda: REWARD_MANAGER.get(TEXT_REWARD_MANAGER) is TextRewardManager
    ),
)
