"""From a jagged batch of verl to the forward passes of an estimator, and back.

A *unit* is what a micro-batch may hold by itself: one pass of a completion where the estimator is separable and has
several, the passes of one of its estimates where each stands for itself, else all passes of a completion. verl divides
numbers of units into micro-batches; what the units hold stays on the host until a micro-batch gathers its own, so that
every length and index is known without asking the device.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tensordict import NonTensorData, TensorDict
from torch import Tensor
from torch.nn.functional import pad

from maskgrpo_plugin.diffusion.estimators import Estimator, Pass, Rows, clean_copy
from maskgrpo_plugin.diffusion.estimators.plan import UNCOND_IDS, StepPlan

PER_UPDATE = ("old_log_probs", "ref_log_prob")
LOSS_WEIGHT = "rollout_is_weights"  # verl's name of what a loss multiplies its terms by


def rows_of(data: TensorDict, plan: StepPlan, estimator: Estimator, mask_token_id: int) -> Rows:
    """The completions of a jagged batch, right-padded.

    Args:
        data: with jagged `input_ids` (B, j), `prompts`, `responses`, `response_mask` (B, r), `mask_key` (B,), and the
            fields that the estimator requires or accepts, jagged (B, r).
        plan: the step's plan.
        estimator: the plan's estimator.
        mask_token_id: id of the mask token.
    """
    attended = _inside(data["input_ids"])
    prompt = _inside(data["prompts"], attended.shape[1])
    written = attended & ~prompt
    return Rows(
        tokens=_place(data["input_ids"], attended, 0),
        response=_place(data["response_mask"].bool(), written, False),
        prompt=prompt,
        attended=attended,
        keys=data["mask_key"],
        mask_token_id=mask_token_id,
        stop_token_ids=plan.stop_token_ids,
        block_length=plan.block_length,
        **{name: _place(data[name], written, -1) for name in _read_fields(data, estimator)},
    )


def _read_fields(data: TensorDict, estimator: Estimator) -> list[str]:
    """Fields beside the tokens that the estimator reads in this batch."""
    return [*estimator.requires, *(name for name in estimator.accepts if name in data.keys())]


@dataclass(frozen=True)
class Units:
    """The passes of a batch at one update, on the host, and how they are divided into units.

    Two completions with two passes each, the second of which scores nothing in its second pass, split and filled up to
    four units: row [0, 0, 1, 0], number [0, 1, 0, 0], scoring 3.

    Attributes:
        data: the jagged batch, with the old and reference log-probabilities of this update, (B, r, estimates).
        rows: its B completions.
        attended: (B, L) bool, what the passes' lines hold.
        maskable: (B,) tokens that might have been masked.
        counted: (B, L) bool, tokens that the loss counts.
        noisy, scored, weight: (B, N, L) of the N passes.
        row: (U,) int64, each unit's completion.
        loss_weight: (B, N) of the passes, the factor of the loss; None: 1.
        number: (U,) int64, each unit's part of the passes; None where a unit is all N passes of its completion.
        scoring: number of units at the beginning that are real; those after them score nothing.
        separable: the estimator's.
        parts: equal runs that the passes of a completion are divided into.
        estimates: the estimator's.
    """

    data: TensorDict
    rows: Rows
    attended: Tensor
    maskable: Tensor
    counted: Tensor
    noisy: Tensor
    scored: Tensor
    weight: Tensor
    row: Tensor
    number: Tensor | None
    scoring: int
    separable: bool
    parts: int = 1
    estimates: int = 1
    loss_weight: Tensor | None = None

    def __len__(self) -> int:
        return len(self.row)

    @property
    def width(self) -> int:
        """Passes per unit."""
        return self.noisy.shape[1] // self.parts

    def of(self, passes: Tensor, chosen: Tensor) -> Tensor:
        """Values (B, N, L) of the passes, of the chosen units (u,) alone; (u, passes, L)."""
        row = self.row[chosen]
        return passes[row] if self.number is None else _runs(passes, self.parts)[row, self.number[chosen]]

    def scored_of(self, chosen: Tensor) -> Tensor:
        """(u, passes, L) bool, whose log-probability is asked for."""
        return self.of(self.scored, chosen) & (chosen < self.scoring).view(-1, 1, 1)

    def counted_of(self, chosen: Tensor) -> Tensor:
        """(u, L) bool, the tokens that the loss counts in each of the chosen units."""
        counted = self.counted[self.row[chosen]] & (chosen < self.scoring).unsqueeze(1)
        return counted & self.scored_of(chosen)[:, 0] if self.separable else counted

    def estimate_of(self, chosen: Tensor) -> Tensor:
        """(u,) int64, which of its completion's estimates each of the chosen units has a part in."""
        if self.number is None or self.estimates == 1:
            return torch.zeros_like(chosen)
        return self.number[chosen]

    def to_batch(self) -> TensorDict:
        """The batch that verl divides into micro-batches: `unit` (U,) the units' numbers, `input_ids` and
        `attention_mask` (U, L), whose lengths its token budgets count, and `loss_mask` (U, L), whose sum it takes.
        """
        every = torch.arange(len(self))
        tensors = {
            "unit": every,
            "input_ids": self.rows.tokens[self.row],
            "attention_mask": self.attended[self.row],
            "loss_mask": self.counted_of(every),
        }
        settings = {key: NonTensorData(value.data) for key, value in self.data.items() if _is_setting(value)}
        return TensorDict({**tensors, **settings}, batch_size=len(self))

    def fields(self, chosen: Tensor) -> dict[str, Any]:
        """verl's jagged fields of the chosen units' completions; `loss_mask` and `response_mask` (u, r) are the tokens
        that the loss counts.
        """
        row = self.row[chosen]
        found = {
            key: take_rows(value, row) if getattr(value, "is_nested", False) else value[row]
            for key, value in self.data.items()
            if not _is_setting(value)
        }
        for key in PER_UPDATE:
            if key in found and found[key].dim() == 3:
                found[key] = _column(found[key], self.estimate_of(chosen))
        written = (self.rows.attended & ~self.rows.prompt)[row]
        in_loss = _jagged(self.counted_of(chosen)[written], written.sum(-1))
        if self.loss_weight is not None:
            factor = self.loss_weight[row, self.estimate_of(chosen)].float()
            found[LOSS_WEIGHT] = _jagged(factor.repeat_interleave(written.sum(-1)), written.sum(-1))
        return found | {"loss_mask": in_loss, "response_mask": in_loss}


