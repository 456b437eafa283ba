"""The trainers `maskgrpo_sync` and `maskgrpo_colocate_async`: verl's own with μ updates per batch of rollouts."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ray
import torch
import transfer_queue as tq
from tensordict import TensorDict
from torch.nn.functional import pad
from transfer_queue import KVBatchMeta
from verl.trainer.ppo.utils import Role
from verl.trainer.ppo.v1.trainer_base import TRAINER_REGISTRY, register_trainer
from verl.trainer.ppo.v1.trainer_colocate_async import PPOTrainerColocateAsync
from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync
from verl.utils.config import omega_conf_to_dataclass
from verl.workers.utils.padding import response_from_nested

from maskgrpo_plugin.config import EstimationConfig
from maskgrpo_plugin.diffusion.estimators.plan import UNCOND_IDS, StepPlan, mask_keys
from maskgrpo_plugin.models.families import load_family
from maskgrpo_plugin.models.registry import block_length_of
from maskgrpo_plugin.registry import Registered
from maskgrpo_plugin.rewards.images.config import IMAGE_REWARD_MANAGER
from maskgrpo_plugin.trainer.accounted import AccountedTrainer
from maskgrpo_plugin.trainer.checkpoints import (
    REFERENCE,
    STEP,
    explained,
    prune_references,
    repair_pointer,
    whole_checkpoints,
)
from maskgrpo_plugin.trainer.image_log import log_contact_sheet
from maskgrpo_plugin.trainer.losses import compares_with_old
from maskgrpo_plugin.trainer.sample_dumps import DumpingTrainer
from maskgrpo_plugin.workers.rollout import ROLLOUTS
from maskgrpo_plugin.workers.scoring import Canvases, Scores, first_pass

logger = logging.getLogger(__name__)

DEFAULT_POLL_INTERVAL_S = 0.1
ESTIMATION_FIELDS = ("input_ids", "prompts", "responses", "response_mask", "mask_key")
WORKER_ROLES = (Role.Actor, Role.ActorRollout, Role.ActorRolloutRef, Role.RefPolicy)


class MaskGRPOStages(DumpingTrainer, AccountedTrainer):
    """What a MaskGRPO step (arXiv 2510.02880) does with its rollouts, over one of verl's trainers: rewards, old and
    reference estimates of every update's passes, advantages, then the μ updates in their order.

    With `actor_rollout_ref.model.model_type=language_model` it is verl's trainer on the plugin's workers, for
    autoregressive baselines in the same setup.

    Attributes:
        verl_mode: verl's name for the trainer, which decides about its replay buffer and checkpoints.
    """

    verl_mode: str

    def __init__(self, config: Any):
        super().__init__(config)
        self.is_diffusion = config.actor_rollout_ref.model.model_type == "masked_diffusion"
        self.estimation: EstimationConfig | None = None
        self.plan: StepPlan | None = None
        self.canvases: Canvases | None = None
        if self.is_diffusion:
            self.estimation = omega_conf_to_dataclass(config.algorithm.estimation)
            self.estimator = self.estimation.build()
            loss = config.actor_rollout_ref.actor.policy_loss.loss_mode
            self.uses_old = self.estimator.uses_old and compares_with_old(loss)

    def _build_replay_buffer(self) -> Any:
        settings = self.config.trainer.v1.get(self.config.trainer.v1.trainer_mode) or {}
        self.trainer_mode = self.verl_mode
        buffer = super()._build_replay_buffer()
        buffer.poll_interval = settings.get("poll_interval_s", DEFAULT_POLL_INTERVAL_S)
        return buffer

    def _init_resource_pool_mgr(self) -> None:
        from maskgrpo_plugin.workers.actor import MaskGRPOWorker

        super()._init_resource_pool_mgr()
        for role in WORKER_ROLES:
            if role in self.role_worker_mapping:
                self.role_worker_mapping[role] = ray.remote(MaskGRPOWorker)

    def _step_once(self, metrics: dict, timing_raw: dict, sample_batch_size: int) -> KVBatchMeta:
        batch = super()._step_once(metrics, timing_raw, sample_batch_size)
        metrics.update(self._rollout_metrics())
        return batch

    def _rollout_metrics(self) -> dict[str, float]:
        """Mean over the replicas of the servers' counters since the last step, as `rollout/…`."""
        if self.config.actor_rollout_ref.rollout.name not in ROLLOUTS:
            return {}
        servers = self.llm_server_manager.server_handles
        summaries: list[dict[str, float]] = ray.get([server.pop_metrics.remote() for server in servers])
        return {f"rollout/{key}": sum(s[key] for s in summaries) / len(summaries) for key in summaries[0]}

    def _balance_batch(self, batch: KVBatchMeta, metrics: dict, *args: Any, **kwargs: Any) -> KVBatchMeta:
        """Put the batch in the order of the data, not of arrival, so that a resumed run sums in the same order."""
        rows, sessions = self._row_numbers(batch)
        batch.reorder(sorted(range(len(batch)), key=lambda i: (rows[i], sessions[i])))
        batch = super()._balance_batch(batch, metrics, *args, **kwargs)
        return self._resolve_failed_rewards(batch, metrics)

    def _row_numbers(self, batch: KVBatchMeta) -> tuple[list[int], list[int]]:
        """Data row and completion number of each member of the batch."""
        data = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=["index", "session_id"])
        return [int(i) for i in data["index"]], [int(i) for i in data["session_id"]]

    def _compute_old_log_prob(self, batch: KVBatchMeta, metrics: dict) -> KVBatchMeta:
        """Make the step's plan, and write `mask_key` and, where estimator and loss compare with the policy that
        sampled, `old_log_probs`: its estimates for every update.
        """
        if self.estimation is None:
            return super()._compute_old_log_prob(batch, metrics)
        rollout = self.config.actor_rollout_ref.rollout
        family = load_family(self.config.actor_rollout_ref.model, self.tokenizer)
        self.plan = self.estimation.plan(
            self.global_steps,
            stop_token_ids=family.stop_token_ids,
            block_length=block_length_of(family.config),
            temperature=rollout.temperature,
            banned_token_ids=omega_conf_to_dataclass(rollout.sampler).banned_token_ids(family.mask_token_id),
        )
        self._write_mask_keys(batch)
        self._write_extra_fields(batch)
        self._keep_canvases(batch, family.mask_token_id)
        for update in range(self.estimator.updates):
            for name, value in self.estimator.metrics(update).items():
                metrics[f"actor/level_{update + 1}/{name}"] = value
        if not self.uses_old:
            return batch
        self._attach_plan(batch)
        batch.extra_info.update({"calculate_entropy": False, "compute_loss": False})
        self.actor_rollout_wg.compute_log_prob(batch)
        data = tq.kv_batch_get(
            keys=batch.keys, partition_id=batch.partition_id, select_fields=["log_probs", "response_mask"]
        )
        old_log_probs = response_from_nested(data["log_probs"], data["response_mask"])
        fields = TensorDict({"old_log_probs": old_log_probs}, batch_size=len(batch))
        return tq.kv_batch_put(keys=batch.keys, partition_id=batch.partition_id, fields=fields)

    def _compute_ref_log_prob(self, batch: KVBatchMeta, metrics: dict) -> KVBatchMeta:
        """The reference's estimates for every update, at the same masks; writes `ref_log_prob`."""
        if self.estimation is not None:
            self._attach_plan(batch)
        return super()._compute_ref_log_prob(batch, metrics)

    def _keep_canvases(self, batch: KVBatchMeta, mask_token_id: int) -> None:
        """Keep a few of the step's canvases for `_log_prob_gap`, in a step that validates."""
        self.canvases = None
        rows, every = self.config.actor_rollout_ref.rollout.log_prob_gap_rows, self.config.trainer.test_freq
        if rows == 0 or every <= 0 or self.global_steps % every:
            return
        assert self.plan is not None
        real = [n for n, tag in enumerate(batch.tags) if not tag.get("is_padding", False)]
        keys = [batch.keys[n] for n in real[:rows]]
        fields = [*ESTIMATION_FIELDS, *self.estimator.requires]
        data = tq.kv_batch_get(keys=keys, partition_id=batch.partition_id, select_fields=fields)
        self.canvases = first_pass(data, self.plan, mask_token_id)

    def _log_prob_gap(self) -> dict[str, float]:
        """How far the rollout's model is from the actor after a weight sync: the mean absolute difference of their
        log-probabilities on the step's own canvases, the largest of the servers, as `rollout/actor_log_prob_gap`; of
        models with experts also the share of the actor's choices of experts that a server's routers did not make, as
        `rollout/router_drift`.
        """
        if self.canvases is None or not self.canvases.places:
            return {}
        canvases, self.canvases = self.canvases, None
        actor: Scores = self.actor_rollout_wg.score(canvases)[0]
        found = ray.get([server.score.remote(canvases) for server in self.llm_server_manager.server_handles])
        gap = max(actor.gap(served) for served in found)
        most = self.config.actor_rollout_ref.rollout.log_prob_gap_warning
        if gap > most:
            logger.warning(
                "step %d: the log-probabilities of actor and rollout differ by %.4g on average, above "
                "actor_rollout_ref.rollout.log_prob_gap_warning=%g: the rollouts are not of the actor's policy",
                self.global_steps,
                gap,
                most,
            )
        drifts = [drift for served in found if (drift := actor.routing_difference(served)) is not None]
        return {"rollout/actor_log_prob_gap": gap} | ({"rollout/router_drift": max(drifts)} if drifts else {})

    def on_step_end(self) -> None:
        """verl's weight sync; then what it left of a difference."""
        super().on_step_end()
        self._pending_sync_metrics = (getattr(self, "_pending_sync_metrics", None) or {}) | self._log_prob_gap()

    def _attach_plan(self, batch: KVBatchMeta, *more_fields: str) -> None:
        """Send the step's plan along with `batch`, and fetch no more fields than the engine reads.

        Each write to TransferQueue returns a batch without either, so every stage attaches them.
        """
        assert self.plan is not None  # made by the step's first stage
        batch.extra_info["estimation"] = self.plan.to_plain()
        batch.extra_info["updates"] = self.estimator.updates
        batch.fields = [*ESTIMATION_FIELDS, *self._extra_fields(), *more_fields]

    def _extra_fields(self) -> list[str]:
        """What the estimation needs of the rollouts' `extra_fields`."""
        guided = self.plan is not None and self.plan.cfg_scale > 0
        return [*self.estimator.requires, *([UNCOND_IDS] if guided else [])]

    def _write_mask_keys(self, batch: KVBatchMeta) -> None:
        rows, sessions = self._row_numbers(batch)
        assert self.estimation is not None
        keys = mask_keys(rows, sessions, self.estimation.mask_sharing)
        fields = TensorDict({"mask_key": torch.tensor(keys, dtype=torch.int64)}, batch_size=len(batch))
        tq.kv_batch_put(keys=batch.keys, partition_id=batch.partition_id, fields=fields)

    def _write_extra_fields(self, batch: KVBatchMeta) -> None:
        """Put what `_extra_fields` names into the batch as jagged tensors."""
        names = self._extra_fields()
        if not names:
            return
        fields = ["extra_fields", "response_mask"]
        data = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=fields)
        lengths = data["response_mask"].offsets().diff().tolist()
        jagged = {name: jagged_field(name, data["extra_fields"], lengths) for name in names}
        written = TensorDict(jagged, batch_size=len(batch))
        tq.kv_batch_put(keys=batch.keys, partition_id=batch.partition_id, fields=written)

    def _update_actor(self, batch: KVBatchMeta, metrics: dict) -> KVBatchMeta:
        if self.estimation is not None:
            reference = ["ref_log_prob"] if self.use_reference_policy else []
            old = ["old_log_probs"] if self.uses_old else []
            self._attach_plan(batch, "advantages", *old, *reference)
        batch = super()._update_actor(batch, metrics)
        batch.fields = None
        every = self.estimation.reference_sync_steps if self.estimation else 0
        if every and self.use_reference_policy and self.global_steps % every == 0:
            self.actor_rollout_wg.sync_reference()
        return batch

    def _validate(self) -> dict[str, float]:
        """verl's validation; images that it made are drawn as a contact sheet in the run's folder."""
        metrics = super()._validate()
        if hasattr(self.agent_loop_manager, "pop_images"):
            folder = Path(self.config.trainer.default_local_dir).expanduser() / "images"
            images, rows = self.agent_loop_manager.pop_images(), self.config.trainer.log_val_generations
            log_contact_sheet(images, self.logger, folder, self.global_steps, rows)
        return metrics

    def _maybe_log_val_generations(self, inputs: list[str], outputs: list[str], scores: list[float]) -> None:
        """verl's table of `trainer.log_val_generations` texts; that of images goes with the contact sheet."""
        if self.config.reward.reward_manager.name != IMAGE_REWARD_MANAGER:
            super()._maybe_log_val_generations(inputs, outputs, scores)

    def _save_checkpoint(self) -> None:
        """verl's checkpoint, and the reference where it is synchronised.

        Raises:
            CheckpointError: it could not be written.
        """
        root = Path(self.config.trainer.default_local_dir).absolute()
        advice = "what is there of it is torn; make room and start the run again, which resumes from the one before it"
        folder = root / f"{STEP}{self.global_steps}"
        with explained("could not be written", folder, advice):
            if self._keeps_reference():
                self.actor_rollout_wg.save_reference(str(folder / REFERENCE))
            super()._save_checkpoint()
        if most := self.config.trainer.max_actor_ckpt_to_keep:
            self.actor_rollout_wg.drop_old_checkpoints(most)
        prune_references(root)

    def _load_checkpoint(self) -> None:
        """verl's resume, and the reference where it is synchronised and was saved.

        Raises:
            CheckpointError: the checkpoint cannot be read.
        """
        trainer = self.config.trainer
        root = Path(trainer.default_local_dir).absolute()
        if trainer.resume_mode == "auto":
            repair_pointer(root)
        folder = Path(trainer.resume_from_path) if trainer.resume_mode == "resume_path" else root
        advice = f"whole ones are {whole_checkpoints(root)}, for trainer.resume_mode=resume_path and"
        with explained("could not be read", folder, f"{advice} trainer.resume_from_path"):
            super()._load_checkpoint()
            if self.global_steps == 0 or not self._keeps_reference():
                return
            loaded = folder if trainer.resume_mode == "resume_path" else root / f"{STEP}{self.global_steps}"
            reference = loaded.absolute() / REFERENCE
            if reference.is_dir():
                self.actor_rollout_wg.load_reference(str(reference))
            else:
                logger.warning(
                    "%s does not exist: algorithm.estimation.reference_sync_steps was not set when the checkpoint was "
                    "written, and the reference is the model that the run began with",
                    reference,
                )

    def _keeps_reference(self) -> bool:
        synced = self.estimation is not None and self.estimation.reference_sync_steps > 0
        return synced and self.use_reference_policy and not self.ref_in_actor


