"""One training run in one process without Ray: the config of a run, and its steps by the package's own parts.

A step is the trainer's: rollouts of the config's sampler, scores of the rows' task, the config's advantages, the
estimator's passes for old and reference policy, and μ updates of the engine with verl's loss and AdamW.
"""

import copy
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
import verl.trainer
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException
from tensordict import TensorDict
from transformers import AutoModelForCausalLM, AutoTokenizer
from verl.trainer.ppo.core_algos import get_adv_estimator_fn
from verl.utils import tensordict_utils as tu
from verl.utils.config import omega_conf_to_dataclass
from verl.workers.config.optimizer import build_optimizer
from verl.workers.utils.padding import response_from_nested

import maskgrpo_plugin.registration
import maskgrpo_plugin.validation  # noqa: F401  (registers what the actor's section resolves)
from maskgrpo_cli.shipped import config_folder
from maskgrpo_plugin.diffusion.estimators.plan import mask_keys
from maskgrpo_plugin.diffusion.random import combine_seed
from maskgrpo_plugin.diffusion.samplers.base import SamplerOutput
from maskgrpo_plugin.diffusion.samplers.record import FIELDS
from maskgrpo_plugin.errors import OptionError
from maskgrpo_plugin.models.families import build_family
from maskgrpo_plugin.models.registry import block_length_of
from maskgrpo_plugin.models.special_tokens import answer_length
from maskgrpo_plugin.rewards import score
from maskgrpo_plugin.trainer.losses import compares_with_old
from maskgrpo_plugin.workers.engine import MaskedDiffusionEngine
from maskgrpo_plugin.workers.losses import update_loss
from maskgrpo_plugin.workers.platform import RunPlatform
from maskgrpo_plugin.workers.rollout.requests import pad_left

EVALUATED_AT_ONCE = 128  # rows


def read_config(name: str, overrides: list[str]) -> DictConfig:
    """The whole config of a run, as verl's entry point composes it.

    Args:
        name: of a shipped config, such as `quickstart`.
        overrides: Hydra's, such as `method=espo`.

    Raises:
        OptionError: a config, key or value that Hydra does not take.
    """
    search = f"hydra.searchpath=[file://{Path(verl.trainer.__file__).parent / 'config'}]"
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(config_folder()), version_base=None):
            return compose(name, overrides=[search, *overrides])
    except (HydraException, OmegaConfBaseException) as error:
        raise OptionError("config", [name, *overrides], " ".join(str(error).split())) from None


def places(model: str, data: str | Path) -> list[str]:
    """Overrides that name a run's start model and the folder of its rows."""
    return [
        f"actor_rollout_ref.model.path={model}",
        f"data.train_files={data}/train.parquet",
        f"data.val_files={data}/validation.parquet",
    ]


@dataclass
class Counts:
    """What a run has spent on training; evaluations are not in it.

    Attributes:
        rollouts: completions.
        sampling: forward passes of the sampler, one per completion and call.
        new, old, reference: passes of the estimator, one per canvas: with gradients, of the policy that sampled, and of
            the reference.
        seconds: wall time.
    """

    rollouts: int = 0
    sampling: int = 0
    new: int = 0
    old: int = 0
    reference: int = 0
    seconds: float = 0.0


class LocalEngine(MaskedDiffusionEngine):
    """The package's engine around a model that is there already: one process, no FSDP.

    Attributes:
        passes: canvases that the model saw, without and with gradients.
    """

    def __init__(self, module: torch.nn.Module, mask_token_id: int):
        self.module, self._mask_token_id = module, mask_token_id
        self.ulysses_sequence_parallel_size = 1
        self._autocast_dtype, self._image_slice = torch.float32, None
        self.passes = {False: 0, True: 0}

    def get_data_parallel_group(self) -> Any:
        """The group of this process alone."""
        return torch.distributed.group.WORLD

    def get_data_parallel_size(self) -> int:
        """1."""
        return 1

    def _gradient_sync_context(self, is_last_micro_batch: bool) -> Any:
        return torch.enable_grad()

    def forward_step(self, micro_batch: TensorDict, loss_function: Any, forward_only: bool) -> Any:
        """The engine's, counted."""
        units, chosen = tu.get(micro_batch, "units"), tu.get(micro_batch, "unit")
        self.passes[not forward_only] += int((chosen < units.scoring).sum()) * units.width
        return super().forward_step(micro_batch, loss_function, forward_only)


@dataclass
class Rollouts:
    """Completions of some rows, and their batch.

    Attributes:
        data: verl's jagged batch.
        rewards: (B,) float.
        groups: (B,) names of the rows.
    """

    data: TensorDict
    rewards: torch.Tensor
    groups: np.ndarray


