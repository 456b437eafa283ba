"""Rev(o, t, S): which tokens of a completion are masked again, as a pure function of seed, key and mask ratio.

The randomness S is controlled (MaskGRPO, arXiv 2510.02880): the policy, the old policy and the reference see the same
mask. Uniforms come from a counter-based integer hash of (seed, key, rank of the position among the row's maskable
positions), so a mask does not depend on the other rows of the batch, on padding, on the device, on the number of
processes or on torch's random generators, none of which is read or changed.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from maskgrpo_plugin.diffusion.random import check_keys, combine_seed, uniforms

__all__ = [
    "REMASKING_MODES",
    "RemaskOutput",
    "ar_like_keep_probability",
    "least_noise",
    "mask_prompt",
    "remask",
    "response_noise",
]

REMASKING_MODES = ("ar_like", "random")

# which of the independent streams of one seed a draw belongs to
_COMPLETION_STREAM = (0, 0)
_PROMPT_STREAM = (0, 1)


class RemaskOutput(NamedTuple):
    """What `remask` returns.

    Attributes:
        noisy: (B, L) the tokens with the mask token written in, dtype of the tokens.
        masked: (B, L) bool, the masked positions; always a part of `maskable`.
    """

    noisy: Tensor
    masked: Tensor


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
) -> RemaskOutput:
    """Mask completions again at ratio t: ô = Rev(o, t, S) of arXiv 2510.02880.

    Modes, over the L_r maskable positions of each row (its response; nothing else counts towards t):
        ar_like: later positions are masked more, Algorithm 1; see `ar_like_keep_probability`.
        random: each position is masked with probability t, Algorithm 2.

    With the mask token 9, the tokens [5, 6, 7, 8], the first of them a prompt, and t = 1: noisy [5, 9, 9, 9].

    Args:
        tokens: (B, L) integer token ids.
        maskable: (B, L) bool or 0/1; which positions may be masked. The prompt and padding are not.
        ratio: mask ratio t in [0, 1], one number or a (B,) tensor.
        mode: one of `REMASKING_MODES`.
        seed: integer seed S of run, step and update; see `combine_seed`.
        keys: (B,) integers naming each row's random stream; rows that share a key, a region length and a ratio share
            the mask.
        mask_token_id: id of the mask token.

    Returns:
        `RemaskOutput(noisy, masked)`, both (B, L) on the device of `tokens`; `tokens` is not changed.

    Raises:
        ValueError: unknown mode, a ratio out of range, or a shape or dtype that does not fit.
    """
    if mode not in REMASKING_MODES:
        raise ValueError(f"unknown remasking mode {mode!r}; available: {', '.join(REMASKING_MODES)}")
    if tokens.dim() != 2 or tokens.is_floating_point() or tokens.dtype == torch.bool:
        raise ValueError(f"tokens must be (B, L) integers, got shape {tuple(tokens.shape)} of {tokens.dtype}")
    maskable = _like_tokens("maskable", maskable, tokens).bool()
    row_ratio = _row_ratio(ratio, tokens)
    noise = response_noise(maskable, seed=seed, keys=keys)
    if mode == "ar_like":
        rank, length = _rank_and_length(maskable)
        keep = _ar_like_keep(rank.double(), length.double(), row_ratio)
    else:
        keep = 1.0 - row_ratio
    masked = maskable & ~(noise < keep)
    return RemaskOutput(noisy=tokens.masked_fill(masked, mask_token_id), masked=masked)


def response_noise(maskable: Tensor, *, seed: int, keys: Tensor) -> Tensor:
    """Uniforms in [0, 1) for the maskable positions of each row, by their rank among them.

    Args:
        maskable: (B, L) bool.
        seed: integer seed of run, step and update.
        keys: (B,) integers naming each row's random stream.

    Returns:
        (B, L) float64, meaningless where not maskable.
    """
    return _noise_by_rank(maskable, combine_seed(seed, *_COMPLETION_STREAM), keys)


def least_noise(noise: Tensor, region: Tensor, count: Tensor) -> Tensor:
    """The `count` positions of a region that have the least noise: a draw without replacement; (B, L) bool.

    With the noise [.3, .1, .9, .2], the region [1, 1, 1, 0] and the count 2: [1, 1, 0, 0].

    Args:
        noise: (B, L), finite; of the positions, see `response_noise`.
        region: (B, L) bool.
        count: (B, 1).
    """
    rank = noise.masked_fill(~region, torch.inf).argsort(-1).argsort(-1)
    return region & (rank < count)


def mask_prompt(tokens: Tensor, prompt: Tensor, ratio: float, *, seed: int, keys: Tensor, mask_token_id: int) -> Tensor:
    """Mask each prompt token with probability `ratio` (d1: 0.15), from a stream apart from the response's.

    Args:
        tokens: (B, L) ids of the canvas.
        prompt: (B, L) bool.
        ratio: in [0, 1]; 0 masks nothing.
        seed, keys: as in `remask`.
        mask_token_id: id of the mask token.

    Returns:
        (B, L) a new canvas, or `tokens` themselves where the ratio is 0.
    """
    if ratio == 0:
        return tokens
    hidden = prompt & (_noise_by_rank(prompt, combine_seed(seed, *_PROMPT_STREAM), keys) < ratio)
    return tokens.masked_fill(hidden, mask_token_id)


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


def _noise_by_rank(region: Tensor, seed: int, keys: Tensor) -> Tensor:
    """Uniforms (B, L) by the rank of each position among the region's positions of its row."""
    check_keys(keys)
    if keys.shape[0] != region.shape[0]:
        raise ValueError(f"keys must have one entry per row of tokens ({region.shape[0]}), got {keys.shape[0]}")
    rank, _ = _rank_and_length(region)
    return uniforms(seed, keys.to(region.device), rank)


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
