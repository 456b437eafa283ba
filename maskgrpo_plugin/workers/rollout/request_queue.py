"""The queue of a rollout server: full batches at once, others after a bounded wait; later requests may join a batch.

A thread of the queue's own runs the batches, so that requests and control calls may come from any event loop: Ray gives
each concurrency group of an actor one.
"""

import asyncio
import logging
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field
from typing import Any, NamedTuple

logger = logging.getLogger(__name__)

THREAD_IDLE_S = 5.0


class BatchKind(NamedTuple):
    """What requests of one batch have in common.

    Attributes:
        temperature: of the sampler.
        canvas_length: tokens of an image's canvas; 0 for texts.
    """

    temperature: float
    canvas_length: int = 0


@dataclass(eq=False)
class Request:
    """One generation request.

    Attributes:
        prompt_ids: tokens of the prompt.
        seed: of its noise.
        kind: requests of one kind may share a batch.
        future: takes the result.
        payload: what else the batch's function needs of it.
        arrived: time of its arrival, in seconds.
    """

    prompt_ids: list[int]
    seed: int
    kind: BatchKind
    future: Future = field(repr=False)
    payload: Any = None
    arrived: float = field(default_factory=time.monotonic)


@dataclass
class BatchingMetrics:
    """Counters since the last reading.

    Attributes:
        requests: requests answered.
        batches: batches run.
        tokens: response tokens up to and with the end token.
        model_calls: forward passes over a batch.
        row_model_calls: forward passes summed over the rows that took part.
        busy_s: seconds spent generating.
    """

    requests: int = 0
    batches: int = 0
    tokens: int = 0
    model_calls: int = 0
    row_model_calls: int = 0
    busy_s: float = 0.0

    def summary(self, max_batch: int) -> dict[str, float]:
        """Rates for the tracker: tokens/s, model calls per token, and the share of `max_batch` rows per pass."""
        return {
            "tokens_per_s": self.tokens / self.busy_s if self.busy_s else 0.0,
            "model_calls_per_token": self.row_model_calls / self.tokens if self.tokens else 0.0,
            "model_calls": float(self.model_calls),
            "batch_fill": self.row_model_calls / (self.model_calls * max_batch) if self.model_calls else 0.0,
            "requests": float(self.requests),
            "busy_s": self.busy_s,
        }


class Batch:
    """A running batch: what it began with, what may still join it, and where its answers go; used in the thread that
    runs it.

    Attributes:
        requests: the requests that it began with, at least one, all of one kind.
        kind: the kind of them all.
    """

    def __init__(self, queue: "RequestQueue", requests: list[Request], *, joinable: bool = True):
        self.requests, self.kind = requests, requests[0].kind
        self.unanswered = list(requests)
        self._queue, self._joinable = queue, joinable

    def take(self, most: int) -> list[Request]:
        """At most `most` waiting requests of the same kind, oldest first, which join the batch; none while the queue is
        paused, or where a request of another kind has waited longest.
        """
        taken = self._queue.take(self.kind, most) if self._joinable else []
        self.unanswered += taken
        return taken

    def answer(self, request: Request, result: Any) -> None:
        """Give a request its result; the batch goes on."""
        self.unanswered.remove(request)
        self._queue.metrics.requests += 1
        settle(request, result)


def settle(request: Request, result: Any) -> None:
    """Give a request its result, or an exception, unless it has one or was cancelled."""
    try:
        if isinstance(result, BaseException):
            request.future.set_exception(result)
        else:
            request.future.set_result(result)
    except InvalidStateError:
        pass


