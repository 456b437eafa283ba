"""Log-probabilities of given tokens on given canvases, computed alike by the actor and by a rollout server."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from tensordict import TensorDict

from maskgrpo_plugin.diffusion.estimators import clean_copy
from maskgrpo_plugin.diffusion.estimators.plan import StepPlan
from maskgrpo_plugin.diffusion.packing import Packing
from maskgrpo_plugin.models.experts import recorded_experts, routing_difference
from maskgrpo_plugin.workers.engine.passes import rows_of


@dataclass(frozen=True)
class Canvases:
    """Noisy completions and what is asked about them, as plain data.

    For a block-causal model `clean_ids` holds what stands at each place of `ids` once all is revealed.

    The canvas [5, 9, 9] with mask token 9, whose places 1 and 2 hold the tokens 7 and 6: ids [5, 9, 9], lengths [3],
    places [1, 2], targets [7, 6].

    Attributes:
        ids: tokens of all canvases, one after another.
        lengths: tokens of each canvas.
        places: of the tokens asked about, in `ids`.
        targets: their true tokens.
        clean_ids: as `ids`; None where attention is in both directions.
    """

    ids: list[int]
    lengths: list[int]
    places: list[int]
    targets: list[int]
    clean_ids: list[int] | None = None


def first_pass(data: TensorDict, plan: StepPlan, mask_token_id: int) -> Canvases:
    """The first pass of a step's first update on a few of its completions.

    Args:
        data: jagged batch, see `rows_of`.
        plan: the step's plan.
        mask_token_id: id of the mask token.
    """
    estimator = plan.build()
    rows = rows_of(data, plan, estimator, mask_token_id)
    noise = estimator.passes(rows, seed=plan.seed, step=plan.step, update=0)[0]
    kept = estimator.attended(rows)
    clean = None
    if rows.block_length is not None:
        clean = clean_copy(noise.noisy, rows.tokens, rows.prompt)[kept].tolist()
    return Canvases(
        ids=noise.noisy[kept].tolist(),
        lengths=kept.sum(-1).tolist(),
        places=noise.scored[kept].nonzero().squeeze(-1).tolist(),
        targets=rows.tokens[noise.scored].tolist(),
        clean_ids=clean,
    )


@dataclass(frozen=True)
class Scores:
    """What a model says of canvases, as plain data.

    Attributes:
        log_probs: of each token asked about.
        experts: of each layer with experts, those that its router chose, (tokens, k) int16.
    """

    log_probs: list[float]
    experts: list[np.ndarray]

    def gap(self, other: "Scores") -> float:
        """Mean absolute difference of the log-probabilities of two models."""
        return float(np.abs(np.subtract(self.log_probs, other.log_probs)).mean())

    def routing_difference(self, other: "Scores") -> float | None:
        """Share of the choices of experts that the other model's routers did not make; None without experts."""
        pairs = list(zip(self.experts, other.experts, strict=True))
        found = [routing_difference(torch.from_numpy(one), torch.from_numpy(two)) for one, two in pairs]
        return sum(found) / len(found) if found else None


@torch.no_grad()
def score_canvases(model: Any, canvases: Canvases, device: torch.device | str) -> Scores:
    """Log-probability of each token asked about, and the experts that were chosen on the way.

    Args:
        model: a mask predictor, see `MaskPredictorModel`.
        canvases: see `Canvases`.
        device: of the model.
    """
    line, places, targets = (
        torch.tensor(part, device=device) for part in (canvases.ids, canvases.places, canvases.targets)
    )
    clean = None if canvases.clean_ids is None else torch.tensor([canvases.clean_ids], device=device)
    with recorded_experts(model) as experts:
        output = model(
            input_ids=line.unsqueeze(0),
            clean_ids=clean,
            packing=Packing.from_lengths(canvases.lengths, device),
            logits_positions=places,
            target_ids=targets,
        )
    return Scores(output.log_probs.float().tolist(), [chosen.cpu().to(torch.int16).numpy() for chosen in experts])