@dataclass
class Run:
    """One training run of a text model.

    Args:
        config: of the run, see `read_config`.
        evaluation: whose sampler answers the validation rows, so that all methods are asked alike; None: `config`.
        seed: of the sampling; that of the masks is `algorithm.estimation.seed`.
    """

    config: DictConfig
    evaluation: DictConfig | None = None
    seed: int = 0
    step: int = field(default=0, init=False)
    counts: Counts = field(default_factory=Counts, init=False)

    def __post_init__(self) -> None:
        RunPlatform().on_run_start(self.config)
        if not torch.distributed.is_initialized():
            torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
        path = self.config.actor_rollout_ref.model.path
        self.tokenizer = AutoTokenizer.from_pretrained(path)
        self.model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
        self.family = build_family(self.model.config, self.tokenizer)
        self.actor_config = omega_conf_to_dataclass(self.config.actor_rollout_ref.actor)
        self.estimation = omega_conf_to_dataclass(self.config.algorithm.estimation)
        self.estimator = self.estimation.build()
        self.uses_old = self.estimator.uses_old and compares_with_old(self.actor_config.policy_loss.loss_mode)
        self.actor = LocalEngine(self.model, self.family.mask_token_id)
        self.reference = None
        if self.actor_config.use_kl_loss:
            self.reference = LocalEngine(copy.deepcopy(self.model).requires_grad_(False), self.family.mask_token_id)
        self.optimizer = build_optimizer(self.model.parameters(), self.actor_config.optim)

    def accuracy(self, rows: list[dict]) -> float:
        """Mean `acc` of the greedy answers; for a task of right and wrong answers the share of right ones."""
        config, found = self.evaluation or self.config, []
        for start in range(0, len(rows), EVALUATED_AT_ONCE):
            part = rows[start : start + EVALUATED_AT_ONCE]
            output, ids, _ = self._sample(config, part, 0.0, [0] * len(part))
            found += [answer["acc"] for answer in self._scores(part, output, ids.shape[1])]
        return sum(found) / len(found)

    def train(self, rows: list[dict], numbers: list[int]) -> None:
        """One step: a group of completions per row, then the estimator's updates.

        Args:
            rows: `data.train_batch_size` of them.
            numbers: their places in the data, which name the masks' noise.
        """
        began = time.perf_counter()
        rollouts = self.roll_out(rows, numbers)
        self._estimate_before(rollouts.data)
        rollouts.data["advantages"] = self.advantages(rollouts)
        for update in range(self.estimator.updates):
            self.update(rollouts.data, update)
        self.step += 1
        counts = self.counts
        counts.rollouts += len(rollouts.rewards)
        counts.new, counts.old = self.actor.passes[True], self.actor.passes[False]
        counts.reference = self.reference.passes[False] if self.reference else 0
        counts.seconds += time.perf_counter() - began

    def roll_out(self, rows: list[dict], numbers: list[int]) -> Rollouts:
        """Sample and score a group of completions per row; see `train`."""
        settings = self.config.actor_rollout_ref.rollout
        group = [row for row in rows for _ in range(settings.n)]
        seeds = [combine_seed(self.seed, self.step, n) for n in range(len(group))]
        output, ids, inside = self._sample(self.config, group, settings.temperature, seeds)
        self.counts.sampling += int(output.row_model_calls.sum())
        named = np.repeat(numbers, settings.n)
        keys = mask_keys(named.tolist(), [n % settings.n for n in range(len(group))], self.estimation.mask_sharing)
        width = ids.shape[1]
        responses = output.sequences[:, width:]
        prompts = [row[kept] for row, kept in zip(ids, inside, strict=True)]
        jagged = partial(torch.nested.as_nested_tensor, layout=torch.jagged)
        record = {} if output.record is None else dict(zip(FIELDS, output.record.parts(), strict=True))
        plan = self.estimation.plan(
            self.step,
            stop_token_ids=self.family.stop_token_ids,
            block_length=block_length_of(self.model.config),
            temperature=settings.temperature,
            banned_token_ids=omega_conf_to_dataclass(settings.sampler).banned_token_ids(self.family.mask_token_id),
        )
        data = tu.get_tensordict(
            {
                "input_ids": jagged([torch.cat(both) for both in zip(prompts, responses, strict=True)]),
                "prompts": jagged(prompts),
                "responses": jagged(list(responses)),
                "response_mask": jagged(list(torch.ones_like(responses))),
                "reveal_step": jagged(list(output.reveal_step[:, width:])),
                "mask_key": torch.tensor(keys),
                **{name: jagged(list(values)) for name, values in record.items()},
            },
            non_tensor_dict={
                "estimation": plan.to_plain(),
                "use_dynamic_bsz": False,
                "micro_batch_size_per_gpu": self.actor_config.ppo_micro_batch_size_per_gpu,
                "global_batch_size": len(group),
                "temperature": settings.temperature,
            },
        )
        rewards = torch.tensor([found["score"] for found in self._scores(group, output, width)], dtype=torch.float32)
        return Rollouts(data, rewards, named.astype(str).astype(object))

    def update(self, data: TensorDict, update: int) -> None:
        """One step of the optimiser; verl's loss of the update's passes, and the config's bound of the gradient."""
        batch = data.clone(recurse=False)
        tu.assign_non_tensor(batch, update=update)
        self.optimizer.zero_grad()
        self.actor.forward_backward_batch(batch, partial(update_loss, self.actor_config))
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.actor_config.optim.clip_grad)
        self.optimizer.step()

    def _estimate_before(self, data: TensorDict) -> None:
        """Add what the loss compares with: old and reference estimates of every update."""
        asked = {"old_log_probs": self.actor if self.uses_old else None, "ref_log_prob": self.reference}
        for name, engine in asked.items():
            if engine is not None:
                output = engine.forward_backward_batch(data.clone(recurse=False), None, forward_only=True)
                data[name] = response_from_nested(output["model_output"]["log_probs"], data["response_mask"])

    def advantages(self, rollouts: Rollouts) -> torch.Tensor:
        """Jagged (B, r), the config's advantages of the rewards."""
        mask = rollouts.data["response_mask"].to_padded_tensor(0).float()
        rewards = torch.zeros_like(mask)
        rewards[:, -1] = rollouts.rewards
        estimate = get_adv_estimator_fn(self.config.algorithm.adv_estimator)
        advantages, _ = estimate(rewards, mask, index=rollouts.groups, config=self.config.algorithm)
        return torch.nested.as_nested_tensor(list(advantages), layout=torch.jagged)

    def _sample(
        self, config: DictConfig, rows: list[dict], temperature: float, seeds: list[int]
    ) -> tuple[SamplerOutput, torch.Tensor, torch.Tensor]:
        """Generations, the prompts (B, P), padded on the left, and (B, P) bool where they are not padding."""
        texts = [
            self.tokenizer.apply_chat_template(r["prompt"], tokenize=False, add_generation_prompt=True) for r in rows
        ]
        prompts = [tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts]
        ids, mask = pad_left(prompts, max(map(len, prompts)), self.tokenizer.pad_token_id or 0)
        sampler = omega_conf_to_dataclass(config.actor_rollout_ref.rollout.sampler).build(
            response_length=config.data.max_response_length,
            temperature=temperature,
            stop_token_ids=tuple(self.family.stop_token_ids),
            record=config.actor_rollout_ref.rollout.calculate_log_probs,
        )
        output = sampler.generate(
            self.model,
            ids,
            None if bool(mask.all()) else mask,
            mask_token_id=self.family.mask_token_id,
            generator=[torch.Generator().manual_seed(seed) for seed in seeds],
        )
        return output, ids, mask.bool()

    def _scores(self, rows: list[dict], output: SamplerOutput, width: int) -> list[dict[str, float]]:
        """What the task's scorer says of each answer, which ends before its first end token."""
        stops = set(self.family.stop_token_ids)
        found = []
        for row, tokens in zip(rows, output.sequences[:, width:].tolist(), strict=True):
            text = self.tokenizer.decode(tokens[: answer_length(tokens, stops)], skip_special_tokens=True)
            extra = dict(row["extra_info"])
            found.append(score(extra.pop("task"), text, row["reward_model"]["ground_truth"], **extra))
        return found


def read_rows(folder: Path, split: str) -> list[dict]:
    """The rows of `<split>.parquet` in a folder.

    Raises:
        OptionError: there is no such file.
    """
    path = folder / f"{split}.parquet"
    if not path.is_file():
        raise OptionError("--data", str(folder), f"a folder with train.parquet and validation.parquet; no {path.name}")
    return pq.read_table(path).to_pylist()


def batches(rows: int, size: int, seed: int) -> Any:
    """Numbers of the rows of each step without end: the rows in an order of the seed's, again and again."""
    order = np.random.default_rng(seed).permutation(rows)
    step = 0
    while True:
        yield np.take(order, range(step * size, (step + 1) * size), mode="wrap").tolist()
        step += 1
