"""Supervised training on verl's SFT trainer: its engine, checkpoints and tracking; batches, loss and loop of our own.

The loop differs from verl's in that a step's batch is a function of the step, so that a resumed run continues exactly,
that every validation row counts once, and that the batch is made of examples rather than of a data loader's tensors.
"""

import logging
import sys
import time
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from omegaconf import OmegaConf
from tensordict import NonTensorData, TensorDict
from tqdm import tqdm
from verl.trainer.sft_trainer import SFTTrainer
from verl.utils import tensordict_utils as tu
from verl.utils.device import get_device_name
from verl.utils.metric import Metric
from verl.utils.tracking import Tracking
from verl.workers.config import TrainingWorkerConfig
from verl.workers.engine_workers import TrainingWorker

from maskgrpo_plugin.data.sft_rows import Example
from maskgrpo_plugin.diffusion.random import combine_seed, unit_float
from maskgrpo_plugin.errors import OptionError
from maskgrpo_plugin.export import export
from maskgrpo_plugin.models.families import build_family
from maskgrpo_plugin.models.registry import block_length_of
from maskgrpo_plugin.trainer.checkpoints import STEP, explained
from maskgrpo_plugin.trainer.image_log import log_contact_sheet
from maskgrpo_plugin.trainer.run_record import record_run
from maskgrpo_plugin.trainer.sft_batches import BatchOrder, Slot, divide
from maskgrpo_plugin.trainer.sft_data import Source, read_sources
from maskgrpo_plugin.trainer.sft_images import make_sketcher
from maskgrpo_plugin.trainer.sft_objectives import MaskedDenoising, NextToken, Objective

logger = logging.getLogger(__name__)

_DROPOUT_STREAM = 0x64726F70  # "drop": keeps the draws of dropped captions apart from levels and masks
PIPED_SECONDS = 30  # between two states of the progress bar where nobody watches it
RENAMED = ("loss", "grad_norm", "lr", "mfu")


class ValidationRow(NamedTuple):
    """A row at one draw of its level.

    Attributes:
        source: number of the data source.
        row: number of its validation example.
        key: of its level and masks.
        share: 1 for a row that counts, 0 for one that fills up a rank's share.
    """

    source: int
    row: int
    key: int
    share: float


