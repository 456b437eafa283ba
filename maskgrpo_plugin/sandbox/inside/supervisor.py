"""The trusted process inside a sandbox: one fresh process per test, its limits, and what became of it.

It never runs the program. A process is forked before the text of the judged test is read, so that no trace of that
text is in the program's memory, and only the supervisor holds the descriptors that results leave by.

Input (frames, see codec): a header, then one frame per test. Output: one frame per test, in order.

A test is of one of four kinds. `value`: an expression, whose value is sent out. `output`: what the program reads on
standard input; what it prints is sent out. `judged`: statements, run in a process of their own that calls the program
in another (see remote). `inside`: statements, run in the program's own process; their verdict counts only with a word
that comes with them.
"""

from __future__ import annotations

import binascii
import functools
import gc
import os
import select
import signal
import time

from .codec import INPUT_LIMIT, CodecError, from_frame, to_frame
from .confinement import Limits, adopt_orphans, become_user, confine, hide_memory, keep_capabilities
from .outcomes import MESSAGE_ROOM, checked
from .usage import descendants, empty_scratch, exceeds, kill_one, reap_one, waited_s
from .work import evaluate, judge, judge_inside, run_script, serve_program, write_all

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

_POLL_S = 0.05
_MOST_WAITED = 2  # times a test's seconds that it may have waited for a processor, which does not count
_CAPABILITIES = (1, 5, 6, 7, 8)  # DAC_OVERRIDE, KILL, SETGID, SETUID, SETPCAP
_IGNORED = ("HUP", "INT", "QUIT", "USR1", "USR2", "ALRM", "TERM", "TSTP", "TTIN", "TTOU", "VTALRM", "PROF", "IO")


class _Test:
    """One test under way: its processes, what they are still to be given, and what came from them.

    Args:
        kind: see the module.
        outcome, output: descriptors that the outcome and what the program prints arrive by.
        processes: the program's, and last the one that sends the outcome.
        inputs: descriptors of what each process is to run, the program first.
    """

    def __init__(self, kind: str, outcome: int, output: int, processes: list[int], inputs: list[int]):
        self.kind, self.outcome, self.output, self.processes, self.inputs = kind, outcome, output, processes, inputs
        self.word = os.urandom(16).hex()
        self.received = bytearray()
        self.printed = bytearray()
        self.output_ended = False

    def close(self) -> None:
        """Close all descriptors."""
        for descriptor in (self.outcome, self.output, *self.inputs):
            os.close(descriptor)


