"""Importance estimation on a padded batch: which tokens a mask level hides, and the noisy canvas the model sees."""

from dataclasses import dataclass, field

import torch

from maskgrpo_plugin.diffusion.random import combine_seed
from maskgrpo_plugin.diffusion.remasking import remask

_LOWEST_LEVEL, _HIGHEST_LEVEL = 0.001, 0.999
_LEVEL_STREAM = 0x6C6576656C  # "level": keeps these draws apart from the masks of the same seed and step

UNCOND_IDS = "uncond_ids"  # batch field: the prompt without its text, for guidance


def uniform_levels(mu: int, *, seed: int, step: int) -> list[float]:
    """Mask levels of UniGRPO: μ independent uniform draws from [0.001, 0.999].

    Draw j depends on (seed, step, j) alone, so that every process finds the same levels.

    Args:
        mu: number of levels, 1 or more.
        seed: seed of the run.
        step: training step.

    Raises:
        ValueError: mu is less than 1.
    """
    uniforms = [(combine_seed(_LEVEL_STREAM, seed, step, j) >> 10) * 2.0**-53 for j in range(1, mu + 1)]
    return [_LOWEST_LEVEL + (_HIGHEST_LEVEL - _LOWEST_LEVEL) * u for u in uniforms]


@dataclass
class EstimationPlan:
    """Everything that decides the masks of one training step; plain values, so that it travels to every worker.

    Attributes:
        mode: a remasking mode (`ar_like`, `random`, `full`, `coupled`, `trajectory`).
        complement: also evaluate each mask's complement, so that every token is covered once (coupled estimator).
        ratios: mask ratio t_j of each level, each in (0, 1].
        weights: factor on each level's loss.
        prompt_mask_ratio: share of prompt tokens hidden as well (never in the loss).
        canvas: `full`, or `trimmed` where tokens after the first end token are hidden from the model.
        train_on_tail: whether tokens after the first end token may be masked.
        seed: the run's mask seed.
        step: the training step.
        stop_token_ids: ids that end a response.
        cfg_scale: guidance weight w of the log-probabilities; 0 for none.
    """

    mode: str
    ratios: list[float]
    weights: list[float]
    complement: bool = False
    prompt_mask_ratio: float = 0.0
    canvas: str = "full"
    train_on_tail: bool = False
    seed: int = 0
    step: int = 0
    stop_token_ids: list[int] = field(default_factory=list)
    cfg_scale: float = 0.0

    def __len__(self) -> int:
        return len(self.ratios)


@dataclass
class View:
    """One forward pass of a level, each (B, L): `noisy` is the model's input, `masked` the tokens it must explain,
    `maskable` those that might have been masked.
    """

    noisy: torch.Tensor
    masked: torch.Tensor
    maskable: torch.Tensor


def after_first_stop(tokens: torch.Tensor, response: torch.Tensor, stop_token_ids: list[int]) -> torch.Tensor:
    """Mark response positions strictly after the first end token.

    Args:
        tokens: (B, L) token ids.
        response: (B, L) bool, response positions.
        stop_token_ids: ids that end a response; none marks nothing.

    Returns:
        (B, L) bool.
    """
    if not stop_token_ids:
        return torch.zeros_like(response)
    stops = torch.isin(tokens, torch.tensor(stop_token_ids, device=tokens.device)) & response
    seen = stops.long().cumsum(-1)
    return ((seen - stops.long()) > 0) & response


def level_views(
    tokens: torch.Tensor,
    response: torch.Tensor,
    attended: torch.Tensor,
    keys: torch.Tensor,
    plan: EstimationPlan,
    level: int,
    *,
    mask_token_id: int,
    reveal_step: torch.Tensor | None = None,
) -> tuple[list[View], torch.Tensor]:
    """Build Rev(o, t_j, S_j) of one level for a batch (arXiv 2510.02880, Algorithms 1 and 2).

    The masks depend on (plan.seed, plan.step, level, key) and on each row's own tokens alone, so θ, θ_old and θ_ref
    see the same ones whatever the micro-batching, the order of rows or the number of ranks.

    Args:
        tokens: (B, L) prompt and response, padded anywhere.
        response: (B, L) bool, response tokens that may be learned.
        attended: (B, L) bool, false at padding.
        keys: (B,) int64, each row's random stream.
        plan: the step's estimation plan.
        level: index j − 1 into `plan.ratios`.
        mask_token_id: id of the mask token.
        reveal_step: (B, L) int64, needed by the `trajectory` mode.

    Returns:
        The views (one, or two with `plan.complement`), whose `masked` do not overlap; and `attended`, without the
        tail where the canvas is trimmed.
    """
    tail = after_first_stop(tokens, response, plan.stop_token_ids)
    maskable = response & ~tail
    if plan.canvas == "trimmed":
        attended = attended & ~tail
    elif plan.train_on_tail:
        maskable = response
    prompt = attended & ~response & ~tail
    views = []
    for complement in (False, True)[: 2 if plan.complement else 1]:
        noised = remask(
            tokens,
            maskable,
            plan.ratios[level],
            "coupled" if plan.complement else plan.mode,
            seed=combine_seed(plan.seed, plan.step, level),
            keys=keys,
            mask_token_id=mask_token_id,
            reveal_step=reveal_step,
            prompt_mask=prompt if plan.prompt_mask_ratio > 0 else None,
            prompt_mask_ratio=plan.prompt_mask_ratio,
            complement=complement,
        )
        views.append(View(noised.noisy, noised.masked, maskable))
    return views, attended
