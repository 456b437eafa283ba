"""Scorers in Ray actors of their own: loaded once, shared by all reward workers, batched across requests."""

import asyncio
import hashlib
import inspect
import itertools
import json
import logging
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray

from maskgrpo_plugin.rewards.batching import Batcher
from maskgrpo_plugin.rewards.images import ImageSample, ImageScorer, ScorerFactory, ScorerUnavailable, build_scorer

logger = logging.getLogger(__name__)

MAX_WAITING = 10_000


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
        """Whether there is no score."""
        return self.error is not None


async def score_samples(scorer: ImageScorer, samples: Sequence[ImageSample]) -> list[Scored]:
    """Score a batch; whatever the scorer does, there is one result a sample.

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
        max_batch: most images a batch.
        max_wait_s: how long an image waits for others, in seconds.
    """

    def __init__(self, factory: ScorerFactory | str, options: Mapping[str, Any], *, max_batch: int, max_wait_s: float):
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


class ScorerPool:
    """The actors of one scorer, seen from a reward worker.

    Actors have names, and the reward workers of a run find the same ones; they end with the run.

    Args:
        name: the scorer's, for actor names and messages.
        factory, options: see `build_scorer`.
        num_cpus, num_gpus, replicas, max_batch, max_wait_ms, timeout_s: see `ScorerConfig`.
    """

    def __init__(
        self,
        name: str,
        factory: ScorerFactory | str,
        options: Mapping[str, Any],
        *,
        num_cpus: float = 0.1,
        num_gpus: float = 0.0,
        replicas: int = 1,
        max_batch: int = 16,
        max_wait_ms: float = 20.0,
        timeout_s: float = 300.0,
    ):
        self.name, self.timeout_s = name, timeout_s
        settings = [str(factory), dict(options), max_batch, max_wait_ms, num_cpus, num_gpus]
        mark = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()[:12]
        actor = ray.remote(ScorerWorker)
        self.actors = [
            actor.options(
                name=f"image_scorer_{name}_{mark}_{replica}",
                get_if_exists=True,
                num_cpus=num_cpus,
                num_gpus=num_gpus,
                max_concurrency=MAX_WAITING,
                max_restarts=-1,
            ).remote(factory, dict(options), max_batch=max_batch, max_wait_s=max_wait_ms / 1000)
            for replica in range(replicas)
        ]
        self._turn = itertools.count()

    def wait_until_ready(self, timeout_s: float) -> None:
        """Wait until every actor has loaded its scorer.

        Raises:
            RuntimeError: one could not, or not in time; the message says why.
        """
        try:
            ray.get([actor.ready.remote() for actor in self.actors], timeout=timeout_s)
        except ray.exceptions.GetTimeoutError as error:
            raise RuntimeError(
                f"the image scorer {self.name!r} was not ready within {timeout_s} s "
                "(reward.image.startup_timeout_s); are its num_cpus and num_gpus free?"
            ) from error
        except ray.exceptions.RayError as error:
            raise RuntimeError(f"the image scorer {self.name!r} could not be made: {error}") from error

    async def score(self, sample: Any) -> Scored:
        """Score one sample, in time or not at all; never raises for what goes wrong with a scorer.

        Args:
            sample: an ImageSample, or Ray's reference to one.
        """
        start = time.monotonic()
        reference = self.actors[next(self._turn) % len(self.actors)].score.remote(sample)
        try:
            found = await asyncio.wait_for(_result(reference), self.timeout_s)
        except (TimeoutError, asyncio.TimeoutError):
            ray.cancel(reference)
            found = Scored(math.nan, f"no score within {self.timeout_s} s")
        except ray.exceptions.RayError as error:
            found = Scored(math.nan, f"{type(error).__name__}: {error}")
        return Scored(found.value, found.error, found.batch_size, time.monotonic() - start)


async def _result(reference: Any) -> Scored:
    return await reference
