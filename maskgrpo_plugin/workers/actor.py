"""Ray workers of actor, reference and rollout: verl's own, with the plan's μ updates and a CPU process group."""

import os
from functools import partial
from typing import Any

import torch
from tensordict import TensorDict
from verl.single_controller.base.decorator import Dispatch, register
from verl.utils import tensordict_utils as tu
from verl.utils.device import get_device_id, get_device_name
from verl.utils.distributed import initialize_global_process_group_ray
from verl.workers.engine_workers import ActorRolloutRefWorker, TrainingWorker

from maskgrpo_plugin.workers import engine as _engines  # noqa: F401  (importing registers the engines)
from maskgrpo_plugin.workers.losses import update_loss
from maskgrpo_plugin.workers.scoring import Canvases, Scores, score_canvases

UPDATES = "updates"


class MultiUpdateWorker(TrainingWorker):
    """verl's training worker whose mini-batch loop runs once per inner update of the step's plan, in order."""

    _advance_scheduler = True

    def train_mini_batch(self, data: TensorDict) -> TensorDict | None:
        """Do every inner update of the batch's plan; without a plan, as verl does.

        Args:
            data: the rank's share of the batch, with `old_log_probs` (and `ref_log_prob`) of all updates, and the
                number of them in the non-tensor `updates`.

        Returns:
            Metrics as lists over updates, and each again under `level_<j>/`; None on ranks that report nothing.
        """
        updates = tu.get_non_tensor_data(data, UPDATES, default=None)
        if updates is None:
            return super().train_mini_batch(data)
        merged: dict[str, list[Any]] = {}
        for update in range(updates):
            batch = data.clone(recurse=False)
            tu.assign_non_tensor(batch, update=update)
            self._advance_scheduler = update == updates - 1
            output = super().train_mini_batch(batch)
            if output is None:
                continue
            for key, value in tu.get(output, "metrics").items():
                values = value if isinstance(value, list) else [value]
                merged.setdefault(key, []).extend(values)
                if is_level_metric(key):
                    merged[f"level_{update + 1}/{key.removeprefix('actor/')}"] = values
        if not merged:
            return None
        return tu.get_tensordict(tensor_dict={}, non_tensor_dict={"metrics": merged}).cpu()

    def train_batch(self, data: TensorDict) -> TensorDict:
        """One optimizer step; the learning-rate schedule advances once per training step, at the last update."""
        if not self._advance_scheduler:
            tu.assign_non_tensor(data, update_lr_scheduler=False)
        return super().train_batch(data)


def is_level_metric(key: str) -> bool:
    """Whether a metric of the update says something about one update (and not about memory, speed or the schedule)."""
    return not key.startswith("perf/") and key not in ("mfu", "lr", "kl_coef")


class MaskGRPOWorker(ActorRolloutRefWorker):
    """verl's hybrid worker with the plugin's engines, μ updates per step, and reference synchronisation."""

    actor_worker_cls = MultiUpdateWorker
    ref_worker_cls = TrainingWorker

    def __init__(self, *args: Any, **kwargs: Any):
        if get_device_name() == "cpu":
            initialize_global_process_group_ray(backend="gloo")
        super().__init__(*args, **kwargs)

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def init_model(self) -> None:
        """verl's, with the plugin's loss of an update."""
        super().init_model()
        if "actor" in self.role:
            self.actor.set_loss_fn(partial(update_loss, config=self.loss_fn.keywords["config"]))

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def sync_reference(self) -> None:
        """Copy the actor's parameters into the separate reference policy (published: every 64 steps).

        Raises:
            RuntimeError: the worker holds no separate reference.
        """
        if self.ref is None:
            raise RuntimeError("algorithm.estimation.reference_sync_steps needs a separate reference policy")
        with torch.no_grad():
            actor = dict(self.actor.engine.module.named_parameters())
            for name, parameter in self.ref.engine.module.named_parameters():
                source = actor[name]
                target = _local(parameter)
                target.copy_(_local(source).to(target.device, target.dtype))

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def save_checkpoint(
        self, local_path: str, hdfs_path: str | None = None, global_step: int = 0, max_ckpt_to_keep: int | None = None
    ) -> None:
        """verl's, but the checkpoint before it stays until `drop_old_checkpoints`: a run that is killed before the new
        one has its data loader and is named by the folder resumes from the old one.
        """
        most = max_ckpt_to_keep and max(max_ckpt_to_keep, 2)
        super().save_checkpoint(local_path, hdfs_path, global_step, most)

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def drop_old_checkpoints(self, most: int) -> None:
        """Remove this run's checkpoints of the actor but the last `most`, which are wholly written by now."""
        manager = self.actor.engine.checkpoint_manager
        if manager.rank == 0:
            manager.remove_previous_save_local_path(manager.previous_saved_paths[:-most])
            del manager.previous_saved_paths[:-most]

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def score(self, canvases: Canvases) -> Scores:
        """What the actor says of canvases, the same on every rank; see `score_canvases`."""
        engine = self.actor.engine
        with engine.eval_mode(), engine.autocast():
            return score_canvases(engine.module, canvases, get_device_id())

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def save_reference(self, folder: str) -> None:
        """Write this rank's shard of a synchronised reference to `folder`, so that a resumed run has the same one."""
        os.makedirs(folder, exist_ok=True)
        shard = {name: _local(p).detach().cpu() for name, p in self.ref.engine.module.named_parameters()}
        torch.save(shard, _shard_path(folder))

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def load_reference(self, folder: str) -> None:
        """Read back what `save_reference` wrote; the world size must be the same."""
        shard = torch.load(_shard_path(folder), weights_only=True)
        with torch.no_grad():
            for name, parameter in self.ref.engine.module.named_parameters():
                _local(parameter).copy_(shard[name])


def _local(parameter: torch.Tensor) -> torch.Tensor:
    return parameter.to_local() if hasattr(parameter, "to_local") else parameter


def _shard_path(folder: str) -> str:
    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    return os.path.join(folder, f"reference_world_size_{world}_rank_{rank}.pt")
