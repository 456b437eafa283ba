"""Which rows make up the batch of a step: a function of the step alone, so that a resumed run needs no other state."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch

from maskgrpo_plugin.diffusion.random import combine_seed


class Slot(NamedTuple):
    """A place in a batch.

    Attributes:
        source: number of the data source.
        row: number of its example.
        key: of the row's mask noise and level; see `Denoising`.
        weight: factor of the row's loss.
    """

    source: int
    row: int
    key: int
    weight: float


@dataclass(frozen=True)
class BatchOrder:
    """Batches with a fixed number of rows of each source; each source is gone through in its own permutations.

    The loss of a batch is Σ over sources of the source's weight times the mean over its rows, and the mean over all
    rows of `weight` times the row's loss equals it. Two rows of the source 0 with weight 1 and one of the source 1 with
    weight 0.1: the slots' weights are 1.5, 1.5 and 0.3.

    Attributes:
        rows: number of examples of each source.
        counts: rows of each source in a batch, each at most its number of examples.
        weights: of each source's loss.
        seed: of the permutations.
    """

    rows: tuple[int, ...]
    counts: tuple[int, ...]
    weights: tuple[float, ...]
    seed: int

    @property
    def batch_size(self) -> int:
        """Rows of a batch."""
        return sum(self.counts)

    @property
    def steps_per_epoch(self) -> int:
        """Steps until the source that takes longest is through; rows that fill no batch are of a later epoch's turn."""
        return max(rows // count for rows, count in zip(self.rows, self.counts, strict=True))

    def batch(self, step: int) -> list[Slot]:
        """The slots of the step, from 1, sources one after another."""
        slots = []
        size = self.batch_size
        for source, (rows, count) in enumerate(zip(self.rows, self.counts, strict=True)):
            epoch, place = divmod(step - 1, rows // count)
            order = _permutation(rows, combine_seed(self.seed, source, epoch))
            weight = self.weights[source] * size / count
            slots += [
                Slot(source, row, source * size + n * size // count, weight)
                for n, row in enumerate(order[place * count : (place + 1) * count])
            ]
        return slots


def divide(size: int, shares: Sequence[float]) -> list[int]:
    """Divide `size` rows by shares, at least one each, by the largest remainders: 10 by [1, 1, 2] is [3, 2, 5].

    Raises:
        ValueError: fewer rows than shares.
    """
    if size < len(shares):
        raise ValueError(f"{size} rows for {len(shares)} sources")
    exact = [size * share / sum(shares) for share in shares]
    counts = [max(int(each), 1) for each in exact]
    while sum(counts) > size:
        counts[max(range(len(counts)), key=lambda n: counts[n] - exact[n] if counts[n] > 1 else -1.0)] -= 1
    while sum(counts) < size:
        counts[max(range(len(counts)), key=lambda n: exact[n] - counts[n])] += 1
    return counts


@lru_cache(maxsize=8)
def _permutation(rows: int, seed: int) -> list[int]:
    return torch.randperm(rows, generator=torch.Generator().manual_seed(seed)).tolist()
