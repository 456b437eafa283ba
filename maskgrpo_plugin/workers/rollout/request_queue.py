"""The queue of a rollout server: full batches at once, others after a bounded wait; later requests may join a batch."""

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple


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
    future: asyncio.Future = field(repr=False)
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

    def __init__(self, queue: "RequestQueue", requests: list[Request], loop: asyncio.AbstractEventLoop):
        self.requests, self.kind = requests, requests[0].kind
        self.unanswered = list(requests)
        self._queue, self._loop = queue, loop

    def take(self, most: int) -> list[Request]:
        """At most `most` waiting requests of the same kind, oldest first, which join the batch; none while the queue is
        paused, or where a request of another kind has waited longest.
        """
        taken = self._queue.take(self.kind, most)
        self.unanswered += taken
        return taken

    def answer(self, request: Request, result: Any) -> None:
        """Give a request its result; the batch goes on."""
        self.unanswered.remove(request)
        self._queue.metrics.requests += 1
        self._loop.call_soon_threadsafe(_settle, request.future, result)


def _settle(future: asyncio.Future, result: Any) -> None:
    if not future.done():
        future.set_result(result)


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
        self._lock = threading.Lock()
        self._changed = asyncio.Event()
        self._open = asyncio.Event()
        self._open.set()
        self._idle = asyncio.Event()
        self._idle.set()
        self._worker: asyncio.Task | None = None
        self.metrics = BatchingMetrics()

    async def submit(self, prompt_ids: list[int], *, seed: int, kind: BatchKind, payload: Any = None) -> Any:
        """Queue one request and wait for its result; an error of its batch is raised here."""
        future = asyncio.get_running_loop().create_future()
        with self._lock:
            self._waiting.setdefault(kind, deque()).append(Request(prompt_ids, seed, kind, future, payload))
        self._changed.set()
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._serve())
        return await future

    def take(self, kind: BatchKind, most: int) -> list[Request]:
        """Take up to `most` requests of the kind out of the queue; none while paused, or where another kind is next."""
        with self._lock:
            queue = self._oldest()
            if not self._open.is_set() or queue is None or queue[0].kind != kind:
                return []
            return [queue.popleft() for _ in range(min(len(queue), most))]

    async def pause(self) -> None:
        """Hold further requests back and wait until the running batch has ended."""
        self._open.clear()
        await self._idle.wait()

    def resume(self) -> None:
        """Let batches run again."""
        self._open.set()

    def abort(self) -> list[Request]:
        """Take every waiting request out of the queue and return them; their futures are left to the caller."""
        with self._lock:
            waiting = [request for queue in self._waiting.values() for request in queue]
            self._waiting.clear()
        return waiting

    def pop_metrics(self) -> dict[str, float]:
        """Read the counters and start them anew."""
        summary = self.metrics.summary(self.max_batch)
        self.metrics = BatchingMetrics()
        return summary

    async def _serve(self) -> None:
        while True:
            await self._open.wait()
            queue = self._oldest()
            if queue is None:
                self._changed.clear()
                await self._changed.wait()
                continue
            deadline = min(queue[0].arrived + self._max_wait_s, queue[-1].arrived + self._quiet_s)
            missing = deadline - time.monotonic()
            if len(queue) < self.max_batch and missing > 0:
                self._changed.clear()
                try:
                    await asyncio.wait_for(self._changed.wait(), missing)
                except asyncio.TimeoutError:
                    pass
                continue
            batch = Batch(self, self.take(queue[0].kind, self.max_batch), asyncio.get_running_loop())
            self._idle.clear()
            error: Exception | None = None
            try:
                await asyncio.to_thread(self._timed_run, batch)
            except Exception as raised:
                error = raised
            finally:
                self._idle.set()
            for request in batch.unanswered:
                if not request.future.done():
                    request.future.set_exception(error or RuntimeError("the batch ended without this answer"))

    def _oldest(self) -> deque[Request] | None:
        queues = [queue for queue in self._waiting.values() if queue]
        return min(queues, key=lambda queue: queue[0].arrived) if queues else None

    def _timed_run(self, batch: Batch) -> None:
        started = time.monotonic()
        self._run(batch)
        self.metrics.busy_s += time.monotonic() - started
        self.metrics.batches += 1
