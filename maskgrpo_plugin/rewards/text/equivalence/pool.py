"""A pool of math-verify processes: started when first needed, killed at the time limit, usable from any thread.

math-verify's own limit is `signal.alarm`, which works in main threads only and does not end long C calls; scorers run
in threads of Ray workers. With that limit switched off and none in its place, one comparison could hold up a run.

Not pebble's ProcessPool: multiprocessing forks a process full of threads, or imports the program's main module anew
in each worker, and pebble is LGPL. Here a small script is started, which knows nothing but math-verify.
"""

import atexit
import enum
import json
import os
import selectors
import subprocess
import sys
import threading
import time
from pathlib import Path

START_LIMIT_S = 120.0
MOST_WORKERS = 4

_WORKER = Path(__file__).with_name("worker.py")


class EquivalenceFailure(RuntimeError):
    """math-verify raised an error, so that an answer was not judged."""


class Verdict(enum.Enum):
    """Outcome of a comparison; `UNDECIDED`: it took longer than its limit, or more memory than it may."""

    EQUAL = "equal"
    DIFFERENT = "different"
    UNDECIDED = "undecided"


def compare_latex(truth: str, answer: str, *, time_limit_s: float) -> Verdict:
    """Ask math-verify whether two LaTeX expressions are equal.

    Args:
        truth: the right one; the order matters to math-verify.
        answer: the one to judge.
        time_limit_s: wall-clock seconds for the comparison, more than 0; a process's start is not counted.

    Raises:
        ValueError: `time_limit_s` is not positive.
        EquivalenceFailure: math-verify failed, so that nothing is known of the answer.
        RuntimeError: math-verify is not installed, or its process does not start.
    """
    if not time_limit_s > 0:
        raise ValueError(f"time_limit_s must be more than 0, got {time_limit_s}")
    return _pool_of_this_process().compare(truth, answer, time_limit_s)


class _Worker:
    """One process and its pipes.

    Raises:
        RuntimeError: it does not say within START_LIMIT_S that it is ready.
    """

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(_WORKER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            start_new_session=True,
        )
        greeting = self._read(START_LIMIT_S)
        if not greeting or "ready" not in greeting:
            self.kill()
            cause = greeting.get("error") if greeting else "it did not start"
            raise RuntimeError(f"the process of math-verify cannot be used ({cause}); pip install math-verify")

    def ask(self, truth: str, answer: str, time_limit_s: float) -> bool | None:
        """Whether the two are equal, or None where the process gave no answer in time or memory; then it is of no more
        use.

        Raises:
            EquivalenceFailure: math-verify failed.
        """
        question = {"truth": truth, "answer": answer, "time_limit_s": time_limit_s}
        assert self.process.stdin is not None
        try:
            self.process.stdin.write((json.dumps(question) + "\n").encode())
        except OSError:
            return None
        reply = self._read(time_limit_s)
        if reply is not None and "error" in reply:
            raise EquivalenceFailure(f"math-verify failed on {truth[:200]!r} and {answer[:200]!r}: {reply['error']}")
        return None if reply is None else reply["equal"]

    def kill(self) -> None:
        """End the process at once, whatever it does."""
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()

    def _read(self, limit_s: float) -> dict | None:
        """The next line as JSON, or None where it does not come in time or the process has ended."""
        assert self.process.stdout is not None
        deadline = time.monotonic() + limit_s
        received = b""
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            while not received.endswith(b"\n"):
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    return None
                chunk = os.read(self.process.stdout.fileno(), 65536)
                if not chunk:
                    return None
                received += chunk
        return json.loads(received)


class _Pool:
    """At most MOST_WORKERS workers; a thread that finds them all busy waits."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.free = threading.Semaphore(min(MOST_WORKERS, os.cpu_count() or 1))
        self.lock = threading.Lock()
        self.idle: list[_Worker] = []

    def compare(self, truth: str, answer: str, time_limit_s: float) -> Verdict:
        with self.free:
            with self.lock:
                worker = self.idle.pop() if self.idle else None
            worker = worker or _Worker()
            result = None
            try:
                result = worker.ask(truth, answer, time_limit_s)
            finally:
                if result is None:
                    worker.kill()
                else:
                    with self.lock:
                        self.idle.append(worker)
        if result is None:
            return Verdict.UNDECIDED
        return Verdict.EQUAL if result else Verdict.DIFFERENT

    def close(self) -> None:
        """End the idle workers; one that is busy ends with its pipe."""
        if self.pid != os.getpid():
            return
        with self.lock:
            while self.idle:
                self.idle.pop().kill()


_pool: _Pool | None = None
_pool_lock = threading.Lock()


def _pool_of_this_process() -> _Pool:
    """The pool; a forked child makes its own, its parent's pipes are not for it."""
    global _pool
    with _pool_lock:
        if _pool is None or _pool.pid != os.getpid():
            _pool = _Pool()
            atexit.register(_pool.close)
        return _pool
