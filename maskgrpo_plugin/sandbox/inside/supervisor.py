"""The trusted process inside a sandbox: one fresh process per test, its limits, and what became of it.

It never runs the program. A process is forked before the text of the judged test is read, so that no trace of that
text is in the program's memory, and only the supervisor holds the descriptors that results leave by.

Input (frames, see codec): a header, then one frame per test. Output: one frame per test, in order.
"""

from __future__ import annotations

import os
import select
import signal
import time

from .codec import INPUT_LIMIT, CodecError, from_frame, to_frame
from .confinement import Limits, adopt_orphans, become_user, confine, hide_memory
from .work import MESSAGE_ROOM, evaluate, judge, serve_program, write_all

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

_POLL_S = 0.05
_SCRATCH = "/tmp"


class _Test:
    """One test under way: its processes, the pipe the outcome arrives by, and what it has used."""

    def __init__(self, outcome: int, output: int, processes: list[int], deadline: float):
        self.outcome, self.output, self.processes, self.deadline = outcome, output, processes, deadline
        self.received = bytearray()
        self.printed = 0


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
        for judged in header["judged"]:
            started = time.monotonic()
            if started >= end:
                self._read_frame()
                self._write({"status": "timeout", "detail": "no time was left for this test", "duration": 0.0})
                continue
            outcome = self._run_test(judged, header, limits, min(started + limits.timeout_s, end))
            self._write({**outcome, "duration": time.monotonic() - started})

    def _run_test(self, judged: bool, header: dict[str, Any], limits: Limits, deadline: float) -> dict[str, Any]:
        test, give_program, give_judge = self._fork(judged, limits, deadline)
        content = self._read_frame()["test"]
        try:
            program = {"program": header["program"], "paths": header["paths"]}
            _give(give_program, program if judged else {**program, "expression": content})
            if give_judge is not None:
                _give(give_judge, {"test": content, "paths": header["paths"]})
            return self._watch(test, limits)
        finally:
            self._kill(test)
            os.close(test.outcome)
            os.close(test.output)

    def _fork(self, judged: bool, limits: Limits, deadline: float) -> tuple[_Test, int, int | None]:
        """Start a test's processes; they wait for what they are to run."""
        outcome_read, outcome_write = os.pipe()
        output_read, output_write = os.pipe()
        program_read, program_write = os.pipe()
        mine = [outcome_write, output_write, program_read]
        judge_write = None
        if not judged:
            run = lambda: evaluate(program_read, outcome_write, limits)  # noqa: E731
            processes = [self._start(run, keep=[program_read, outcome_write], output=output_write, limits=limits)]
        else:
            import socket

            judge_end, program_end = (end.detach() for end in socket.socketpair())
            judge_read, judge_write = os.pipe()
            run = lambda: serve_program(program_read, program_end)  # noqa: E731
            processes = [self._start(run, keep=[program_read, program_end], output=output_write, limits=limits)]
            run = lambda: judge(judge_read, outcome_write, judge_end)  # noqa: E731
            keep = [judge_read, outcome_write, judge_end]
            processes.append(self._start(run, keep=keep, output=None, limits=limits))
            mine += [judge_read, judge_end, program_end]
        for descriptor in mine:
            os.close(descriptor)
        return _Test(outcome_read, output_read, processes, deadline), program_write, judge_write

    def _start(self, run: Callable[[], None], *, keep: list[int], output: int | None, limits: Limits) -> int:
        """Fork a confined process that has standard streams, the descriptors `keep`, and nothing else open."""
        process = os.fork()
        if process:
            return process
        try:
            os.setsid()
            null = os.open("/dev/null", os.O_RDWR)
            for stream in (0, 1, 2):
                os.dup2(null if output is None or stream == 0 else output, stream)
            _close_all_but(keep)
            confine(limits, uid=self.uid, count_processes=self.isolated)
            run()
        except BaseException:
            pass
        finally:
            os._exit(1)

    def _watch(self, test: _Test, limits: Limits) -> dict[str, Any]:
        """Wait for a test's outcome, its time or one of its limits, whichever is first."""
        poll = select.poll()
        poll.register(test.outcome, select.POLLIN)
        poll.register(test.output, select.POLLIN)
        next_check = time.monotonic() + _POLL_S
        output_open = True
        while True:
            now = time.monotonic()
            if now >= test.deadline:
                return {"status": "timeout"}
            if now >= next_check:
                if self._over_limits(limits):
                    return {"status": "memory", "detail": "all processes together"}
                next_check = now + _POLL_S
            wait = min(test.deadline, next_check) - now
            for descriptor, _ in poll.poll(max(1, int(wait * 1000))):
                data = os.read(descriptor, 1 << 16)
                if descriptor == test.output:
                    test.printed += len(data)
                    if test.printed > limits.output_kb << 10:
                        return {"status": "output_limit"}
                    if not data and output_open:
                        output_open = False
                        poll.unregister(test.output)
                    continue
                test.received += data
                try:
                    found = from_frame(test.received, (limits.output_kb << 10) + MESSAGE_ROOM)
                except CodecError as error:
                    return {"status": "output_limit", "detail": str(error)}
                if found is not None:
                    return found[0] if isinstance(found[0], dict) else {"status": "error", "detail": "no outcome"}
                if not data:
                    return self._ended(test)

    def _ended(self, test: _Test) -> dict[str, Any]:
        """The outcome of a test whose process ended without one."""
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
        if code == -signal.SIGXCPU:
            return {"status": "timeout"}
        return {"status": "error", "detail": f"ended with code {code} before the test did"}

    def _over_limits(self, limits: Limits) -> bool:
        """Whether all processes in the jail use more memory, or are more, than one test may."""
        if not self.has_proc:
            return False
        pages = count = 0
        own = str(os.getpid())
        for name in os.listdir("/proc"):
            if not name.isdigit() or name in (own, "1"):
                continue
            try:
                with open(f"/proc/{name}/statm", "rb") as file:
                    pages += int(file.read().split()[1])
                count += 1
            except (OSError, IndexError, ValueError):
                continue
        return pages * os.sysconf("SC_PAGE_SIZE") > limits.memory_mb << 20 or count > limits.processes + 2

    def _kill(self, test: _Test) -> None:
        """Kill whatever a test started, and wait for it."""
        if self.isolated:
            while True:
                try:
                    os.kill(-1, signal.SIGKILL)
                except ProcessLookupError:
                    break
                if not _reap_one():
                    break
            while _reap_one(wait=True):
                pass
            _empty(_SCRATCH)
            return
        for _ in range(1000):
            found = _descendants(os.getpid())
            for process in (*test.processes, *found):
                _kill_one(process)
            while _reap_one():
                pass
            if not _descendants(os.getpid()):
                return
            time.sleep(0.001)

    def _read_frame(self) -> Any:
        head = _read_exactly(self.source, 4)
        found = from_frame(head + _read_exactly(self.source, int.from_bytes(head, "big")), INPUT_LIMIT)
        assert found is not None
        return found[0]

    def _write(self, outcome: dict[str, Any]) -> None:
        try:
            frame = to_frame(outcome, INPUT_LIMIT)
        except (CodecError, RecursionError):  # sent by the program, read by a hair, and too deep to be written
            frame = to_frame({"status": "error", "detail": "no outcome", "duration": outcome["duration"]}, MESSAGE_ROOM)
        write_all(self.sink, frame)


