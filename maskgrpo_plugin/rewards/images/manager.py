"""The verl reward manager `maskgrpo_image`: an image's reward is a weighted sum of scores from Ray actors."""

import asyncio
import json
import logging
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np
import ray
from verl import DataProto
from verl.experimental.reward_loop.reward_manager import register as register_reward_manager
from verl.experimental.reward_loop.reward_manager.base import RewardManagerBase
from verl.experimental.reward_loop.reward_manager.registry import REWARD_MANAGER

from maskgrpo_plugin.registry import Registered
from maskgrpo_plugin.rewards.images.actors import ScorerPool
from maskgrpo_plugin.rewards.images.config import IMAGE_REWARD_MANAGER, ImageRewardConfig, ScorerConfig
from maskgrpo_plugin.rewards.images.sample import ImageSample
from maskgrpo_plugin.rewards.images.worker import Scored
from maskgrpo_plugin.rewards.text.manager import TextRewardManager

logger = logging.getLogger(__name__)

IMAGE_FIELD = "image"


@register_reward_manager(IMAGE_REWARD_MANAGER)
class ImageRewardManager(RewardManagerBase):
    """Scores images, one rollout at a time; the scorers batch across rollouts and reward workers. A row that asks for
    no image (`extra_info.modality` is not `t2i`) is scored as a text, by `TextRewardManager`.

    A scorer that fails, takes too long or gives no finite number costs the sample its reward: reward 0,
    `reward_failed` 1, the cause in the log. What becomes of such a sample is `reward.image.on_failure`, which the
    trainer applies with `rewards.failures.resolve_failed_rewards` (verl swallows what a reward manager raises).

    Args:
        config: verl's whole configuration, with `reward.image`.
        tokenizer, compute_score, reward_router_address, reward_model_tokenizer: for texts, see `TextRewardManager`.

    Raises:
        OptionError: a setting that cannot work.
        RuntimeError: a scorer cannot be loaded.
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
        self._for_texts = (config, tokenizer, compute_score, reward_router_address, reward_model_tokenizer)
        self.settings = ImageRewardConfig.from_config(config.reward.get("image"))
        self.pools = {scorer.name: _start(scorer) for scorer in self.settings.scorers}
        for pool in self.pools.values():
            pool.wait_until_ready(self.settings.startup_timeout_s)

    @cached_property
    def texts(self) -> TextRewardManager:
        """Scores the rows that ask for no image."""
        return TextRewardManager(*self._for_texts)

    async def run_single(self, data: DataProto) -> dict[str, Any]:
        """Score the image of the last sequence of `data`, or its text.

        Args:
            data: verl's batch of one rollout; see `image_sample` for what is read of it.

        Returns:
            `reward_score`, a finite float, and `reward_extra_info`, floats by name, the same names for every sample:
            `score`, `reward_failed` (0 or 1), and for each scorer `<name>` (0 where it failed), `<name>_failed` (0 or
            1), `<name>_latency_s` (seconds) and `<name>_batch_size`; of a text see `TextRewardManager.run_single`.

        Raises:
            ValueError: an image was asked for and the rollout has none, or nobody can score the text's task.
        """
        rows = data[-1].non_tensor_batch
        if not asks_for_image(rows):
            return await self.texts.run_single(data)
        sample = image_sample(rows)
        reference = ray.put(sample)  # once for all scorers
        names = list(self.pools)
        found = await asyncio.gather(*(self.pools[name].score(reference) for name in names))
        return self._combine(dict(zip(names, found, strict=True)), sample)

    def _combine(self, found: Mapping[str, Scored], sample: ImageSample) -> dict[str, Any]:
        """verl's result: the weighted sum, and every part of it."""
        failed = {name: scored.error for name, scored in found.items() if scored.failed}
        if failed:
            logger.error("reward failed for the prompt %r: %s", sample.prompt[:200], failed)
        weights = {scorer.name: scorer.weight for scorer in self.settings.scorers}
        total = 0.0 if failed else float(sum(weights[name] * scored.value for name, scored in found.items()))
        info = {"score": total, "reward_failed": float(bool(failed))}
        for name, scored in found.items():
            info[name] = 0.0 if scored.failed else float(scored.value)
            info[f"{name}_failed"] = float(scored.failed)
            info[f"{name}_latency_s"] = float(scored.latency_s)
            info[f"{name}_batch_size"] = float(scored.batch_size)
        return {"reward_score": total, "reward_extra_info": info}


def image_sample(rows: Mapping[str, Any]) -> ImageSample:
    """What the scorers see of a rollout.

    Args:
        rows: a row of verl's batch: `tool_extra_fields` (what the rollout gave besides tokens) with the image; and of
            the data set `raw_prompt` (messages), `reward_model.ground_truth`, and `extra_info`, whose `prompt` (text)
            and `metadata` (a dict or JSON) go before the message and `extra_info` itself.

    Raises:
        ValueError: there is no image.
    """
    extra = dict(rows.get("extra_info") or {})
    metadata = extra.get("metadata") or extra
    if isinstance(metadata, str):
        metadata = json.loads(metadata)
    return ImageSample(
        image=rollout_image(rows),
        prompt=str(extra.get("prompt") or prompt_text(rows.get("raw_prompt"))),
        ground_truth=_plain((rows.get("reward_model") or {}).get("ground_truth")),
        metadata=_plain(metadata),
    )


def asks_for_image(rows: Mapping[str, Any]) -> bool:
    """Whether a row of verl's batch is to have an image: it has one, or its `extra_info.modality` is `t2i`."""
    has_image = (rows.get("tool_extra_fields") or {}).get(IMAGE_FIELD) is not None
    return has_image or (rows.get("extra_info") or {}).get("modality") == "t2i"


def rollout_image(rows: Mapping[str, Any]) -> np.ndarray:
    """The image (H, W, 3) uint8 that the rollout server put into its extra fields.

    Raises:
        ValueError: there is none.
    """
    image = (rows.get("tool_extra_fields") or {}).get(IMAGE_FIELD)
    if image is None:
        raise ValueError(
            f"the rollout gave no {IMAGE_FIELD!r}: the reward manager {IMAGE_REWARD_MANAGER} needs an image model"
        )
    return np.asarray(image)


def prompt_text(messages: Any) -> str:
    """Text of the last user message; empty where there is none."""
    for message in reversed(list(messages if messages is not None else [])):
        if message.get("role") == "user":
            content = message.get("content")
            if isinstance(content, str):
                return content
            return " ".join(part["text"] for part in content if part.get("type") == "text")
    return ""


def _start(scorer: ScorerConfig) -> ScorerPool:
    return ScorerPool(
        scorer.name,
        scorer.place(),
        scorer.options,
        num_cpus=scorer.num_cpus,
        num_gpus=scorer.num_gpus,
        replicas=scorer.replicas,
        max_batch=scorer.max_batch,
        max_wait_ms=scorer.max_wait_ms,
        timeout_s=scorer.timeout_s,
    )


def _plain(value: Any) -> Any:
    """Data of a parquet row as lists, dicts and Python numbers; a dict's empty entries (None) are left out."""
    if isinstance(value, Mapping):
        return {str(key): _plain(part) for key, part in value.items() if part is not None}
    if isinstance(value, list | tuple | np.ndarray):
        return [_plain(part) for part in value]
    return value.item() if isinstance(value, np.generic) else value


REGISTERS = (
    Registered(
        f"reward manager {IMAGE_REWARD_MANAGER}", lambda: REWARD_MANAGER.get(IMAGE_REWARD_MANAGER) is ImageRewardManager
    ),
)
