"""Rev(o, t, S): which tokens of a completion are masked again, as a pure function of seed, key and mask ratio.

The randomness S is controlled (MaskGRPO, arXiv 2510.02880): the policy, the old policy and the reference see the same
mask. Uniforms come from a counter-based integer hash of (seed, level, key, rank of the position among the row's
maskable positions), so a mask does not depend on the other rows of the batch, on padding, on the device, on the number
of processes or on torch's random generators, none of which is read or changed.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from maskgrpo_plugin.diffusion.random import check_keys, combine_seed, uniforms

REMASKING_MODES = ("ar_like", "random", "full", "coupled", "trajectory")

# which of the independent streams of one (seed, level) a draw belongs to
_COMPLETION_STREAM = 0
_PROMPT_STREAM = 1


class RemaskOutput(NamedTuple):
    """What `remask` returns.

    Attributes:
        noisy: (B, L) the tokens with the mask token written in, dtype of the tokens.
        masked: (B, L) bool, the positions whose likelihood enters the loss; always a part of `maskable`.
    """

    noisy: Tensor
    masked: Tensor


def ar_like_keep_probability(length: int, ratio: float) -> Tensor:
    """Probability that each response position stays visible under AR-like remasking (arXiv 2510.02880, Alg. 1).

    With d = linspace(1, 0, length) the paper keeps position n with probability min(1, d_n·(1−t)·length/Σd). For
    t >= 0.5 this is that curve. For t < 0.5 the minimum would mask too much, so the scale c is the exact solution of
    Σ min(1, c·d_n) = (1−t)·length; where even c → ∞ keeps too few (t < 1/length, as d ends in 0), the last position
    takes what is left. The expected masked share is therefore t for every length.

    Args:
        length: number of response positions, 1 or more.
        ratio: mask ratio t in [0, 1].

    Returns:
        (length,) float64 on the CPU, not increasing, values in [0, 1].

    Raises:
        ValueError: `length` or `ratio` is out of range.
    """
    if length < 1:
        raise ValueError(f"length must be 1 or more, got {length}")
    _check_ratio("ratio", ratio)
    rank = torch.arange(length, dtype=torch.float64)
    return _ar_like_keep(rank, torch.full_like(rank, length), torch.full_like(rank, ratio))


@torch.no_grad()
def remask(
    tokens: Tensor,
    maskable: Tensor,
    ratio: float | Tensor,
    mode: str,
    *,
    seed: int,
    keys: Tensor,
    mask_token_id: int,
    reveal_step: Tensor | None = None,
    level: int = 0,
    prompt_mask: Tensor | None = None,
    prompt_mask_ratio: float = 0.0,
    complement: bool = False,
) -> RemaskOutput:
    """Mask completions again at ratio t: ô = Rev(o, t, S) of arXiv 2510.02880 and of the baselines.

    Modes, over the L_r maskable positions of each row (its response; nothing else counts towards t):
        ar_like: later positions are masked more, Alg. 1; see `ar_like_keep_probability`.
        random: each position is masked with probability t, Alg. 2 (also UniGRPO).
        full: all maskable positions are masked whatever t; prompt positions are masked in `noisy` with probability
            `prompt_mask_ratio` and never enter `masked` (diffu-GRPO of d1, which uses 0.15).
        coupled: as `random`; with `complement=True` exactly the maskable positions that the call without it leaves
            visible (DiffuCoder).
        trajectory: the round(t·L_r) positions that the sampler revealed latest; no randomness (TraceRL).

    Args:
        tokens: (B, L) integer token ids.
        maskable: (B, L) bool or 0/1; which positions may be masked. The prompt and padding are not.
        ratio: mask ratio t in [0, 1], one number or a (B,) tensor.
        mode: one of `REMASKING_MODES`.
        seed: integer seed S of the run and step; see `combine_seed`.
        keys: (B,) integers naming each row's random stream; rows that share a key, a level, a region length and a ratio
            share the mask.
        mask_token_id: id of the mask token.
        reveal_step: (B, L) integers, for `trajectory`: the step at which the sampler revealed the position; a negative
            number (never revealed) counts as last. Among equal steps later positions are masked first.
        level: index of the mask level; levels have independent streams.
        prompt_mask: (B, L) bool or 0/1, for `full`: the prompt's positions; a position that is also maskable counts as
            maskable.
        prompt_mask_ratio: in [0, 1], for `full` only; more than 0 needs `prompt_mask`.
        complement: for `coupled` only.

    Returns:
        `RemaskOutput(noisy, masked)`, both (B, L) on the device of `tokens`; `tokens` is not changed.

    Raises:
        ValueError: unknown mode, a ratio out of range, a shape or dtype that does not fit, `trajectory` without
            `reveal_step`, or an option that the mode does not have.
    """
    # 1. check, and bring everything to the device of the tokens
    _check_mode(mode, reveal_step, prompt_mask, prompt_mask_ratio, complement)
    if tokens.dim() != 2 or tokens.is_floating_point() or tokens.dtype == torch.bool:
        raise ValueError(f"tokens must be (B, L) integers, got shape {tuple(tokens.shape)} of {tokens.dtype}")
    check_keys(keys)
    if keys.shape[0] != tokens.shape[0]:
        raise ValueError(f"keys must have one entry per row of tokens ({tokens.shape[0]}), got {keys.shape[0]}")
    keys = keys.to(tokens.device)
    maskable = _like_tokens("maskable", maskable, tokens).bool()
    row_ratio = _row_ratio(ratio, tokens)

    # 2. rank of each position among the maskable ones of its row, and their number
    rank, length = _rank_and_length(maskable)

    # 3. the positions to predict
    if mode == "full":
        masked = maskable
    elif mode == "trajectory":
        assert reveal_step is not None  # checked above
        masked = maskable & _latest(_like_tokens("reveal_step", reveal_step, tokens), maskable, length, row_ratio)
    else:
        if mode == "ar_like":
            keep = _ar_like_keep(rank.double(), length.double(), row_ratio)
        else:
            keep = 1.0 - row_ratio
        visible = uniforms(combine_seed(seed, level, _COMPLETION_STREAM), keys, rank) < keep
        masked = maskable & (visible if complement else ~visible)

    # 4. write the mask token, in `full` also over a part of the prompt
    hidden = masked
    if prompt_mask is not None and prompt_mask_ratio > 0:
        prompt = _like_tokens("prompt_mask", prompt_mask, tokens).bool() & ~maskable
        prompt_rank, _ = _rank_and_length(prompt)
        noise = uniforms(combine_seed(seed, level, _PROMPT_STREAM), keys, prompt_rank)
        hidden = masked | (prompt & (noise < prompt_mask_ratio))
    return RemaskOutput(noisy=tokens.masked_fill(hidden, mask_token_id), masked=masked)


def _rank_and_length(region: Tensor) -> tuple[Tensor, Tensor]:
    """Rank (B, L) of each position among the region's positions of its row, and the region's size (B, 1), int64."""
    count = region.to(torch.int64).cumsum(dim=1)
    return (count - 1).clamp(min=0), region.sum(dim=1, keepdim=True)


def _ar_like_keep(rank: Tensor, length: Tensor, ratio: Tensor) -> Tensor:
    """Closed form of `ar_like_keep_probability`, broadcast over float64 tensors.

    With d_n = (L−1−n)/(L−1) the first m = ceil(L·(1−2t)) positions reach 1, and the rest share what is to be kept,
    K = (1−t)·L, in proportion to d: c·d_n = 2·(K−m)·(L−1−n) / ((L−1−m)·(L−m)).
    """
    kept = (1.0 - ratio) * length
    certain = torch.minimum((length * (1.0 - 2.0 * ratio)).ceil().clamp(min=0.0), (length - 1.0).clamp(min=0.0))
    rest = length - certain
    slope = 2.0 * (kept - certain) / ((rest - 1.0) * rest).clamp(min=1.0)
    keep = slope * (length - 1.0 - rank)
    # only the last position is left: d is 0 there, and it takes the remainder (also the case of length 1)
    keep = torch.where(rest <= 1.0, kept - certain, keep)
    return torch.where(rank < certain, torch.ones_like(keep), keep).clamp(0.0, 1.0)


def _latest(reveal_step: Tensor, maskable: Tensor, length: Tensor, ratio: Tensor) -> Tensor:
    """(B, L) bool: the round(t·L_r) maskable positions of each row that were revealed latest."""
    last = torch.iinfo(torch.int64).max
    order = reveal_step.to(torch.int64)
    order = torch.where(order < 0, torch.full_like(order, last), order)
    order = torch.where(maskable, order, torch.full_like(order, -1))
    by_time = order.argsort(dim=1, stable=True)
    place = torch.empty_like(by_time)
    place.scatter_(1, by_time, torch.arange(order.shape[1], device=order.device).expand_as(order))
    wanted = (ratio * length.double()).round().to(torch.int64)
    return place >= order.shape[1] - wanted


def _check_mode(
    mode: str, reveal_step: Tensor | None, prompt_mask: Tensor | None, prompt_mask_ratio: float, complement: bool
) -> None:
    if mode not in REMASKING_MODES:
        raise ValueError(f"unknown remasking mode {mode!r}; available: {', '.join(REMASKING_MODES)}")
    if mode == "trajectory" and reveal_step is None:
        raise ValueError("remasking mode 'trajectory' needs reveal_step, the step at which each token was revealed")
    if complement and mode != "coupled":
        raise ValueError(f"complement=True belongs to remasking mode 'coupled', not to {mode!r}")
    _check_ratio("prompt_mask_ratio", prompt_mask_ratio)
    if prompt_mask_ratio > 0 and mode != "full":
        raise ValueError(f"prompt_mask_ratio > 0 belongs to remasking mode 'full', not to {mode!r}")
    if prompt_mask_ratio > 0 and prompt_mask is None:
        raise ValueError(f"prompt_mask_ratio={prompt_mask_ratio} needs prompt_mask")


def _check_ratio(name: str, ratio: float) -> None:
    if not 0.0 <= ratio <= 1.0:
        raise ValueError(f"{name} must be in [0, 1], got {ratio}")


def _like_tokens(name: str, value: Tensor, tokens: Tensor) -> Tensor:
    if value.shape != tokens.shape:
        raise ValueError(f"{name} must have the shape of tokens {tuple(tokens.shape)}, got {tuple(value.shape)}")
    return value.to(tokens.device)


def _row_ratio(ratio: float | Tensor, tokens: Tensor) -> Tensor:
    """The ratio as (B, 1) float64 on the device of the tokens."""
    rows = tokens.shape[0]
    if not isinstance(ratio, Tensor):
        _check_ratio("ratio", ratio)
        return torch.full((rows, 1), float(ratio), dtype=torch.float64, device=tokens.device)
    if ratio.shape != (rows,):
        raise ValueError(f"ratio must be a number or have shape ({rows},), got {tuple(ratio.shape)}")
    inside = (ratio >= 0) & (ratio <= 1)
    if not bool(inside.all()):
        raise ValueError(f"ratio must be in [0, 1], got {ratio[~inside].tolist()}")
    return ratio.to(device=tokens.device, dtype=torch.float64).unsqueeze(1)