def scoring_units(passes: Sequence[Pass], estimator: Estimator) -> int:
    """How many pairs of a completion and a part of its passes score a token."""
    scored = torch.stack([p.scored.any(-1) for p in passes], dim=1)
    return int(_runs(scored, estimator.parts(len(passes))).any(-1).sum())


def units_per_rank(units: Sequence[int], size: int) -> int:
    """How many units every rank takes, so that all run as many micro-batches of `size` units; `units` (ranks,) are what
    they have: of [5, 2] by 4 it is 8.
    """
    return -(-max(*units, 1) // size) * size


def make_units(
    data: TensorDict,
    rows: Rows,
    passes: Sequence[Pass],
    estimator: Estimator,
    update: int,
    *,
    split: bool = False,
    count: int = 1,
) -> Units:
    """Divide the passes of a batch into units.

    Args:
        data: the jagged batch of `rows`; old and reference log-probabilities as (B, r, updates·estimates).
        rows, passes: of one update.
        estimator: that made the passes.
        update: index of the inner update.
        split: one unit per part of a completion's passes, without those that score nothing; else one per completion.
        count: number of units to fill up to, with copies of the shortest that score nothing.
    """
    noisy, scored, weight = (
        torch.stack([getattr(p, name) for p in passes], dim=1) for name in ("noisy", "scored", "weight")
    )
    number, parts = None, 1
    row = torch.arange(len(rows.tokens))
    if split:
        parts = estimator.parts(len(passes))
        row, number = _runs(scored.any(-1), parts).any(-1).nonzero(as_tuple=True)
    scoring, attended = len(row), estimator.attended(rows)
    if (missing := count - scoring) > 0:
        row = torch.cat([row, rows.attended.sum(-1).argmin().expand(missing)])
        number = None if number is None else pad(number, (0, missing))
    kept = _at_update(data, update, estimator.estimates).exclude("mask_key", *_read_fields(data, estimator))
    if estimator.from_record:
        kept["old_log_probs"] = data["sampler_log_prob"]
    factors = [p.loss_weight for p in passes if p.loss_weight is not None]
    return Units(
        data=kept,
        rows=rows,
        attended=attended,
        maskable=estimator.maskable(rows).sum(-1),
        counted=estimator.counted(rows, passes),
        noisy=noisy,
        scored=scored,
        weight=weight,
        row=row,
        number=number,
        scoring=scoring,
        separable=estimator.separable,
        parts=parts,
        estimates=estimator.estimates,
        loss_weight=torch.stack(factors, dim=1) if factors else None,
    )


@dataclass(frozen=True)
class Line:
    """The forward of a micro-batch as one packed line, on the host.

    Attributes:
        ids: (T,) tokens of all units' passes, one after another; with guidance those without the prompt's text follow.
        clean_ids: (T,) for a block-causal model, the clean tokens there, behind the pass's own prompt; else None.
        lengths: of the rows in the line.
        places: (N,) places of the scored tokens in the line; with guidance 2N, in the same order.
        targets: (N,) their true tokens.
        allowed: (N, K) int64, what they might have been, see `SamplingDistribution`; None where no sampler recorded it.
        index: (N,) where each lies in (U, passes, L).
        scored, weight: (U, passes, L), L positions of the longest unit.
        packed: (Σ j,) index into (U, L) of the units' tokens without padding.
        offsets: (U + 1,) of the units in `packed`.
    """

    ids: Tensor
    clean_ids: Tensor | None
    lengths: list[int]
    places: Tensor
    targets: Tensor
    allowed: Tensor | None
    index: Tensor
    scored: Tensor
    weight: Tensor
    packed: Tensor
    offsets: Tensor


def make_line(units: Units, chosen: Tensor, *, guided: bool) -> Line:
    """Lay the passes of the chosen units (u,) one after another.

    Args:
        units: of the batch.
        chosen: numbers of the micro-batch's units.
        guided: whether each pass has a second line, with the prompt `uncond_ids` in place of its own.
    """
    row = units.row[chosen]
    inside = units.rows.attended[row]
    own = inside.sum(-1)
    longest = int(own.max())
    inside, kept = inside[:, :longest], units.attended[row, :longest]
    noisy, weight, scored = (
        part[..., :longest]
        for part in (units.of(units.noisy, chosen), units.of(units.weight, chosen), units.scored_of(chosen))
    )
    kept = kept.unsqueeze(1).expand(scored.shape)
    ids, lengths, places = noisy[kept], kept.sum(-1), scored[kept].nonzero().squeeze(-1)
    tokens, prompt = (
        part[row, :longest].unsqueeze(1).expand(scored.shape) for part in (units.rows.tokens, units.rows.prompt)
    )
    clean_ids = None if units.rows.block_length is None else clean_copy(noisy, tokens, prompt)[kept]
    if guided:
        uncond_ids, uncond_scored, uncond_lengths = _uncond_line(units, row, noisy, scored, kept)
        places = torch.cat([places, uncond_scored.nonzero().squeeze(-1) + len(ids)])
        ids, lengths = torch.cat([ids, uncond_ids]), torch.cat([lengths, uncond_lengths])
    return Line(
        ids=ids,
        clean_ids=clean_ids,
        lengths=lengths.flatten().tolist(),
        places=places,
        targets=tokens[scored],
        allowed=_allowed(units.rows, row, scored),
        index=scored.flatten().nonzero().squeeze(-1),
        scored=scored,
        weight=weight,
        packed=inside.flatten().nonzero().squeeze(-1),
        offsets=pad(own.cumsum(0), (1, 0)),
    )


def _allowed(rows: Rows, row: Tensor, scored: Tensor) -> Tensor | None:
    """What the tokens `scored` (u, passes, L) of the completions `row` (u,) might have been, (N, K)."""
    if rows.sampler_allowed is None:
        return None
    unit, _, place = scored.nonzero(as_tuple=True)
    return rows.sampler_allowed[row[unit], place]


def take_rows(jagged: Any, row: Tensor) -> Tensor:
    """Rows (u,) of a jagged tensor (B, j, …): of [[5], [6, 7]] the rows [1, 0, 1] are [[6, 7], [5], [6, 7]]."""
    lengths = jagged.offsets().diff()[row]
    shift = jagged.offsets()[row] - (lengths.cumsum(0) - lengths)
    places = torch.arange(int(lengths.sum())) + shift.repeat_interleave(lengths)
    return _jagged(jagged.values()[places], lengths)


def _jagged(values: Tensor, lengths: Tensor) -> Tensor:
    """A jagged tensor that knows its longest row: torch pads others to the number of all their values."""
    offsets = pad(lengths.cumsum(0), (1, 0))
    return torch.nested.nested_tensor_from_jagged(values, offsets, max_seqlen=int(lengths.max()))


def _inside(jagged: Any, width: int | None = None) -> Tensor:
    """(B, L) bool, true at the columns of each row of (B, j); L is the longest row's, or `width`."""
    lengths = jagged.offsets().diff()
    return torch.arange(int(lengths.max()) if width is None else width) < lengths.unsqueeze(1)


def _place(jagged: Any, where: Tensor, padding: Any) -> Tensor:
    """The values of (B, j, …) at the places `where` (B, L) bool, row by row, and `padding` elsewhere."""
    values = jagged.values()
    found = torch.full((*where.shape, *values.shape[1:]), padding, dtype=values.dtype)
    found[where] = values
    return found


def _is_setting(value: Any) -> bool:
    """Whether a field of a batch is one value for all rows, and no tensor."""
    return isinstance(value, NonTensorData)


def _at_update(data: TensorDict, update: int, estimates: int) -> TensorDict:
    """Shallow copy with the old and reference log-probabilities of one update, jagged (B, r, estimates)."""
    data = data.clone(recurse=False)
    for key in PER_UPDATE:
        if key in data.keys() and data[key].dim() == 3:
            values = data[key].values().unflatten(-1, (-1, estimates))
            at_update = values[:, min(update, values.shape[1] - 1)]
            data[key] = torch.nested.nested_tensor_from_jagged(at_update, data[key].offsets())
    return data


def _column(jagged: Any, column: Tensor) -> Tensor:
    """One column (u,) of each row of (u, j, k), jagged (u, j)."""
    lengths = jagged.offsets().diff()
    at = column.repeat_interleave(lengths).unsqueeze(1)
    return _jagged(jagged.values().gather(1, at).squeeze(1), lengths)


def _runs(passes: Tensor, parts: int) -> Tensor:
    """(B, N, …) of N passes as (B, parts, N/parts, …)."""
    return passes.unflatten(1, (parts, -1))


def _uncond_line(
    units: Units, row: Tensor, noisy: Tensor, scored: Tensor, kept: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Each pass with the prompt of `uncond_ids` in place of its own: tokens (T,), whether scored (T,), and lengths."""
    prompts = take_rows(units.data[UNCOND_IDS], row)
    inside = _inside(prompts)
    uncond, heads = (part.unsqueeze(1).expand(-1, noisy.shape[1], -1) for part in (_place(prompts, inside, 0), inside))
    bodies = kept & ~units.rows.prompt[row, : kept.shape[-1]].unsqueeze(1)
    keep = torch.cat([heads, bodies], dim=-1)
    ids = torch.cat([uncond, noisy], dim=-1)
    return ids[keep], torch.cat([torch.zeros_like(heads), scored], dim=-1)[keep], keep.sum(-1)
