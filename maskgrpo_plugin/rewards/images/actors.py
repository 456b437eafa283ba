"""Scorers in Ray actors of their own: loaded once, shared by all reward workers, batched across requests."""

import asyncio
import hashlib
import itertools
import json
import math
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import ray

from maskgrpo_plugin.rewards.images.worker import Scored, ScorerWorker

MAX_WAITING = 10_000
MAX_RESTARTS = 5


class ScorerPool:
    """The actors of one scorer, seen from a reward worker.

    Actors have names, and the reward workers of a run find the same ones; they end with the run.

    Args:
        name: the scorer's, for actor names and messages.
        factory: a registered kind or an import path, which each actor looks up in its own process.
        options: the factory's keyword arguments.
        num_cpus, num_gpus, replicas, max_batch, max_wait_ms, timeout_s: see `ScorerConfig`.
    """

    def __init__(
        self,
        name: str,
        factory: str,
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
        settings = [factory, dict(options), max_batch, max_wait_ms, num_cpus, num_gpus]
        mark = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()[:12]
        actor = ray.remote(ScorerWorker)
        self._make = lambda: [
            actor.options(
                name=f"image_scorer_{name}_{mark}_{replica}",
                get_if_exists=True,
                num_cpus=num_cpus,
                num_gpus=num_gpus,
                max_concurrency=MAX_WAITING,
                max_restarts=MAX_RESTARTS,
            ).remote(factory, dict(options), max_batch=max_batch, max_wait_s=max_wait_ms / 1000)
            for replica in range(replicas)
        ]
        self.actors = self._make()
        self._turn = itertools.count()

    def wait_until_ready(self, timeout_s: float) -> None:
        """Wait until every actor has loaded its scorer.

        Raises:
            RuntimeError: one could not, or not in time; the message says why.
        """
        try:
            self._ready(timeout_s)
        except ray.exceptions.GetTimeoutError as error:
            raise RuntimeError(
                f"the image scorer {self.name!r} was not ready within {timeout_s} s "
                "(reward.image.startup_timeout_s); are its num_cpus and num_gpus free?"
            ) from error
        except ray.exceptions.RayError as error:
            raise RuntimeError(f"the image scorer {self.name!r} could not be made: {error}") from error

    def _ready(self, timeout_s: float, attempts: int = 5) -> None:
        """Wait for the actors; one that was found by name while its last owner let go of it is made anew."""
        for attempt in range(attempts):
            try:
                ray.get([actor.ready.remote() for actor in self.actors], timeout=timeout_s)
                return
            except ray.exceptions.ActorDiedError as error:
                if "all references to the actor were removed" not in str(error) or attempt == attempts - 1:
                    raise
                time.sleep(1.0)
                self.actors = self._make()

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
        return replace(found, latency_s=time.monotonic() - start)


async def _result(reference: Any) -> Scored:
    return await reference