def supervise(*, uid: int, isolated: bool) -> None:
    """Run the tests that arrive on standard input; outcomes leave by standard output."""
    hide_memory()
    if not isolated:
        adopt_orphans()
        uid = uid if _can_read_library(uid) else os.geteuid()
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


def _give(descriptor: int, job: dict[str, Any]) -> None:
    """Hand a process what it is to run; one that is dead already is found out by its missing outcome."""
    try:
        write_all(descriptor, to_frame(job, INPUT_LIMIT))
    except BrokenPipeError:
        pass
    finally:
        os.close(descriptor)


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


def _empty(folder: str) -> None:
    """Remove what a test left in a folder, as far as that is possible; its limit on size holds in any case."""
    try:
        entries = list(os.scandir(folder))
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                import shutil

                shutil.rmtree(entry.path, ignore_errors=True)
            else:
                os.unlink(entry.path)
    except Exception:
        pass  # permissions, nesting beyond the recursion limit: the program harms its own tests alone


def _reap_one(*, wait: bool = False) -> bool:
    """Take the status of one ended child; False where there is none (yet, or at all)."""
    try:
        return os.waitpid(-1, 0 if wait else os.WNOHANG)[0] != 0
    except ChildProcessError:
        return False


def _kill_one(process: int) -> None:
    try:
        os.kill(process, signal.SIGKILL)
    except OSError:
        pass


def _descendants(root: int) -> list[int]:
    """All living descendants of a process, by /proc."""
    parents: dict[int, int] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat", "rb") as file:
                    parents[int(name)] = int(file.read().rpartition(b")")[2].split()[1])
            except (OSError, IndexError, ValueError):
                continue
    found, last = {root}, 0
    while len(found) != last:
        last = len(found)
        found |= {process for process, parent in parents.items() if parent in found}
    return sorted(found - {root})
