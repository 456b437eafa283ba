"""Blocking calls under a time limit, each in a daemon thread: one that hangs holds up neither others nor the exit."""

import asyncio
import contextlib
import functools
import os
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

MOST_HANGING = 64


class TooManyHanging(TimeoutError):
    """A call was not begun, since too many earlier ones have passed their time and still run."""


class DeadlineThreads:
    """Runs blocking calls for one event loop.

    A call that passes its time is left behind: its thread goes on, its result is dropped. While `most_hanging` such
    threads run, no further call is begun. A call that keeps the interpreter's lock, such as a regular expression that
    backtracks without end, cannot be passed over.

    Args:
        timeout_s: seconds that a call may take from its start; waiting for a place does not count.
        workers: calls under way at once.
        most_hanging: threads left behind at which calls are refused; up to `workers` more may be under way then.
    """

    def __init__(self, timeout_s: float, workers: int | None = None, most_hanging: int = MOST_HANGING):
        self.timeout_s, self.most_hanging = timeout_s, most_hanging
        self._places = asyncio.Semaphore(workers or min(32, (os.cpu_count() or 1) + 4))
        self._left_behind: list[tuple[str, threading.Thread]] = []

    async def call(self, function: Callable[[], Any], name: str | None = None) -> Any:
        """What `function()` returns or raises.

        Args:
            function: the call.
            name: what messages call it; None: its own name and the first text among its arguments.

        Raises:
            TooManyHanging: it was not begun.
            TimeoutError: it took longer than `timeout_s`.
        """
        name = describe(function) if name is None else name
        async with self._places:
            self._refuse_if_full(name)
            thread, result = _start_thread(function)
            try:
                return await within(result, self.timeout_s)
            finally:
                if result.cancelled() or not result.done():
                    self._left_behind.append((name, thread))

    def hanging(self) -> Counter[str]:
        """Number of the threads left behind that still run, by name of the call."""
        self._left_behind = [(name, thread) for name, thread in self._left_behind if thread.is_alive()]
        return Counter(name for name, _ in self._left_behind)

    def _refuse_if_full(self, name: str) -> None:
        if len(self._left_behind) < self.most_hanging:
            return
        hanging = self.hanging()
        if hanging.total() >= self.most_hanging:
            found = ", ".join(f"{count} of {other}" for other, count in hanging.most_common(5))
            raise TooManyHanging(
                f"{name} was not called: {hanging.total()} calls have run for more than {self.timeout_s} s "
                f"(reward.timeout_s) and have not ended: {found}"
            )


def describe(function: Callable[..., Any]) -> str:
    """Name of a function under any number of functools.partial, with the first text among the arguments they give."""
    text = None
    while isinstance(function, functools.partial):
        text = next((a for a in (*function.args, *function.keywords.values()) if isinstance(a, str)), text)
        function = function.func
    name = getattr(function, "__qualname__", type(function).__name__)
    return name if text is None else f"{name}({text[:40]!r})"


async def within(awaitable: Any, timeout_s: float) -> Any:
    """Await for at most `timeout_s` seconds; TimeoutError (the built-in, on every Python) afterwards."""
    waiting = asyncio.ensure_future(awaitable)
    done, _ = await asyncio.wait({waiting}, timeout=timeout_s)
    if done:
        return waiting.result()
    waiting.cancel()
    raise TimeoutError(f"no result within {timeout_s} s")


def _start_thread(function: Callable[[], Any]) -> tuple[threading.Thread, asyncio.Future]:
    """A thread that calls the function, and what will hold its result."""
    loop = asyncio.get_running_loop()
    future = loop.create_future()

    def settle(result: Any, error: BaseException | None) -> None:
        if future.done():
            return
        if isinstance(error, StopIteration):  # a future refuses it
            error = RuntimeError(repr(error))
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)

    def work() -> None:
        result, failure = None, None
        try:
            result = function()
        except BaseException as error:
            failure = error
        with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
            loop.call_soon_threadsafe(settle, result, failure)

    thread = threading.Thread(target=work, name="reward", daemon=True)
    thread.start()
    return thread, future
