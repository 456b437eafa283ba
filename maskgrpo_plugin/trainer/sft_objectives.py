"""What supervised training minimises, for masked diffusion and for autoregressive models: batch, loss, row losses."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from tensordict import TensorDict
from torch import Tensor
from verl.utils import tensordict_utils as tu

from maskgrpo_plugin.data.sft_rows import Example
from maskgrpo_plugin.diffusion.estimators.plan import StepPlan

ROW_WEIGHT = "row_weight"


class Objective(ABC):
    """A loss over examples."""

    model_type: ClassVar[str]

    @abstractmethod
    def batch(
        self, examples: Sequence[Example], keys: Sequence[int], weights: Sequence[float], step: int, strata: int
    ) -> TensorDict:
        """verl's batch.

        Args:
            examples: B of them.
            keys: of their mask noise.
            weights: factors of their losses.
            step: training step, 0 in a validation.
            strata: number of keys over which the levels are evenly spread.
        """

    @abstractmethod
    def row_losses(self, log_probs: Any, data: TensorDict) -> Tensor:
        """The loss (B,) of each row of `data`, from the jagged values that the engine gave for its tokens."""

    def loss(
        self, model_output: dict[str, Any], data: TensorDict, dp_group: Any = None
    ) -> tuple[Tensor, dict[str, Any]]:
        """The micro-batch's part of the mean over the rows of the global batch of weight times row loss, times the
        number of ranks, over which gradients are averaged.
        """
        losses = self.row_losses(model_output["log_probs"], data)
        total = (losses * data[ROW_WEIGHT].to(losses.dtype)).sum()
        return total / data["global_batch_size"] * data["dp_size"], {}


@dataclass(frozen=True)
class MaskedDenoising(Objective):
    """The negative evidence bound per answer token, for one draw of each row's level; see `Denoising`.

    Attributes:
        seed: of levels and masks.
        options: of the estimator `denoising`.
        stop_token_ids: ids that end a text.
        block_length: of a block-causal model.
    """

    seed: int
    options: dict[str, Any]
    stop_token_ids: tuple[int, ...] = ()
    block_length: int | None = None

    model_type: ClassVar[str] = "masked_diffusion"
    estimator: ClassVar[str] = "denoising"

    def batch(
        self, examples: Sequence[Example], keys: Sequence[int], weights: Sequence[float], step: int, strata: int
    ) -> TensorDict:
        """See `Objective.batch`."""
        plan = StepPlan(
            self.estimator,
            self._estimator_options(step, strata),
            self.seed,
            step,
            self.stop_token_ids,
            block_length=self.block_length,
        )
        fields = {
            "input_ids": [e.prompt_ids + e.answer_ids for e in examples],
            "prompts": [e.prompt_ids for e in examples],
            "responses": [e.answer_ids for e in examples],
            "response_mask": [tuple(map(int, e.learned)) for e in examples],
        }
        if any(e.is_image for e in examples):
            fields["image_tokens"] = [(int(e.is_image),) * len(e.answer_ids) for e in examples]
        data = TensorDict({name: _jagged(rows) for name, rows in fields.items()}, batch_size=len(examples))
        data["mask_key"] = torch.tensor(keys)
        data[ROW_WEIGHT] = torch.tensor(weights, dtype=torch.float64)
        tu.assign_non_tensor(data, estimation=plan.to_plain())
        return data

    def _estimator_options(self, step: int, strata: int) -> dict[str, Any]:
        return {**self.options, "strata": strata} | ({} if step else {"label_smoothing": 0.0})

    def row_losses(self, log_probs: Any, data: TensorDict) -> Tensor:
        """See `Objective.row_losses`; the estimates already hold the weights of their tokens."""
        return -_row_sums(log_probs).flatten()  # an inference has one value per update, which is one


@dataclass(frozen=True)
class EvidenceBound(MaskedDenoising):
    """The negative evidence bound of an answer, from several masks of it; see `ELBO`.

    Attributes:
        options: of the estimator `elbo`.
    """

    estimator: ClassVar[str] = "elbo"

    def _estimator_options(self, step: int, strata: int) -> dict[str, Any]:
        return self.options


@dataclass(frozen=True)
class NextToken(Objective):
    """Mean cross entropy of the answer's tokens, up to and with its end."""

    model_type: ClassVar[str] = "language_model"

    def batch(
        self, examples: Sequence[Example], keys: Sequence[int], weights: Sequence[float], step: int, strata: int
    ) -> TensorDict:
        """See `Objective.batch`; keys, step and strata are of no effect."""
        fields = {
            "input_ids": [e.prompt_ids + e.answer_ids for e in examples],
            "position_ids": [tuple(range(len(e))) for e in examples],
            "loss_mask": [(0,) * len(e.prompt_ids) + tuple(map(int, e.learned)) for e in examples],
        }
        data = TensorDict({name: _jagged(rows) for name, rows in fields.items()}, batch_size=len(examples))
        data[ROW_WEIGHT] = torch.tensor(weights, dtype=torch.float64)
        return data

    def row_losses(self, log_probs: Any, data: TensorDict) -> Tensor:
        """See `Objective.row_losses`; verl has the value of the token at n at the place n − 1."""
        mask = data["loss_mask"]
        shifted = mask.values().roll(-1).to(log_probs.values().dtype)
        counted = torch.nested.nested_tensor_from_jagged(log_probs.values() * shifted, log_probs.offsets())
        return -_row_sums(counted) / _row_sums(mask)


def _jagged(rows: Sequence[tuple[int, ...]]) -> Tensor:
    return torch.nested.as_nested_tensor([torch.tensor(row) for row in rows], layout=torch.jagged)


def _row_sums(jagged: Any) -> Tensor:
    """(B,) or (B, …) sums of the rows of (B, j, …)."""
    row = torch.arange(jagged.shape[0], device=jagged.device).repeat_interleave(jagged.offsets().diff())
    values = jagged.values()
    return values.new_zeros((jagged.shape[0], *values.shape[1:])).index_add(0, row, values)
