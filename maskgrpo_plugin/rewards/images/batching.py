"""Batches across requests: what arrives within a short time, or while a batch is running, is computed together."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any


class Batcher:
    """Collects items and hands them to `run` in batches, oldest first.

    It belongs to the event loop in which `submit` is first awaited. An item whose `submit` is cancelled before its
    batch starts is left out.

    Args:
        run: awaited with 1 to `max_batch` items; returns one result each, in order. What it raises, every item gets.
        max_batch: most items per batch, at least 1.
        max_wait_s: longest that the oldest item waits for company while nothing keeps it from running, in seconds.
        concurrency: most batches that run at once, at least 1.
    """

    def __init__(
        self,
        run: Callable[[list[Any]], Awaitable[Sequence[Any]]],
        *,
        max_batch: int,
        max_wait_s: float,
        concurrency: int = 1,
    ):
        self.run, self.max_batch, self.max_wait_s = run, max_batch, max_wait_s
        self._slots = asyncio.Semaphore(concurrency)
        self._waiting: deque[tuple[Any, asyncio.Future, float]] = deque()
        self._arrival = asyncio.Event()
        self._collector: asyncio.Task | None = None
        self._running: set[asyncio.Task] = set()

    async def submit(self, item: Any) -> Any:
        """The item's result."""
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        self._waiting.append((item, future, loop.time()))
        self._arrival.set()
        if self._collector is None or self._collector.done():
            self._collector = loop.create_task(self._collect())
        return await future

    async def _collect(self) -> None:
        """Start batches until nothing waits; the next `submit` starts another collector."""
        while self._waiting:
            await self._slots.acquire()
            await self._fill()
            batch = self._take()
            if not batch:
                self._slots.release()
                continue
            task = asyncio.get_running_loop().create_task(self._run(batch))
            self._running.add(task)
            task.add_done_callback(self._finished)

    async def _fill(self) -> None:
        """Wait until a batch is full or its oldest item has waited long enough."""
        loop = asyncio.get_running_loop()
        while self._waiting and len(self._waiting) < self.max_batch:
            left = self._waiting[0][2] + self.max_wait_s - loop.time()
            if left <= 0:
                return
            self._arrival.clear()
            try:
                await asyncio.wait_for(self._arrival.wait(), left)
            except (TimeoutError, asyncio.TimeoutError):
                return

    def _take(self) -> list[tuple[Any, asyncio.Future]]:
        batch: list[tuple[Any, asyncio.Future]] = []
        while self._waiting and len(batch) < self.max_batch:
            item, future, _ = self._waiting.popleft()
            if not future.done():
                batch.append((item, future))
        return batch

    async def _run(self, batch: list[tuple[Any, asyncio.Future]]) -> None:
        try:
            results = await self.run([item for item, _ in batch])
            if len(results) != len(batch):
                raise RuntimeError(f"{len(results)} results for a batch of {len(batch)}")
        except Exception as error:
            for _, future in batch:
                if not future.done():
                    future.set_exception(error)
            return
        for (_, future), result in zip(batch, results, strict=True):
            if not future.done():
                future.set_result(result)

    def _finished(self, task: asyncio.Task) -> None:
        self._running.discard(task)
        self._slots.release()
