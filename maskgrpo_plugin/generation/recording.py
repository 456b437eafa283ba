"""What a sampler's observer keeps of a denoising: which tokens each step revealed, and how probable they were."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from maskgrpo_plugin.diffusion.samplers.base import OnStep


@dataclass(frozen=True)
class Change:
    """A token that a step wrote.

    Attributes:
        place: of the token in the response.
        token: its id.
        probability: of it, as the model gave it at that step.
    """

    place: int
    token: int
    probability: float


@dataclass(frozen=True)
class Frame:
    """A step that wrote something: its number, from 0, and what it wrote."""

    step: int
    changes: tuple[Change, ...]


@dataclass
class Recorder:
    """An observer (`OnStep`) of a batch.

    Attributes:
        before: (B, L) the canvases; first those that the sampler begins with.
        start: first column of the response.
        rows: the frames of each row so far.
    """

    before: Tensor
    start: int
    rows: list[list[Frame]] = field(init=False)

    def __post_init__(self) -> None:
        self.before = self.before.clone()
        self.rows = [[] for _ in range(self.before.shape[0])]

    def __call__(self, step: int, tokens: Tensor, probability: Tensor) -> None:
        """Take one step in; rows of which it changed nothing get no frame."""
        changed = (tokens != self.before)[:, self.start :]
        where = changed.nonzero().tolist()
        response = tokens[:, self.start :][changed].tolist()
        sure = probability[:, self.start :][changed].tolist()
        found: dict[int, list[Change]] = {}
        for (row, place), token, share in zip(where, response, sure, strict=True):
            found.setdefault(row, []).append(Change(place, token, share))
        for row, changes in found.items():
            self.rows[row].append(Frame(step, tuple(changes)))
        self.before = tokens


def all_of(observers: list[OnStep]) -> OnStep | None:
    """One observer that calls several in their order; None for none."""
    if not observers:
        return None

    def on_step(step: int, tokens: Tensor, probability: Tensor) -> None:
        for observer in observers:
            observer(step, tokens, probability)

    return on_step


def canvas_after(response: Sequence[int], frames: Sequence[Frame]) -> list[int]:
    """The response after these frames, from the one that sampling began with."""
    tokens = list(response)
    for frame in frames:
        for change in frame.changes:
            tokens[change.place] = change.token
    return tokens


def evenly(count: int, most: int) -> list[int]:
    """At most `most` of the numbers from 0 below `count`, evenly spread, the last always among them.

    >>> evenly(10, 4)
    [1, 4, 6, 9]
    """
    kept = min(count, most)
    return [(n + 1) * count // kept - 1 for n in range(kept)]
