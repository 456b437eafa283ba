"""From a jagged batch of verl to the forward passes of an estimator, and back.

A *unit* is what a micro-batch may hold by itself: one pass of a completion where the estimator is separable, else all
passes of a completion. Units are built on the host, so that every length and index is known without asking the device.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor
from verl.utils import tensordict_utils as tu

from maskgrpo_plugin.diffusion.estimators import Estimator, Pass, Rows
from maskgrpo_plugin.diffusion.estimators.plan import UNCOND_IDS, StepPlan

PER_UPDATE = ("old_log_probs", "ref_log_prob")


def rows_of(data: TensorDict, plan: StepPlan, estimator: Estimator, mask_token_id: int) -> Rows:
    """The completions of a jagged batch, right-padded.

    Args:
        data: with jagged `input_ids` (B, j), `prompts`, `responses`, `response_mask` (B, r), `mask_key` (B,), and the
            rollout fields that the estimator requires, jagged (B, r).
        plan: the step's plan.
        estimator: the plan's estimator.
        mask_token_id: id of the mask token.
    """
    tokens = data["input_ids"].to_padded_tensor(padding=0)
    column = torch.arange(tokens.shape[1])
    attended = column < data["input_ids"].offsets().diff().unsqueeze(1)
    prompt = column < data["prompts"].offsets().diff().unsqueeze(1)
    written = attended & ~prompt

    def place(values: Tensor, padding: Any) -> Tensor:
        canvas = torch.full(tokens.shape, padding, dtype=values.dtype)
        canvas[written] = values
        return canvas

    return Rows(
        tokens=tokens,
        response=place(data["response_mask"].values().bool(), False),
        prompt=prompt & attended,
        attended=attended,
        keys=data["mask_key"],
        mask_token_id=mask_token_id,
        stop_token_ids=plan.stop_token_ids,
        **{name: place(data[name].values(), -1) for name in estimator.requires},
    )


def make_units(
    data: TensorDict, rows: Rows, passes: Sequence[Pass], estimator: Estimator, update: int
) -> tuple[TensorDict, list[int]]:
    """Expand a batch to the units of its passes.

    Args:
        data: the jagged batch of `rows`; old and reference log-probabilities as (B, r, updates).
        rows, passes: of one update.
        estimator: that made the passes.
        update: index of the inner update.

    Returns:
        The units as a jagged batch, and the row of each. Beside verl's fields a unit has `line_ids`, `line_targets`
        and `line_scored` (jagged; its passes one after another, without what is not attended to), `line_lengths`
        (U, passes), `line_scored_count` (U,), `scored` and `weight` (jagged, passes · j), `maskable` (U,) tokens, and
        `loss_mask`, `response_mask` (jagged, r) of the tokens that its loss counts. Passes that score nothing of a row
        make no unit where the estimator is separable and there are several.
    """
    noisy, scored, weight = (
        torch.stack([getattr(p, name) for p in passes], dim=1) for name in ("noisy", "scored", "weight")
    )
    if estimator.separable and len(passes) > 1:
        row_index, number = scored.any(-1).nonzero(as_tuple=True)
        if not len(row_index):
            row_index = number = torch.zeros(1, dtype=torch.int64)
        noisy, scored, weight = (part[row_index, number].unsqueeze(1) for part in (noisy, scored, weight))
    else:
        row_index = torch.arange(len(rows.tokens))
    units = tu.index_select_tensor_dict(_at_update(data, update).exclude("mask_key", *estimator.requires), row_index)
    kept, whole = (
        part[row_index].unsqueeze(1).expand(scored.shape) for part in (estimator.attended(rows), rows.attended)
    )
    units["line_ids"] = _jagged(noisy, kept)
    units["line_targets"] = _jagged(rows.tokens[row_index].unsqueeze(1).expand(scored.shape), kept)
    units["line_scored"] = _jagged(scored, kept)
    units["line_lengths"] = kept.sum(-1)
    units["line_scored_count"] = scored.sum((1, 2))
    units["scored"] = _jagged(scored, whole)
    units["weight"] = _jagged(weight, whole)
    units["maskable"] = estimator.maskable(rows)[row_index].sum(-1)
    counted = estimator.counted(rows, passes)[row_index]
    if estimator.separable:
        counted = counted & scored[:, 0]
    written = (rows.attended & ~rows.prompt)[row_index]
    in_loss = torch.nested.nested_tensor_from_jagged(counted[written], units["responses"].offsets())
    units["loss_mask"] = units["response_mask"] = in_loss
    if UNCOND_IDS in units.keys():
        _add_uncond(units, noisy, scored, kept, rows.prompt[row_index])
    return units, row_index.tolist()


def pad_units(units: TensorDict, count: int) -> TensorDict:
    """Fill up to `count` units with copies of the shortest one that score nothing, so that all ranks have as many."""
    missing = count - len(units)
    if missing <= 0:
        return units
    shortest = int(units["input_ids"].offsets().diff().argmin())
    padded = tu.index_select_tensor_dict(units, torch.tensor([*range(len(units)), *[shortest] * missing]))
    for name in ("line_scored", "scored", "loss_mask", "response_mask", "uncond_scored"):
        if name in padded.keys():
            values, offsets = padded[name].values().clone(), padded[name].offsets()
            values[offsets[len(units)] :] = False
            padded[name] = torch.nested.nested_tensor_from_jagged(values, offsets)
    return padded


@dataclass(frozen=True)
class Line:
    """The forward of a micro-batch as one packed line, on the host.

    Attributes:
        ids: (T,) tokens of all units' passes, one after another; with guidance those without the prompt's text follow.
        lengths: of the rows in the line.
        places: (N,) places of the scored tokens in the line; with guidance 2N, in the same order.
        targets: (N,) their true tokens.
        index: (N,) where each lies in (U, passes, L).
        shape: U units, passes per unit, L positions of the longest.
        scored, weight: (U, passes, L).
        packed: (Σ j,) index into (U, L) of the units' tokens without padding.
        offsets: (U + 1,) of the units in `packed`.
    """

    ids: Tensor
    lengths: list[int]
    places: Tensor
    targets: Tensor
    index: Tensor
    shape: tuple[int, int, int]
    scored: Tensor
    weight: Tensor
    packed: Tensor
    offsets: Tensor


def make_line(units: TensorDict, *, guided: bool) -> Line:
    """Lay the passes of a micro-batch of units one after another."""
    ids, line_scored = units["line_ids"].values(), units["line_scored"].values()
    places = line_scored.nonzero().squeeze(-1)
    lengths = units["line_lengths"].flatten().tolist()
    targets = units["line_targets"].values()[places]
    if guided:
        uncond = units["uncond_scored"].values().nonzero().squeeze(-1) + ids.numel()
        ids = torch.cat([ids, units["uncond_line_ids"].values()])
        places = torch.cat([places, uncond])
        lengths = lengths + units["uncond_lengths"].flatten().tolist()
    offsets = units["input_ids"].offsets()
    own = offsets.diff()
    passes = units["line_lengths"].shape[1]
    longest = int(own.max())
    inside = torch.arange(longest) < own.unsqueeze(1)
    every = inside.unsqueeze(1).expand(-1, passes, -1)
    scored, weight = (torch.zeros(every.shape, dtype=units[name].dtype) for name in ("scored", "weight"))
    scored[every], weight[every] = units["scored"].values(), units["weight"].values()
    return Line(
        ids=ids,
        lengths=lengths,
        places=places,
        targets=targets,
        index=scored.flatten().nonzero().squeeze(-1),
        shape=(len(units), passes, longest),
        scored=scored,
        weight=weight,
        packed=inside.flatten().nonzero().squeeze(-1),
        offsets=offsets,
    )


def _at_update(data: TensorDict, update: int) -> TensorDict:
    """Shallow copy with the old and reference log-probabilities of one update, jagged (B, r)."""
    data = data.clone(recurse=False)
    for key in PER_UPDATE:
        if key in data.keys() and data[key].dim() == 3:
            values = data[key].values()
            column = min(update, values.shape[-1] - 1)
            data[key] = torch.nested.nested_tensor_from_jagged(values[..., column], data[key].offsets())
    return data


def _jagged(padded: Tensor, kept: Tensor) -> Tensor:
    """The kept entries of (U, passes, L) as jagged (U, ·)."""
    offsets = torch.nn.functional.pad(kept.sum((1, 2)).cumsum(0), (1, 0))
    return torch.nested.nested_tensor_from_jagged(padded[kept], offsets)


def _add_uncond(units: TensorDict, noisy: Tensor, scored: Tensor, kept: Tensor, prompt: Tensor) -> None:
    """Add each pass's line with the prompt of `uncond_ids` in place of its own, and the places that it scores."""
    uncond = units[UNCOND_IDS].to_padded_tensor(padding=0)
    own = units[UNCOND_IDS].offsets().diff()
    passes = noisy.shape[1]
    heads = (torch.arange(uncond.shape[1]) < own.unsqueeze(1)).unsqueeze(1).expand(-1, passes, -1)
    bodies = kept & ~prompt.unsqueeze(1)
    keep = torch.cat([heads, bodies], dim=-1)
    ids = torch.cat([uncond.unsqueeze(1).expand(-1, passes, -1), noisy], dim=-1)
    units["uncond_line_ids"] = _jagged(ids, keep)
    units["uncond_scored"] = _jagged(torch.cat([torch.zeros_like(heads), scored], dim=-1), keep)
    units["uncond_lengths"] = keep.sum(-1)
