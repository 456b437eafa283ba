"""A scorer at work: its queue, its batches, and one result per sample whatever the scorer does."""

import asyncio
import inspect
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from maskgrpo_plugin.extensions import load_extensions
from maskgrpo_plugin.rewards.images import ImageSample, ImageScorer, ScorerFactory, ScorerUnavailable, build_scorer
from maskgrpo_plugin.rewards.images.batching import Batcher

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Scored:
    """What came of scoring one sample.

    Attributes:
        value: the score; NaN where it failed.
        error: why it failed, None where it did not.
        batch_size: images in the batch it was scored in; 0 where it came to none.
        latency_s: seconds from asking to knowing, waiting included; set by `ScorerPool`.
    """

    value: float
    error: str | None = None
    batch_size: int = 0
    latency_s: float = 0.0

    @property
    def failed(self) -> bool:
        """Whether scoring failed."""
        return self.error is not None


async def score_samples(scorer: ImageScorer, samples: Sequence[ImageSample]) -> list[Scored]:
    """Score a batch; whatever the scorer does, there is one result per sample.

    A batch that raises is scored again sample by sample, so that one bad sample costs only itself; not so with
    ScorerUnavailable, which holds for all.
    """
    size = len(samples)
    try:
        values = await _call(scorer, samples)
        if len(values) != size:
            raise ScorerUnavailable(f"the scorer gave {len(values)} numbers for {size} images")
        return [_scored(float(value), size) for value in values]
    except Exception as error:
        if size > 1 and not isinstance(error, ScorerUnavailable):
            return [(await score_samples(scorer, [sample]))[0] for sample in samples]
        logger.warning("a scorer failed on %d images", size, exc_info=True)
        return [Scored(math.nan, f"{type(error).__name__}: {error}", size)] * size


async def _call(scorer: ImageScorer, samples: Sequence[ImageSample]) -> Sequence[float]:
    if inspect.iscoroutinefunction(scorer.score):
        return await scorer.score(samples)
    values: Any = await asyncio.to_thread(scorer.score, samples)
    return await values if inspect.isawaitable(values) else values


def _scored(value: float, batch_size: int) -> Scored:
    error = None if math.isfinite(value) else f"the score is {value}"
    return Scored(value if error is None else math.nan, error, batch_size)


class ScorerWorker:
    """One scorer with its queue; runs as a Ray actor, or within a server.

    Args:
        factory, options: see `build_scorer`.
        max_batch: most images per batch.
        max_wait_s: how long an image waits for others, in seconds.
    """

    def __init__(self, factory: ScorerFactory | str, options: Mapping[str, Any], *, max_batch: int, max_wait_s: float):
        load_extensions()  # this process need not have imported verl
        scorer = build_scorer(factory, options)

        async def run(samples: list[ImageSample]) -> list[Scored]:
            return await score_samples(scorer, samples)

        concurrency = int(getattr(scorer, "concurrency", 1))
        self.batcher = Batcher(run, max_batch=max_batch, max_wait_s=max_wait_s, concurrency=concurrency)

    async def ready(self) -> bool:
        """True, once the scorer is loaded."""
        return True

    async def score(self, sample: ImageSample) -> Scored:
        """Score one sample together with others that are waiting."""
        return await self.batcher.submit(sample)
