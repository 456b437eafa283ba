"""A trainer of verl that accounts for every completion: lost ones, failed rewards, and what becomes of their groups."""

import logging
from typing import Any

import ray
import torch
import transfer_queue as tq
from omegaconf import open_dict
from ray.exceptions import RayActorError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from transfer_queue import KVBatchMeta
from verl.experimental.reward_loop import RewardLoopWorker
from verl.trainer.ppo.v1.trainer_base import PPOTrainer
from verl.utils import tensordict_utils as tu
from verl.workers.utils.padding import response_to_nested

from maskgrpo_plugin.rewards.failures import mean_reward_components, resolve_failed_rewards
from maskgrpo_plugin.rewards.images.config import IMAGE_REWARD_MANAGER, ImageRewardConfig
from maskgrpo_plugin.run_facts import tell_phase
from maskgrpo_plugin.trainer.accounting import Ledger, LostSamples
from maskgrpo_plugin.trainer.run_record import record_run
from maskgrpo_plugin.workers.rollout import ROLLOUTS
from maskgrpo_plugin.workers.rollout.client import WholeAnswerClient

logger = logging.getLogger(__name__)

REWARD_WORKER_RESTARTS = 3


class AccountedTrainer(PPOTrainer):
    """verl's trainer, whose runs end where more than `algorithm.max_lost_share` of a step is lost or has no reward.

    Attributes:
        ledger, validation_ledger: losses of the present step and of the last validation.
    """

    def __init__(self, config: Any):
        super().__init__(config)
        image = config.reward.reward_manager.name == IMAGE_REWARD_MANAGER
        self.reward_failure_policy = (
            ImageRewardConfig.from_config(config.reward.image).on_failure
            if image
            else config.algorithm.get("on_reward_failure", "zero")
        )
        self.ledger = self.validation_ledger = self._new_ledger()

    def _setup(self) -> None:
        """verl's, with reward workers that Ray restarts. They start beside the training workers; with a reward model,
        whose address they need, behind them.
        """
        tell_phase("loading model and data")
        reward = self.config.reward
        count, with_model = reward.num_workers, reward.reward_model.enable
        workers = [] if with_model else self._start_reward_workers()
        with open_dict(self.config):
            reward.num_workers = 0
        super()._setup()
        with open_dict(self.config):
            reward.num_workers = count
        manager = self.reward_loop_manager
        if with_model:
            workers = self._start_reward_workers(manager.reward_router_address)
        manager.reward_loop_workers = workers

    def _start_reward_workers(self, router_address: str | None = None) -> list[Any]:
        self.reward_config = ray.put(self.config)
        return start_reward_workers(self.config.reward.num_workers, self.reward_config, router_address)

    def fit(self, agent_loop_manager: Any) -> None:
        """verl's training loop, after the run's record; where a process of the run dies that is not restarted, it ends
        with the actor's name.

        Raises:
            RuntimeError: such a process died.
        """
        record_run(self.config, self.global_steps)
        tell_phase("training begins")
        try:
            super().fit(agent_loop_manager)
        except RayActorError as error:
            said = [line.strip() for line in str(error).splitlines()]
            names = [line for line in said if line.startswith(("class_name:", "name:"))]
            raise RuntimeError(
                f"a Ray actor of the run died at step {self.global_steps} ({', '.join(names) or said[-1]}); start the "
                f"run again to resume from the last checkpoint in {self.config.trainer.default_local_dir}"
            ) from error

    def get_llm_client(self) -> Any:
        """The client of the plugin's servers; verl's for others."""
        if self.config.actor_rollout_ref.rollout.name not in ROLLOUTS:
            return super().get_llm_client()
        return self.llm_server_manager.get_client(client_cls=WholeAnswerClient)

    def _new_ledger(self) -> Ledger:
        prompts = self.config.data.train_batch_size // self.parameter_sync_step
        share = self.config.algorithm.get("max_lost_share", 1.0)
        return Ledger(share, prompts * self.config.actor_rollout_ref.rollout.n)

    def _enter_losses(self) -> None:
        """Ask the agent loops what they lost since the last time."""
        if not hasattr(self.agent_loop_manager, "pop_losses"):
            return
        for loss in self.agent_loop_manager.pop_losses():
            (self.validation_ledger if loss.validating else self.ledger).add([loss])

    def _check_losses(self, failed_rewards: int = 0) -> None:
        self._enter_losses()
        self.ledger.check(f"step {self.global_steps}", failed_rewards)

    def _add_prompts_to_generate(self, num_prompts: int) -> int:
        """verl's, also for groups that failed: which must come to an end where nothing succeeds."""
        self._check_losses()
        return super()._add_prompts_to_generate(num_prompts)

    def _step_once(self, metrics: dict, timing_raw: dict, sample_batch_size: int) -> KVBatchMeta:
        try:
            batch = super()._step_once(metrics, timing_raw, sample_batch_size)
        except LostSamples:
            raise
        except RuntimeError:
            self._check_losses()  # verl's error where a step has no completion at all names no cause
            raise
        self.ledger = self._new_ledger()
        return batch

    def _validate(self) -> dict[str, float]:
        """verl's validation.

        Raises:
            LostSamples: too many completions are missing.
        """
        tell_phase("validating")
        completions = len(self.val_dataset) * self.config.actor_rollout_ref.rollout.val_kwargs.n
        self.validation_ledger = Ledger(self.ledger.max_lost_share, completions)
        try:
            metrics = super()._validate()
        finally:  # an error of verl's where nothing at all could be had names no cause
            self._enter_losses()
            self.validation_ledger.check(f"validation at step {self.global_steps}")
        metrics["val-aux/lost_samples"] = float(self.validation_ledger.lost)
        return metrics

    def _resolve_failed_rewards(self, batch: KVBatchMeta, metrics: dict) -> KVBatchMeta:
        """Log the reward's components, and apply the policy for samples whose reward failed: new rewards, no loss for
        samples that are dropped, and each such sample out of its group, whose mean and deviation are of the others.

        A step in which no reward at all could be had keeps its samples with equal rewards, which is no advantage.

        Raises:
            LostSamples: too many completions or rewards are missing.
        """
        fields = ["uid", "rm_scores", "response_mask", "extra_fields"]
        data = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=fields)
        real = torch.tensor([not tag.get("is_padding", False) for tag in batch.tags])
        infos = [extra.get("reward_extra_info", {}) for extra in data["extra_fields"]]
        metrics.update(mean_reward_components([info for info, counts in zip(infos, real, strict=True) if counts]))
        failed = real & torch.tensor([float(info.get("reward_failed", 0.0)) > 0 for info in infos])
        scores = data["rm_scores"].to_padded_tensor(0.0)
        rewards = scores.sum(-1)
        failed |= real & ~rewards.isfinite()
        count = int(failed.sum())
        self._check_losses(count)
        metrics["reward/failed_samples"] = float(count)
        metrics["reward/lost_samples"] = float(self.ledger.lost)
        if count == 0 or self.reward_failure_policy == "zero":
            return batch
        logger.warning("%d of %d rewards failed at step %d", count, int(real.sum()), self.global_steps)
        groups = [str(uid) for uid in data["uid"]]
        resolved, keep = resolve_failed_rewards(rewards, failed, groups, self.reward_failure_policy)
        keep |= ~real
        if not keep[real].any():
            keep = torch.ones_like(keep)
        metrics["reward/dropped_samples"] = float((~keep).sum())
        mask = data["response_mask"]
        lengths = mask.offsets().diff()
        scores = torch.zeros_like(scores)
        scores[torch.arange(len(batch)), lengths - 1] = resolved.to(scores.dtype)
        kept = mask.to_padded_tensor(0) * keep.unsqueeze(-1).to(mask.dtype)
        apart = [f"{uid}-failed-{n}" if out else uid for n, (uid, out) in enumerate(zip(groups, failed, strict=True))]
        written = tu.get_tensordict(
            {
                "rm_scores": response_to_nested(scores, mask),
                "response_mask": response_to_nested(kept, mask),
                "uid": apart,
            }
        )
        return tq.kv_batch_put(keys=batch.keys, partition_id=batch.partition_id, fields=written)


def start_reward_workers(count: int, config: Any, router_address: str | None = None) -> list[Any]:
    """Reward workers as verl starts them, in turn over the nodes, which Ray restarts when they die.

    Args:
        count: how many.
        config: Ray's reference to the whole config, to be kept as long as the workers: Ray drops arguments that nobody
            holds, and a restart needs them again.
        router_address: of a reward model.
    """
    actor_class = ray.remote(RewardLoopWorker)
    nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU", 0) > 0]
    return [
        actor_class.options(
            name=f"reward_loop_worker_{n}",
            scheduling_strategy=NodeAffinitySchedulingStrategy(node_id=nodes[n % len(nodes)], soft=True),
            max_restarts=REWARD_WORKER_RESTARTS,
        ).remote(config, router_address)
        for n in range(count)
    ]