class DenoisingTrainer(SFTTrainer):
    """Supervised training of a masked diffusion model, or by next-token prediction where
    `model.model_type=language_model`.

    Args:
        config: as `configs/sft_base.yaml` has it, checked by `check_sft`.

    Class attributes:
        judged: names of the numbers that a validation row has.
    """

    judged: ClassVar[tuple[str, ...]] = ("loss",)

    def _build_dataset(self) -> None:
        self.model_config.model_type = self.config.model.model_type
        self.sources: list[Source] = read_sources(self.config, self.model_config.hf_config, self.model_config.tokenizer)
        data = self.config.data
        counts = divide(data.train_batch_size, [source.share for source in self.sources])
        for source, count in zip(self.sources, counts, strict=True):
            source.check_count(count)
        self.order = BatchOrder(
            rows=tuple(len(source.train) for source in self.sources),
            counts=tuple(counts),
            weights=tuple(source.weight for source in self.sources),
            seed=self.config.trainer.seed,
        )
        self.validation = any(source.validation for source in self.sources)
        self.sketcher = make_sketcher(self.config, self.sources, self.model_config)

    def _build_engine(self) -> None:
        self.objective = self._make_objective()
        torch.manual_seed(self.config.trainer.seed)  # an adapter begins at random
        self.training_client = TrainingWorker(
            config=TrainingWorkerConfig(
                model_type=self.objective.model_type,
                model_config=self.model_config,
                engine_config=self.engine_config,
                optimizer_config=self.optimizer_config,
                checkpoint_config=self.checkpoint_config,
                profiler_config=self.profiler_config,
            )
        )
        self.training_client.set_loss_fn(loss_fn=self.objective.loss)
        self.engine = self.training_client.engine

    def _make_objective(self) -> Objective:
        if self.config.model.model_type == "language_model":
            return NextToken()
        options: Any = OmegaConf.to_container(self.config.denoising, resolve=True)
        family = build_family(self.model_config.hf_config, self.model_config.tokenizer)
        block_length = block_length_of(family.config)
        if block_length is not None and options["block_length"] is not None:
            allowed = f"null: the model attends in blocks of {block_length}, each behind the clean ones before it"
            raise OptionError("denoising.block_length", options["block_length"], f"allowed: {allowed}")
        return MaskedDenoising(self.config.trainer.seed, options, family.stop_token_ids, block_length)

    def _build_dataloader(self) -> None:
        self.global_batch_size = self.config.data.train_batch_size
        self.train_dataloader = _Steps(self.order)

    def fit(self) -> None:
        """Train from the step after the last checkpoint to the last step; validate, save and log on the way."""
        trainer = self.config.trainer
        self.is_logging = self.engine.is_mp_src_rank_with_outputs() and self.engine.get_data_parallel_rank() == 0
        tracking = self._tracking() if self.is_logging else None
        step, total = self.resume_global_step, self.total_training_steps
        if step == 0 and trainer.val_before_train and self.validation:
            _log(tracking, self._validate(), 0)
            self._sketch(0, tracking)
        with self._progress(step, total) as progress:
            while step < total:
                step += 1
                metrics = self._train(step)
                if self.validation and (step == total or _every(self.test_freq, step)):
                    metrics |= self._validate()
                    self._sketch(step, tracking)
                    if trainer.target_val_loss is not None and metrics["val/loss"] <= trainer.target_val_loss:
                        total = step
                _log(tracking, metrics, step)
                progress.set_postfix(_shown(metrics), refresh=False)
                progress.update()
                if step == total or _every(self.save_freq, step):
                    self._save(step)
        self._export()

    def _sketch(self, step: int, tracking: Tracking | None) -> None:
        """Draw held-out captions, on every rank alike since all take part in the model's forward, and log the sheet."""
        if self.sketcher is None:
            return
        every = (example for source in self.sources for example in source.validation if example.is_image)
        first = next(every)
        alike = (example for example in every if example.grid == first.grid)
        chosen = [first, *islice(alike, self.config.images.count - 1)]
        with self.engine.eval_mode(), self.engine.autocast():
            images = self.sketcher.draw(self.engine.module, chosen, get_device_name())
        if self.is_logging:
            captions = [
                self.model_config.tokenizer.decode(example.prompt_ids, skip_special_tokens=True) for example in chosen
            ]
            rows = [(n, caption, 0.0, image) for n, (caption, image) in enumerate(zip(captions, images, strict=True))]
            log_contact_sheet(rows, tracking, Path(self.ckpt_handler.default_local_dir) / "images", step)

    def _train(self, step: int) -> dict[str, float]:
        """One step; returns its metrics."""
        started = time.perf_counter()
        rank, ranks = self.engine.get_data_parallel_rank(), self.engine.get_data_parallel_size()
        slots = self.order.batch(step)[rank::ranks]
        data, known = self._step_batch(slots, step)
        lengths = self._get_batch_seqlens(data)
        tu.assign_non_tensor(data, update_lr_scheduler=True, global_token_num=NonTensorData(lengths))
        output = self.training_client.train_batch(data=data)
        self.training_client.step_profile()
        found = _numbers(tu.get(output, "metrics"))
        metrics = {(f"train/{key}" if key in RENAMED else key): value for key, value in found.items()}
        seconds = time.perf_counter() - started
        metrics |= known
        return metrics | {
            "train/tokens": float(sum(lengths)),
            "train/epoch": step / self.steps_per_epoch,
            "perf/tokens_per_second": sum(lengths) / seconds,
            "perf/seconds": seconds,
        }

    def _step_batch(self, slots: Sequence[Slot], step: int) -> tuple[TensorDict, dict[str, float]]:
        """The rank's batch of a step, and numbers that are known before it is trained on."""
        examples = [
            self._with_caption_dropped(self.sources[slot.source].train[slot.row], step, slot.key) for slot in slots
        ]
        keys, weights = [slot.key for slot in slots], [slot.weight for slot in slots]
        return self._batch(examples, keys, weights, step, self.order.batch_size), {}

    def _with_caption_dropped(self, example: Example, step: int, key: int) -> Example:
        if not example.is_image:
            return example
        drawn = unit_float(combine_seed(_DROPOUT_STREAM, self.order.seed, step, key))
        return example.without_caption() if drawn < self.config.data.caption_dropout else example

    @torch.no_grad()
    def _validate(self) -> dict[str, float]:
        """Means over the validation rows at fixed levels and masks, by source and over all, as `val/…`."""
        rank, ranks = self.engine.get_data_parallel_rank(), self.engine.get_data_parallel_size()
        rows, strata = self._validation_rows()
        sums = torch.zeros(len(self.sources), len(self.judged) + 1, dtype=torch.float64)
        size = self.config.data.val_batch_size or self.config.data.train_batch_size
        for batch in _pieces(rows[rank::ranks], max(size // ranks, 1)):
            items = [self.sources[row.source].validation[row.row] for row in batch]
            values = self._judge(items, [row.key for row in batch], strata).double()
            for row, value in zip(batch, values, strict=True):
                sums[row.source] += row.share * torch.cat([value, torch.ones(1)])
        sums = self._over_ranks(sums)
        found = {"val/": sums.sum(0)}
        if len(self.sources) > 1:
            found |= {f"val/{source.name}/": row for source, row in zip(self.sources, sums, strict=True)}
        return {
            f"{place}{name}": float(total / row[-1])
            for place, row in found.items()
            if row[-1]
            for name, total in zip(self.judged, row, strict=False)
        }

    def _judge(self, items: Sequence[Any], keys: Sequence[int], strata: int) -> torch.Tensor:
        """(b, len(judged)) of some validation rows at their keys' levels and masks."""
        data = self._batch(items, keys, [1.0] * len(items), 0, strata)
        return self._losses(data).unsqueeze(-1)

    def _losses(self, data: TensorDict, client: TrainingWorker | None = None, **settings: Any) -> torch.Tensor:
        """(b,) the losses of the rows without gradients, of the trained model or another client's."""
        data = data.clone(recurse=False)
        tu.assign_non_tensor(data, compute_loss=False, use_dynamic_bsz=True, **settings)
        output = (client or self.training_client).infer_batch(data)
        return self.objective.row_losses(output["log_probs"].cpu(), data)

    def _over_ranks(self, values: torch.Tensor, operation: Any = torch.distributed.ReduceOp.SUM) -> torch.Tensor:
        """The ranks' values added up, or put together by another operation, on the host."""
        if self.engine.get_data_parallel_size() == 1:
            return values
        values = values.to(get_device_name())
        torch.distributed.all_reduce(values, op=operation, group=self.engine.get_data_parallel_group())
        return values.cpu()

    def _validation_rows(self) -> tuple[list[ValidationRow], int]:
        """Every validation row at each of its draws, filled up to a multiple of the ranks; and the strata of the keys.

        The keys of a row's draws lie 1/draws of the range apart, those of the rows of a draw side by side.
        """
        every = [(n, row) for n, source in enumerate(self.sources) for row in range(len(source.validation))]
        draws = self.config.data.val_draws if self.objective.model_type == "masked_diffusion" else 1
        rows = [
            ValidationRow(source, row, draw * len(every) + number, 1.0)
            for draw in range(draws)
            for number, (source, row) in enumerate(every)
        ]
        filling = -len(rows) % self.engine.get_data_parallel_size()
        return rows + [rows[0]._replace(share=0.0)] * filling, len(every) * draws

    def _batch(
        self, examples: Sequence[Example], keys: Sequence[int], weights: Sequence[float], step: int, strata: int
    ) -> TensorDict:
        """The rank's batch with what verl's worker reads beside it."""
        data = self.config.data
        if self.objective.model_type == "masked_diffusion" and data.fill != "none":
            longest = data.max_length if data.fill == "max_length" else self._largest(max(map(len, examples)))
            end = self.model_config.tokenizer.eos_token_id
            examples = [example.filled(longest, end) for example in examples]
        batch = self.objective.batch(examples, keys, weights, step, strata)
        tu.assign_non_tensor(
            batch,
            use_remove_padding=self.config.model.use_remove_padding,
            use_dynamic_bsz=data.use_dynamic_bsz,
            max_token_len_per_gpu=data.max_token_len_per_gpu,
            micro_batch_size_per_gpu=data.micro_batch_size_per_gpu,
            temperature=1.0,
            global_batch_size=self.global_batch_size,
            pad_mode="no_padding",
            pad_token_id=self.model_config.tokenizer.pad_token_id,
        )
        return batch

    def _largest(self, number: int) -> int:
        """The largest of the ranks' numbers."""
        return int(self._over_ranks(torch.tensor(number), torch.distributed.ReduceOp.MAX))

    def _save(self, step: int) -> None:
        """verl's checkpoint of the step.

        Raises:
            CheckpointError: it could not be written.
        """
        folder = Path(self.config.trainer.default_local_dir).absolute() / f"{STEP}{step}"
        advice = "what is there of it is torn; make room and start the run again, which resumes from the one before it"
        with explained("could not be written", folder, advice):
            self.ckpt_handler.save_checkpoint(step=step)

    def _export(self) -> None:
        """The last checkpoint in the published form, where `trainer.export_dir` names a folder."""
        target = self.config.trainer.export_dir
        if target is not None and self.rank == 0:
            export(self.ckpt_handler.default_local_dir, Path(target).expanduser())
        torch.distributed.barrier()

    def _build_ckpt_handler(self) -> None:
        super()._build_ckpt_handler()
        root = Path(self.config.trainer.default_local_dir).absolute()
        self.ckpt_handler.default_local_dir = str(root)

    def _tracking(self) -> Tracking:
        trainer = self.config.trainer
        record_run(self.config, self.resume_global_step)
        return Tracking(
            project_name=trainer.project_name,
            experiment_name=trainer.experiment_name,
            default_backend=list(trainer.logger),
            config=OmegaConf.to_container(self.config, resolve=True),
        )

    def _progress(self, step: int, total: int) -> tqdm:
        """A bar with loss, tokens per second and the time left."""
        seconds = 0.2 if sys.stderr.isatty() else PIPED_SECONDS
        return tqdm(
            initial=step, total=total, desc="sft", unit="step", mininterval=seconds, disable=not self.is_logging
        )


class _Steps:
    """Stands where verl expects a data loader: the number of steps in an epoch, and what a resumed run must share."""

    def __init__(self, order: BatchOrder):
        self.order = order

    def __len__(self) -> int:
        return self.order.steps_per_epoch

    def state_dict(self) -> dict[str, Any]:
        """What the batches are made by."""
        return {"rows": list(self.order.rows), "counts": list(self.order.counts), "seed": self.order.seed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Warn where the batches of the resumed run are others than those of the run before it."""
        for key, now in self.state_dict().items():
            if state.get(key) != now:
                logger.warning(
                    "the checkpoint was made with %s=%s, now %s: the order of rows differs", key, state.get(key), now
                )


def _every(frequency: int, step: int) -> bool:
    return frequency > 0 and step % frequency == 0


def _log(tracking: Tracking | None, metrics: dict[str, float], step: int) -> None:
    if tracking is not None:
        tracking.log(data=metrics, step=step)


def _shown(metrics: dict[str, float]) -> dict[str, str]:
    names = {"train/loss": "loss", "val/loss": "validation", "perf/tokens_per_second": "tokens/s"}
    return {name: f"{metrics[key]:.4g}" for key, name in names.items() if key in metrics}


def _numbers(metrics: dict[str, Any]) -> dict[str, float]:
    """verl's metrics as numbers; lists are of micro-batches, and of ranks."""
    found = {}
    for key, value in metrics.items():
        values = list(_flat(value))
        found[key] = float(np.mean([each.aggregate() if isinstance(each, Metric) else float(each) for each in values]))
    return found


def _flat(value: Any) -> Iterator[Any]:
    if isinstance(value, list | tuple):
        for each in value:
            yield from _flat(each)
    else:
        yield value


def _pieces(rows: Sequence[ValidationRow], size: int) -> Iterator[Sequence[ValidationRow]]:
    for start in range(0, len(rows), size):
        yield rows[start : start + size]
