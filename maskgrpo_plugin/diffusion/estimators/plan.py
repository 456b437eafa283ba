"""The plan of a training step: what every worker needs to find the same passes."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from typing import Any

from maskgrpo_plugin.diffusion.estimators.base import Estimator, build_estimator
from maskgrpo_plugin.diffusion.random import combine_seed

IDS = ("stop_token_ids", "banned_token_ids")  # of a plan: tuples, which travel as lists
UNCOND_IDS = "uncond_ids"  # batch field: the prompt without its text, for guidance


@dataclass(frozen=True)
class StepPlan:
    """An estimator, and the seed and step of its masks.

    Attributes:
        estimator: name of the estimator.
        options: its options.
        seed: the run's mask seed.
        step: the training step.
        stop_token_ids: ids that end a response.
        cfg_scale: guidance weight w of the log-probabilities; 0 for none.
        block_length: of a block-causal model; None where attention is in both directions.
        temperature, banned_token_ids: of the sampler, and what it never emits; read where the estimator compares with
            the sampler's record (`Estimator.from_record`), else log-probabilities are the model's own.
    """

    estimator: str
    options: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    step: int = 0
    stop_token_ids: tuple[int, ...] = ()
    cfg_scale: float = 0.0
    block_length: int | None = None
    temperature: float = 1.0
    banned_token_ids: tuple[int, ...] = ()

    def build(self) -> Estimator:
        """The estimator; kept, since every worker asks for it several times a step."""
        return _build(self.estimator, json.dumps(dict(self.options), sort_keys=True))

    def to_plain(self) -> dict[str, Any]:
        """Numbers, strings, lists and dicts alone, as TransferQueue carries them."""
        lists = {name: list(getattr(self, name)) for name in IDS}
        return {**asdict(self), "options": dict(self.options), **lists}

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> "StepPlan":
        """What `to_plain` made of a plan."""
        return cls(**{**plain, **{name: tuple(plain[name]) for name in IDS}})


@lru_cache(maxsize=8)
def _build(name: str, options: str) -> Estimator:
    return build_estimator(name, **json.loads(options))


def mask_keys(rows: Sequence[int], sessions: Sequence[int], sharing: str) -> list[int]:
    """Name each completion's stream of mask noise.

    Args:
        rows: each completion's prompt, as the number of its data row.
        sessions: each completion's number in its group.
        sharing: `index`: completions of the same number share masks (published); `group`: a whole group does;
            `sample`: nobody does.

    Returns:
        Integers that depend on the data and not on the order of the batch. The completions 0 and 1 of the rows 7 and 9
        have, by `index`, the keys [0, 1, 0, 1]; by `group` [7, 7, 9, 9].
    """
    if sharing == "index":
        return [int(session) for session in sessions]
    if sharing == "group":
        return [int(row) for row in rows]
    return [combine_seed(int(row), int(session)) for row, session in zip(rows, sessions, strict=True)]
