"""What the processes of a test use together, and how they are found, ended and cleaned up after."""

from __future__ import annotations

import os
import signal

SCRATCH = "/tmp"
_FILES, _SOCKETS = 4096, 64


def exceeds(memory_mb: int, processes: int) -> bool:
    """Whether all processes in the jail but this one use more memory, or are more, than one test may.

    Memory is what processes have in theirs and what lies in the jail's files, all of which are in memory. Many small
    files and sockets take memory beside their content, so that their numbers have limits as well.
    """
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
    size, files = scratch_use()
    used = pages * os.sysconf("SC_PAGE_SIZE") + size
    return used > memory_mb << 20 or count > processes or files > _FILES or _sockets() > _SOCKETS


def waited_s(processes: list[int]) -> float:
    """Seconds that processes could have run and had no processor: of each that of its thread with most of them.

    0.0 where the kernel does not tell.
    """
    return sum(
        max([_waited(f"/proc/{process}", thread) for thread in _threads(process)], default=0.0) for process in processes
    )


def _threads(process: int) -> list[str]:
    try:
        return os.listdir(f"/proc/{process}/task")
    except OSError:
        return []


def _waited(folder: str, thread: str) -> float:
    try:
        with open(f"{folder}/task/{thread}/schedstat", "rb") as file:
            return int(file.read().split()[1]) / 1e9
    except (OSError, IndexError, ValueError):
        return 0.0


def scratch_use() -> tuple[int, int]:
    """Bytes and number of the files in the jail's folder for files."""
    found = os.statvfs(SCRATCH)
    return (found.f_blocks - found.f_bfree) * found.f_frsize, found.f_files - found.f_ffree


def _sockets() -> int:
    """Number of sockets in the jail's network namespace; each holds what was sent to it."""
    try:
        with open("/proc/net/unix", "rb") as file:
            return file.read().count(b"\n") - 1
    except OSError:
        return 0


def empty_scratch() -> None:
    """Remove what a test left in its folder, as far as that is possible; its limit on size holds in any case."""
    try:
        for entry in list(os.scandir(SCRATCH)):
            if entry.is_dir(follow_symlinks=False):
                import shutil

                shutil.rmtree(entry.path, ignore_errors=True)
            else:
                os.unlink(entry.path)
    except Exception:
        pass  # permissions, nesting beyond the recursion limit: the program harms its own tests alone


def reap_one(*, wait: bool = False) -> bool:
    """Take the status of one ended child; False where there is none (yet, or at all)."""
    try:
        return os.waitpid(-1, 0 if wait else os.WNOHANG)[0] != 0
    except ChildProcessError:
        return False


def kill_one(process: int) -> None:
    """Kill a process if it still is there."""
    try:
        os.kill(process, signal.SIGKILL)
    except OSError:
        pass


def descendants(root: int) -> list[int]:
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
