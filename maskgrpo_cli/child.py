"""A run as a child process: all that it writes goes to a log, and the lines for the screen come out apart."""

import os
import queue
import re
import signal
import subprocess
import tempfile
import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from maskgrpo_cli.signals import PHASE_MARK, WARNING_MARK

REFUSAL = "maskgrpo_plugin: "  # how the plugin's one-line errors begin
KEPT_LINES = 2000  # of the end of the output, in which the last error is looked for
SHOWN_LINES = 30  # of an output that has no traceback
CLOSING_SECONDS = 5.0  # for the rest of the output, which processes that outlive the child may hold open
TRACEBACK = "Traceback (most recent call last):"
COLOUR = re.compile(r"\x1b\[[0-9;]*m")
OF_RAY = re.compile(r"^\([\w.:]+ pid=\d+[^)]*\) ?")
OF_HYDRA = "Set the environment variable HYDRA_FULL_ERROR=1"


class Child:
    """A command whose output is kept in a log.

    Args:
        command: program and arguments.
        environment: variables beside this process's.

    Attributes:
        log: the log's path; a temporary file until `keep_log_in` is called.
        messages: kind (`warning` or `phase`) and text of lines for the screen.
        failed: the traceback that was there before the first signal was passed on; empty: none.
        signalled: the first signal that was passed on; None: none was.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str]):
        handle, name = tempfile.mkstemp(prefix="maskgrpo_train_", suffix=".log")
        self.log = Path(name)
        self.messages: queue.SimpleQueue[tuple[str, str]] = queue.SimpleQueue()
        self._file = os.fdopen(handle, "wb", buffering=0)
        self._lock = threading.Lock()
        self._tail: deque[str] = deque(maxlen=KEPT_LINES)
        self._interrupts = 0
        self.failed = ""
        self.signalled: int | None = None
        # in a session of its own, so that Ctrl-C reaches it once, from here
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=os.environ | environment,
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def keep_log_in(self, folder: Path) -> None:
        """Move the log to `folder/train.log`, behind what earlier runs wrote there."""
        folder.mkdir(parents=True, exist_ok=True)
        with self._lock:
            target = (folder / "train.log").open("ab", buffering=0)
            target.write(self.log.read_bytes())
            self._file.close()
            self.log.unlink()
            self._file, self.log = target, folder / "train.log"

    def wait(self, seconds: float) -> int | None:
        """The exit status after at most so many seconds, 128 + n where signal n ended it; None: it still runs.

        After a signal that was passed on it is that signal's, whatever verl's command makes of it, but 0 stays.
        """
        try:
            status = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None
        self._reader.join(CLOSING_SECONDS)
        if status and self.signalled is not None:
            return 128 + self.signalled
        return status if status >= 0 else 128 - status

    def error(self) -> str:
        """What the output says of the child's end: its refusals, else its last traceback, else its last lines."""
        lines = [OF_RAY.sub("", line) for line in self._tail]
        refusals = [line.removeprefix(REFUSAL) for line in lines if line.startswith(REFUSAL)]
        if refusals and not any(line == TRACEBACK for line in lines):
            return "\n".join(dict.fromkeys(refusals))
        return last_traceback(list(self._tail)) or "\n".join(lines[-SHOWN_LINES:])

    @contextmanager
    def signals_passed_on(self) -> Iterator[None]:
        """Hand signals that would end this process to the child; a third Ctrl-C kills it and its processes."""
        kinds = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        before = {kind: signal.signal(kind, self._pass_on) for kind in kinds}
        try:
            yield
        finally:
            for kind, handler in before.items():
                signal.signal(kind, handler)

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        if self.signalled is None:
            self.failed, self.signalled = last_traceback(list(self._tail)), number
        self._interrupts += number == signal.SIGINT
        if self.process.poll() is not None:
            return
        if self._interrupts > 2:
            os.killpg(self.process.pid, signal.SIGKILL)
        else:
            self.process.send_signal(signal.SIGTERM if self._interrupts > 1 else number)

    def _read(self) -> None:
        assert self.process.stdout is not None
        for raw in self.process.stdout:
            with self._lock:
                self._file.write(raw)
            line = COLOUR.sub("", raw.decode("utf-8", "replace")).rstrip()
            self._tail.append(line)
            for kind, mark in (("warning", WARNING_MARK), ("phase", PHASE_MARK)):
                _, found, text = line.partition(mark)
                if found:
                    self.messages.put((kind, text.strip()))


def last_traceback(lines: Sequence[str]) -> str:
    """The last traceback of the child itself in its output, or of a process of Ray where it has none of its own; empty
    where there is none. It ends before Hydra's advice, and with the last line that is its own.
    """
    own = [line for line in lines if not OF_RAY.match(line)]
    for candidates in (own, [OF_RAY.sub("", line) for line in lines]):
        starts = [n for n, line in enumerate(candidates) if line.strip() == TRACEBACK]
        if starts:
            start = _first_of_chain(candidates, starts)
            end = next((n for n, line in enumerate(candidates) if n > start and line.startswith(OF_HYDRA)), None)
            return "\n".join(candidates[start:end]).rstrip()
    return ""


def _first_of_chain(lines: Sequence[str], starts: Sequence[int]) -> int:
    """Where the last error begins: before it come those that it arose from."""
    start = starts[-1]
    for earlier in reversed(starts[:-1]):
        between = lines[earlier:start]
        if not any(
            "exception was the direct cause" in line or "another exception occurred" in line for line in between
        ):
            break
        start = earlier
    return start