def jagged_field(name: str, extra_fields: Iterable[Mapping[str, Any]], lengths: Sequence[int]) -> torch.Tensor:
    """A field of the rollouts as a jagged tensor (B, j).

    Args:
        name: of the field; all but `uncond_ids` have an entry for each response token, which may be a list of ids,
            filled up with −1.
        extra_fields: what the rollouts gave. Rows with which verl fills a batch up have a copy of another row's.
        lengths: of the responses, to which copies of longer ones are cut.
    """
    rows = [
        torch.tensor(extra[name] if name == UNCOND_IDS else extra[name][:length])
        for extra, length in zip(extra_fields, lengths, strict=True)
    ]
    if rows and rows[0].dim() == 2:
        width = max(row.shape[1] for row in rows)
        rows = [pad(row, (0, width - row.shape[1]), value=-1) for row in rows]
    return torch.nested.as_nested_tensor(rows, layout=torch.jagged)


@register_trainer("maskgrpo_sync")
class MaskGRPOTrainer(MaskGRPOStages, PPOTrainerSync):
    """Synchronous MaskGRPO: every rollout of a step is of the policy that the step begins with."""

    verl_mode = "sync"


@register_trainer("maskgrpo_colocate_async")
class MaskGRPOColocateAsyncTrainer(MaskGRPOStages, PPOTrainerColocateAsync):
    """MaskGRPO with rollouts ahead of training on the same devices (verl's `colocate_async`).

    Rollouts that wait when training begins are asked for again after it, so that some of a step's are of an earlier
    policy; their log-probabilities, old ones as well, are those of the policy that the update begins with. The order of
    rollouts depends on timing, and so does the run.
    """

    verl_mode = "colocate_async"


REGISTERS = (
    Registered("trainer maskgrpo_sync", lambda: "maskgrpo_sync" in TRAINER_REGISTRY),
    Registered("trainer maskgrpo_colocate_async", lambda: "maskgrpo_colocate_async" in TRAINER_REGISTRY),
)
