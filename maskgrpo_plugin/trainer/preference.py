"""Preference optimisation (DPO) of masked diffusion models on the SFT trainer: VRPO of LLaDA 1.5, arXiv 2505.19223.

A pair's loss is −log σ(β·[(h − h_ref)(chosen) − (h − h_ref)(rejected)]) with h the evidence bound of an answer from n
masks, one per level, the same for policy and reference. Its gradient needs every bound of a pair at once; here the
bounds are found without gradients first, and the update then runs on Σ ∂loss/∂h · h, so that the passes of a pair may
lie in different micro-batches and memory is that of one. The gradient is the same.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from tensordict import TensorDict
from torch import Tensor
from torch.nn.functional import logsigmoid
from verl.workers.config import TrainingWorkerConfig
from verl.workers.engine_workers import TrainingWorker

from maskgrpo_plugin.data.preference_rows import Pair
from maskgrpo_plugin.models.families import build_family
from maskgrpo_plugin.models.registry import block_length_of
from maskgrpo_plugin.trainer.sft import DenoisingTrainer
from maskgrpo_plugin.trainer.sft_batches import Slot
from maskgrpo_plugin.trainer.sft_objectives import ROW_WEIGHT, EvidenceBound, Objective


@dataclass(frozen=True)
class Preferences:
    """What the loss of b pairs sees.

    Attributes:
        chosen, rejected: (b,) changes (h − h_ref)/d of the answers' bounds.
        beta: β.
    """

    chosen: Tensor
    rejected: Tensor
    beta: float

    @property
    def losses(self) -> Tensor:
        """(b,) −log σ(β·(chosen − rejected)); log 2 where nothing has changed."""
        return -logsigmoid(self.beta * (self.chosen - self.rejected))

    def table(self) -> Tensor:
        """(b, 5): loss, whether the chosen answer gained more, β·(chosen − rejected), β·chosen, β·rejected."""
        margin = self.chosen - self.rejected
        columns = [
            self.losses,
            (margin > 0).to(margin.dtype),
            *(self.beta * x for x in (margin, self.chosen, self.rejected)),
        ]
        return torch.stack(columns, dim=-1)


def preferences(bounds: Tensor, reference: Tensor, beta: float, divisor: float = 1.0) -> Preferences:
    """The preferences of pairs.

    Args:
        bounds, reference: (2b,) bounds h and h_ref, chosen and rejected answer of a pair one after the other.
        beta: β.
        divisor: d of the bounds: 1, or a number of tokens.
    """
    change = (bounds - reference) / divisor
    return Preferences(change[0::2], change[1::2], beta)


def bound_gradients(bounds: Tensor, reference: Tensor, weights: Tensor, beta: float, divisor: float = 1.0) -> Tensor:
    """(2b,) ∂(Σ weight·loss)/∂h of each answer's bound; `weights` (b,) of the pairs, the others as in `preferences`.

    With β = 1 and bounds that equal the reference's: [−½, ½] for a pair of weight 1.
    """
    leaf = bounds.detach().clone().requires_grad_()
    with torch.enable_grad():
        (preferences(leaf, reference, beta, divisor).losses * weights).sum().backward()
    assert leaf.grad is not None
    return leaf.grad


class PreferenceTrainer(DenoisingTrainer):
    """DPO on pairs; the reference is the model of `model.path`, with LoRA the policy without its adapter.

    Args:
        config: as `configs/dpo_base.yaml` has it, checked by `check_sft`.
    """

    judged = ("loss", "accuracy", "margin", "chosen_reward", "rejected_reward")

    def _make_objective(self) -> Objective:
        family = build_family(self.model_config.hf_config, self.model_config.tokenizer)
        options = {"mu": 1, "canvas": "full", "draws": self.config.preference.draws}
        return EvidenceBound(self.config.trainer.seed, options, family.stop_token_ids, block_length_of(family.config))

    @property
    def _scale(self) -> dict[str, float]:
        """β and d of the loss."""
        return {"beta": self.config.preference.beta, "divisor": self.config.preference.length or 1.0}

    def _build_engine(self) -> None:
        super()._build_engine()
        self.reference: TrainingWorker | None = None
        if self.model_config.lora_rank == 0:
            self.reference = TrainingWorker(
                config=TrainingWorkerConfig(
                    model_type=self.objective.model_type,
                    model_config=self.model_config,
                    engine_config=replace(self.engine_config, forward_only=True),
                    optimizer_config=self.optimizer_config,
                    checkpoint_config=self.checkpoint_config,
                )
            )

    def _init_engine(self) -> None:
        super()._init_engine()
        if self.reference is not None:
            self.reference.reset()

    def _step_batch(self, slots: Sequence[Slot], step: int) -> tuple[TensorDict, dict[str, float]]:
        pairs = [self.sources[slot.source].train[slot.row] for slot in slots]
        data = self._pair_batch(pairs, [slot.key for slot in slots], step)
        bounds, reference = self._both_bounds(data)
        weights = torch.tensor([slot.weight for slot in slots], dtype=bounds.dtype)
        data[ROW_WEIGHT] = -bound_gradients(bounds, reference, weights, **self._scale).double()
        table = preferences(bounds, reference, **self._scale).table().double()
        table[:, 0] *= weights
        means = self._over_ranks(torch.cat([table, torch.ones(len(pairs), 1)], dim=1).sum(0))
        found = zip(self.judged, (means[:-1] / means[-1]).tolist(), strict=True)
        return data, {f"train/{name}": value for name, value in found}

    def _judge(self, items: Sequence[Pair], keys: Sequence[int], strata: int) -> Tensor:
        bounds, reference = self._both_bounds(self._pair_batch(items, keys, 0))
        return preferences(bounds, reference, **self._scale).table()

    def _pair_batch(self, pairs: Sequence[Pair], keys: Sequence[int], step: int) -> TensorDict:
        """The answers of the pairs, each with masks of its own."""
        examples = [example for pair in pairs for example in (pair.chosen, pair.rejected)]
        each = [2 * key + side for key in keys for side in (0, 1)]
        return self._batch(examples, each, [1.0] * len(examples), step, 1)

    def _both_bounds(self, data: TensorDict) -> tuple[Tensor, Tensor]:
        """(2b,) bounds under the policy, and under the reference at the same masks."""
        bounds = -self._losses(data)
        if self.reference is None:
            return bounds, -self._losses(data, no_lora_adapter=True)
        return bounds, -self._losses(data, self.reference)