class RequestQueue:
    """Collects requests and hands them to `run` in batches, oldest first, one kind per batch.

    Args:
        run: called in a thread with a `Batch`; answers all its requests and those that it takes on.
        max_batch: largest number of requests per batch, at least 1.
        max_wait_s: longest wait of the oldest request for others, in seconds.
        quiet_s: time without a new request after which a batch runs that is not full, in seconds; None: `max_wait_s`.
    """

    def __init__(
        self,
        run: Callable[[Batch], None],
        *,
        max_batch: int,
        max_wait_s: float,
        quiet_s: float | None = None,
    ):
        self._run = run
        self.max_batch = max_batch
        self._max_wait_s = max_wait_s
        self._quiet_s = max_wait_s if quiet_s is None else quiet_s
        self._waiting: dict[BatchKind, deque[Request]] = {}
        self._changed = threading.Condition()
        self._open, self._busy = True, False
        self._thread: threading.Thread | None = None
        self.metrics = BatchingMetrics()

    async def submit(self, prompt_ids: list[int], *, seed: int, kind: BatchKind, payload: Any = None) -> Any:
        """Queue one request and wait for its result. An error of its batch is raised here only if the request fails by
        itself as well: requests that a failed batch leaves without an answer are run again, one by one.
        """
        request = Request(prompt_ids, seed, kind, Future(), payload)
        with self._changed:
            self._waiting.setdefault(kind, deque()).append(request)
            if self._thread is None:
                self._thread = threading.Thread(target=self._serve, daemon=True)
                self._thread.start()
            self._changed.notify_all()
        return await asyncio.wrap_future(request.future)

    def take(self, kind: BatchKind, most: int) -> list[Request]:
        """Take up to `most` requests of the kind out of the queue; none while paused, or where another kind is next."""
        with self._changed:
            queue = self._oldest()
            if not self._open or queue is None or queue[0].kind != kind:
                return []
            return [queue.popleft() for _ in range(min(len(queue), most))]

    @property
    def is_open(self) -> bool:
        """Whether batches may run."""
        return self._open

    async def pause(self) -> None:
        """Hold further requests back and wait until the running batch has ended."""
        self._open = False
        await asyncio.to_thread(self._wait_until_idle)

    def _wait_until_idle(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: not self._busy)

    def resume(self) -> None:
        """Let batches run again."""
        with self._changed:
            self._open = True
            self._changed.notify_all()

    def abort(self, result: Any) -> None:
        """Give every waiting request this result."""
        with self._changed:
            waiting = [request for queue in self._waiting.values() for request in queue]
            self._waiting.clear()
        for request in waiting:
            settle(request, result)

    def pop_metrics(self) -> dict[str, float]:
        """Read the counters and start them anew."""
        summary = self.metrics.summary(self.max_batch)
        self.metrics = BatchingMetrics()
        return summary

    def _serve(self) -> None:
        while (batch := self._next_batch()) is not None:
            try:
                self._run_apart(batch)
            finally:
                with self._changed:
                    self._busy = False
                    self._changed.notify_all()

    def _next_batch(self) -> Batch | None:
        """Wait for the next batch; None ends the thread, after a time without requests."""
        with self._changed:
            while True:
                queue = self._oldest()
                if queue is None:
                    if not self._changed.wait(THREAD_IDLE_S) and self._oldest() is None:
                        self._thread = None
                        return None
                    continue
                deadline = min(queue[0].arrived + self._max_wait_s, queue[-1].arrived + self._quiet_s)
                missing = deadline - time.monotonic()
                if not self._open:
                    self._changed.wait()
                elif len(queue) < self.max_batch and missing > 0:
                    self._changed.wait(missing)
                else:
                    self._busy = True
                    return Batch(self, self.take(queue[0].kind, self.max_batch))

    def _run_apart(self, batch: Batch) -> None:
        """Run a batch; where it fails, each request that it leaves without an answer by itself."""
        error = self._timed_run(batch)
        left = batch.unanswered
        if error is None or len(left) < 2:
            _settle_rest(batch, error)
            return
        logger.warning("a batch failed, and its %d unanswered requests are run one by one: %r", len(left), error)
        for request in left:
            alone = Batch(self, [request], joinable=False)
            _settle_rest(alone, self._timed_run(alone))

    def _oldest(self) -> deque[Request] | None:
        queues = [queue for queue in self._waiting.values() if queue]
        return min(queues, key=lambda queue: queue[0].arrived) if queues else None

    def _timed_run(self, batch: Batch) -> Exception | None:
        """Run a batch; returns what it raised, without the frames that hold its tensors."""
        started = time.monotonic()
        try:
            self._run(batch)
        except Exception as error:
            traceback.clear_frames(error.__traceback__)
            return error
        finally:
            self.metrics.busy_s += time.monotonic() - started
            self.metrics.batches += 1
        return None


def _settle_rest(batch: Batch, error: Exception | None) -> None:
    """Give the requests that a batch did not answer its error."""
    for request in batch.unanswered:
        settle(request, error or RuntimeError("the batch ended without this answer"))