class Supervisor:
    """Runs the tests of one program, one after another.

    Args:
        source, sink: descriptors that tests arrive by and outcomes leave by.
        uid: user to give to programs where this process is root.
        isolated: whether this process runs in process and mount namespaces that hold nothing else.
    """

    def __init__(self, source: int, sink: int, *, uid: int, isolated: bool):
        self.source, self.sink, self.uid, self.isolated = source, sink, uid, isolated
        self.has_proc = isolated and os.path.isdir("/proc/self")

    def run(self) -> None:
        """Read the header and the tests, write the outcomes, return after the last."""
        header = self._read_frame()
        limits = Limits(**header["limits"])
        end = time.monotonic() + header["total_timeout_s"]
        for kind in header["kinds"]:
            started = time.monotonic()
            if started >= end:
                self._read_frame()
                self._write({"status": "timeout", "detail": "no time was left for this test", "duration": 0.0})
                continue
            self._write(self._run_test(kind, header, limits, end))

    def _run_test(self, kind: str, header: dict[str, Any], limits: Limits, end: float) -> dict[str, Any]:
        test = self._fork(kind, limits)
        content = self._read_frame()["test"]
        try:
            program = {"program": header["program"], "paths": header["paths"]}
            beside = {"test": content, "paths": header["paths"], "word": test.word}
            messages = [program, beside] if len(test.inputs) == 2 else [{**program, "content": content}]
            started = time.monotonic()
            outcome = self._watch(test, messages, limits, end)
            seconds = time.monotonic() - started
            return {**outcome, "duration": max(seconds - waited_s(test.processes), 0.001)}
        finally:
            self._kill(test)
            test.close()

    def _fork(self, kind: str, limits: Limits) -> _Test:
        """Start a test's processes; they wait for what they are to run."""
        pipes = [os.pipe() for _ in range(4 if kind in ("judged", "inside") else 3)]
        outcome, output, program, *second = pipes
        read, write = program[0], outcome[1]
        others: list[int] = []
        errors = None if kind == "output" else output[1]
        start = functools.partial(self._start, output=output[1], errors=errors, limits=limits)
        if kind == "value":
            processes = [start(lambda: evaluate(read, write, limits), keep=[read, write])]
        elif kind == "output":
            processes = [start(lambda: run_script(read, write), keep=[read, write])]
        elif kind == "inside":
            test = second[0][0]
            keep = [read, test, write]
            processes = [start(lambda: judge_inside(read, test, write), keep=keep)]
        else:
            import socket

            test = second[0][0]
            mine, its = others = [end.detach() for end in socket.socketpair()]
            processes = [start(lambda: serve_program(read, its), keep=[read, its])]
            run, keep = lambda: judge(test, write, mine), [test, write, mine]
            processes.append(self._start(run, keep=keep, output=None, errors=None, limits=limits))
        inputs = [program, *second]
        for descriptor in (write, output[1], *(end for end, _ in inputs), *others):
            os.close(descriptor)
        for descriptor in (output[0], *(end for _, end in inputs)):
            os.set_blocking(descriptor, False)
        return _Test(kind, outcome[0], output[0], processes, [end for _, end in inputs])

    def _start(
        self, run: Callable[[], None], *, keep: list[int], output: int | None, errors: int | None, limits: Limits
    ) -> int:
        """Fork a confined process that has standard streams, the descriptors `keep`, and nothing else open."""
        process = os.fork()
        if process:
            return process
        try:
            os.setsid()
            for name in _IGNORED:
                signal.signal(getattr(signal, f"SIG{name}"), signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            null = os.open("/dev/null", os.O_RDWR)
            for stream, target in enumerate((null, output, errors)):
                os.dup2(null if target is None else target, stream)
            _close_all_but(keep)
            confine(limits, uid=self.uid, count_processes=self.isolated)
            run()
        except BaseException:
            pass
        finally:
            os._exit(1)

    def _watch(self, test: _Test, messages: list[dict[str, Any]], limits: Limits, end: float) -> dict[str, Any]:
        """Give a test's processes their messages, and wait for its outcome, its time or one of its limits.

        Nothing here waits for a process: one that does not read, or prints without end, costs its test alone.
        """
        started = time.monotonic()
        deadline = min(started + limits.timeout_s, end)
        poll = select.poll()
        poll.register(test.outcome, select.POLLIN)
        poll.register(test.output, select.POLLIN)
        waiting: dict[int, memoryview] = {}
        for descriptor, message in zip(list(test.inputs), messages, strict=True):
            waiting[descriptor] = memoryview(to_frame(message, INPUT_LIMIT + MESSAGE_ROOM))
            poll.register(descriptor, select.POLLOUT)
        next_check = time.monotonic() + _POLL_S
        while True:
            now = time.monotonic()
            if now >= deadline:
                waited = min(waited_s(test.processes), _MOST_WAITED * limits.timeout_s)
                deadline = min(started + limits.timeout_s + waited, end)
                if now >= deadline:
                    return {"status": "timeout"}
            if now >= next_check:
                if self.has_proc and exceeds(limits.memory_mb, limits.processes + 2):
                    return {"status": "memory", "detail": "all processes together"}
                next_check = now + _POLL_S
            wait = min(deadline, next_check) - now
            for descriptor, _ in poll.poll(max(1, int(wait * 1000))):
                if descriptor in waiting:
                    waiting[descriptor] = waiting[descriptor][_write_some(descriptor, waiting[descriptor]) :]
                    if not waiting[descriptor]:
                        poll.unregister(descriptor)
                        test.inputs.remove(descriptor)
                        os.close(descriptor)
                elif descriptor == test.output:
                    if not _take(test, limits.output_kb << 10):
                        return {"status": "output_limit"}
                    if test.output_ended:
                        poll.unregister(test.output)
                elif (outcome := self._outcome(test, limits)) is not None:
                    return outcome

    def _outcome(self, test: _Test, limits: Limits) -> dict[str, Any] | None:
        """The outcome of a test from whose process something came, None while it is incomplete."""
        data = os.read(test.outcome, 1 << 16)
        test.received += data
        most = limits.output_kb << 10
        try:
            found = from_frame(test.received, most + MESSAGE_ROOM)
        except CodecError as error:
            return {"status": "output_limit", "detail": str(error)}
        if found is None and data:
            return None
        outcome = checked(found[0], most) if found is not None else self._ended(test)
        word = outcome.pop("word", None)
        if test.kind == "inside" and outcome.get("status") == "passed" and word != test.word:
            return {"status": "error", "detail": "no outcome"}
        if test.kind == "output" and "status" not in outcome:
            if not _take(test, most):
                return {"status": "output_limit"}
            return {"printed": binascii.b2a_base64(test.printed, newline=False).decode()}
        return outcome

    def _ended(self, test: _Test) -> dict[str, Any]:
        """The outcome of a test whose process ended without one; a script may end so."""
        process, status = os.waitpid(test.processes[-1], os.WNOHANG)
        for _ in range(20):
            if process:
                break
            time.sleep(0.005)
            process, status = os.waitpid(test.processes[-1], os.WNOHANG)
        if not process:
            return {"status": "error", "detail": "closed its descriptors"}
        test.processes.pop()
        code = os.waitstatus_to_exitcode(status)
        if code == 0 and test.kind == "output":
            return {}
        if code == -signal.SIGXCPU:
            return {"status": "timeout"}
        return {"status": "error", "detail": f"ended with code {code} before the test did"}

    def _kill(self, test: _Test) -> None:
        """Kill whatever a test started, and wait for it."""
        if self.isolated:
            while True:
                try:
                    os.kill(-1, signal.SIGKILL)
                except ProcessLookupError:
                    break
                if not reap_one():
                    break
            while reap_one(wait=True):
                pass
            empty_scratch()
            return
        for _ in range(1000):
            found = descendants(os.getpid())
            for process in (*test.processes, *found):
                kill_one(process)
            while reap_one():
                pass
            if not descendants(os.getpid()):
                return
            time.sleep(0.001)

    def _read_frame(self) -> Any:
        head = _read_exactly(self.source, 4)
        found = from_frame(head + _read_exactly(self.source, int.from_bytes(head, "big")), INPUT_LIMIT)
        assert found is not None
        return found[0]

    def _write(self, outcome: dict[str, Any]) -> None:
        write_all(self.sink, to_frame(outcome, INPUT_LIMIT))


def supervise(*, uid: int, isolated: bool) -> None:
    """Run the tests that arrive on standard input; outcomes leave by standard output."""
    hide_memory()
    for name in _IGNORED:  # Python has a handler for SIGINT, so that not even process 1 would be safe from it
        signal.signal(getattr(signal, f"SIG{name}"), signal.SIG_IGN)
    if isolated:
        keep_capabilities(_CAPABILITIES)
    else:
        adopt_orphans()
        uid = uid if _can_read_library(uid) else os.geteuid()
    gc.freeze()  # what is there already is of no interest to collections in a test's processes
    source, sink = os.dup(0), os.dup(1)
    null = os.open("/dev/null", os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    Supervisor(source, sink, uid=uid, isolated=isolated).run()


def _can_read_library(uid: int) -> bool:
    """Whether user `uid` could import Python's own modules, which may lie in the home of another."""
    process = os.fork()
    if process == 0:
        try:
            become_user(uid)
            os._exit(0 if os.access(os.__file__, os.R_OK) else 1)
        finally:
            os._exit(1)
    return os.waitpid(process, 0)[1] == 0


def _write_some(descriptor: int, data: memoryview) -> int:
    """Bytes that a process took now, all of them where it is gone: that is found out by its missing outcome."""
    try:
        return os.write(descriptor, data)
    except BlockingIOError:
        return 0
    except BrokenPipeError:
        return len(data)


def _take(test: _Test, limit: int) -> bool:
    """Take what a program has printed so far; False where it is more than `limit` bytes."""
    while len(test.printed) <= limit:
        try:
            data = os.read(test.output, 1 << 16)
        except BlockingIOError:
            return True
        test.printed += data
        if not data:
            test.output_ended = True
            return True
    return False


def _read_exactly(descriptor: int, count: int) -> bytes:
    data = b""
    while len(data) < count:
        chunk = os.read(descriptor, count - len(data))
        if not chunk:
            raise EOFError("the input ended early")
        data += chunk
    return data


def _close_all_but(keep: list[int]) -> None:
    low = 3
    for descriptor in sorted(keep):
        os.closerange(low, descriptor)
        low = descriptor + 1
    os.closerange(low, 4096)
