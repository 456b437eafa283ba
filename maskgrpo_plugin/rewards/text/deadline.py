"""Blocking calls under a time limit, each in a daemon thread: one that hangs holds up neither others nor the exit."""

import asyncio
import contextlib
import os
import threading
from collections.abc import Callable
from typing import Any


class DeadlineThreads:
    """Runs blocking calls for one event loop.

    A call that passes its time is left behind: its thread goes on, its result is dropped. One that keeps the
    interpreter's lock, such as a regular expression that backtracks without end, cannot be passed over.

    Args:
        timeout_s: seconds that a call may take from its start; waiting for a place does not count.
        workers: calls under way at once.
    """

    def __init__(self, timeout_s: float, workers: int | None = None):
        self.timeout_s = timeout_s
        self._places = asyncio.Semaphore(workers or min(32, (os.cpu_count() or 1) + 4))

    async def call(self, function: Callable[[], Any]) -> Any:
        """What `function()` returns or raises.

        Raises:
            TimeoutError: it took longer than `timeout_s`.
        """
        async with self._places:
            return await within(_in_thread(function), self.timeout_s)


async def within(awaitable: Any, timeout_s: float) -> Any:
    """Await for at most `timeout_s` seconds; TimeoutError (the built-in, on every Python) afterwards."""
    waiting = asyncio.ensure_future(awaitable)
    done, _ = await asyncio.wait({waiting}, timeout=timeout_s)
    if done:
        return waiting.result()
    waiting.cancel()
    raise TimeoutError(f"no result within {timeout_s} s")


async def _in_thread(function: Callable[[], Any]) -> Any:
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

    threading.Thread(target=work, name="reward", daemon=True).start()
    return await future
