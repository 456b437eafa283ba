"""What a process does to itself before it runs untrusted code: limits, no privileges, and fewer system calls.

The filter of system calls is assembled here: pyseccomp needs the library libseccomp, which PyPI does not have, within
the jail and on each service's machine.
"""

from __future__ import annotations

import ctypes
import os
import resource
import struct

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_SECCOMP, _PR_CAPBSET_DROP = 1, 4, 22, 24
_PR_SET_CHILD_SUBREAPER, _PR_SET_NO_NEW_PRIVS, _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL = 36, 38, 47, 4
_SECCOMP_MODE_FILTER = 2
_CAPABILITY_VERSION_3 = 0x20080522
_LAST_CAPABILITY = 63
NOBODY = 65534
FIRST_PRIVATE_UID = 2_000_000_000

libc = ctypes.CDLL(None, use_errno=True)


class Limits:
    """What one test may use; see SandboxConfig for the meaning of each.

    Args:
        timeout_s: wall-clock seconds.
        memory_mb: MiB of address space for a process, and of resident memory for all processes of a test.
        processes: number of processes and threads.
        file_mb: MiB of one file.
        output_kb: KiB printed by the program, and KiB of a value that it returns.
    """

    def __init__(self, timeout_s: float, memory_mb: int, processes: int, file_mb: int, output_kb: int):
        self.timeout_s, self.memory_mb, self.processes = timeout_s, memory_mb, processes
        self.file_mb, self.output_kb = file_mb, output_kb


def die_with_parent() -> None:
    """Have the kernel kill this process when its parent ends."""
    libc.prctl(_PR_SET_PDEATHSIG, 9, 0, 0, 0)


def adopt_orphans() -> None:
    """Become the parent of descendants whose own parent ends, so that they can be found and killed."""
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def hide_memory() -> None:
    """Keep processes of the same user from this one's memory, descriptors and environment; children inherit it."""
    libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def become_user(uid: int) -> None:
    """Give up root's identity for user and group `uid` where this process may; nobody where `uid` does not exist."""
    if os.geteuid() != 0:
        return
    for candidate in (uid, NOBODY):
        try:
            os.setgroups([])
            os.setresgid(candidate, candidate, candidate)
            os.setresuid(candidate, candidate, candidate)
            return
        except OSError:
            continue


def keep_capabilities(kept: tuple[int, ...]) -> None:
    """Drop all capabilities but those numbered `kept`, each below 32, which stay where this process has them."""
    mask = sum(1 << number for number in kept)
    header = struct.pack("=Ii", _CAPABILITY_VERSION_3, 0)
    held = ctypes.create_string_buffer(24)
    libc.capget(header, held)
    effective, permitted = struct.unpack_from("=II", held.raw)
    libc.capset(header, struct.pack("=6I", effective & mask, permitted & mask, 0, 0, 0, 0))


def confine(limits: Limits, *, uid: int, count_processes: bool) -> None:
    """Bind this process and its children for good: limits, user, no capabilities, no new ones, a system call filter.

    Args:
        limits: what may be used.
        uid: user and group to become where this process is root, unused by anybody else.
        count_processes: whether to limit the number of the user's processes; to be left out where the user runs
            other things.
    """
    seconds = int(limits.timeout_s) + 2
    _limit(resource.RLIMIT_CPU, seconds)
    _limit(resource.RLIMIT_AS, limits.memory_mb << 20)
    _limit(resource.RLIMIT_FSIZE, limits.file_mb << 20)
    _limit(resource.RLIMIT_NOFILE, 64)
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_MSGQUEUE, 0)
    _limit(resource.RLIMIT_SIGPENDING, 256)
    if count_processes:
        _limit(resource.RLIMIT_NPROC, limits.processes)
    for capability in range(_LAST_CAPABILITY + 1):
        libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)
    libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    become_user(uid)
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    keep_capabilities(())
    hide_memory()
    die_with_parent()
    filter_system_calls()


def _limit(what: int, value: int) -> None:
    hard = resource.getrlimit(what)[1]
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(what, (value, value))


# Name, number on x86-64, number on AArch64.
_DENIED: tuple[tuple[str, int, int], ...] = (
    ("acct", 163, 89),
    ("add_key", 248, 217),
    ("bpf", 321, 280),
    ("chroot", 161, 51),
    ("delete_module", 176, 106),
    ("finit_module", 313, 273),
    ("fsconfig", 431, 431),
    ("fsmount", 432, 432),
    ("fsopen", 430, 430),
    ("fspick", 433, 433),
    ("init_module", 175, 105),
    ("io_uring_enter", 426, 426),
    ("io_uring_register", 427, 427),
    ("io_uring_setup", 425, 425),
    ("ioprio_set", 251, 30),
    ("kcmp", 312, 272),
    ("kexec_file_load", 320, 294),
    ("kexec_load", 246, 104),
    ("keyctl", 250, 219),
    ("memfd_create", 319, 279),
    ("memfd_secret", 447, 447),
    ("migrate_pages", 256, 238),
    ("mount", 165, 40),
    ("mount_setattr", 442, 442),
    ("move_mount", 429, 429),
    ("move_pages", 279, 239),
    ("mq_open", 240, 180),
    ("msgget", 68, 186),
    ("name_to_handle_at", 303, 264),
    ("open_by_handle_at", 304, 265),
    ("open_tree", 428, 428),
    ("perf_event_open", 298, 241),
    ("personality", 135, 92),
    ("pidfd_getfd", 438, 438),
    ("pivot_root", 155, 41),
    ("process_madvise", 440, 440),
    ("process_mrelease", 448, 448),
    ("process_vm_readv", 310, 270),
    ("process_vm_writev", 311, 271),
    ("ptrace", 101, 117),
    ("quotactl", 179, 60),
    ("reboot", 169, 142),
    ("request_key", 249, 218),
    ("sched_setaffinity", 203, 122),
    ("sched_setattr", 314, 274),
    ("sched_setparam", 142, 118),
    ("sched_setscheduler", 144, 119),
    ("semget", 64, 190),
    ("setns", 308, 268),
    ("setpriority", 141, 140),
    ("shmget", 29, 194),
    ("socket", 41, 198),
    ("swapoff", 168, 225),
    ("swapon", 167, 224),
    ("syslog", 103, 116),
    ("umount2", 166, 39),
    ("unshare", 272, 97),
    ("userfaultfd", 323, 282),
    ("vmsplice", 278, 75),
)
_CLONE3 = 435
_CLONE = {"x86_64": 56, "aarch64": 220}
_PRLIMIT64 = {"x86_64": 302, "aarch64": 261}
_MMAP = {"x86_64": 9, "aarch64": 222}
_SHARED_ANONYMOUS = 0x21  # MAP_SHARED and MAP_ANONYMOUS
_NEW_NAMESPACES = 0x7E020080  # CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET and NEWTIME
_ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _AND, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x54, 0x06
_KILL, _ALLOW, _ERRNO = 0x80000000, 0x7FFF0000, 0x00050000
_EPERM, _ENOSYS = 1, 38


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def filter_system_calls() -> bool:
    """Deny sockets, tracing, mounts, namespaces, kernel interfaces, memory that is in no process's account, and limits
    and priorities of other processes to this process and its children.

    Memory out of account: files in memory without a name (memfd), shared anonymous mappings, whose pages stay when no
    process maps them any more, and pages pinned in pipes (vmsplice).

    Returns:
        whether the kernel took the filter; it has none for this architecture otherwise.
    """
    machine = os.uname().machine
    if machine not in _ARCHITECTURES:
        return False
    code = _filter(machine)
    program = _Program(len(code) // 8, code)
    return libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(program), 0, 0) == 0


def _filter(machine: str) -> bytes:
    """The filter in classic BPF, 8 bytes an instruction."""
    column = 0 if machine == "x86_64" else 1
    numbers = [(x86, arm)[column] for _, x86, arm in _DENIED]

    def step(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
        return struct.pack("=HBBI", code, if_true, if_false, value)

    steps = [step(_LOAD, 4), step(_EQUAL, _ARCHITECTURES[machine], 1, 0), step(_RETURN, _KILL), step(_LOAD, 0)]
    if machine == "x86_64":
        steps += [step(_AT_LEAST, 0x40000000, 0, 1), step(_RETURN, _KILL)]  # the x32 interface has other numbers
    for number in numbers:
        steps += [step(_EQUAL, number, 0, 1), step(_RETURN, _ERRNO | _EPERM)]
    steps += [step(_EQUAL, _CLONE3, 0, 1), step(_RETURN, _ERRNO | _ENOSYS)]  # its flags are out of sight: use clone
    deny, allow = step(_RETURN, _ERRNO | _EPERM), step(_RETURN, _ALLOW)
    # prlimit64 of another process than the caller.
    steps += [step(_EQUAL, _PRLIMIT64[machine], 0, 4), step(_LOAD, 16), step(_EQUAL, 0, 1, 0), deny, allow]
    steps += [step(_EQUAL, _MMAP[machine], 0, 5), step(_LOAD, 40), step(_AND, _SHARED_ANONYMOUS)]
    steps += [step(_EQUAL, _SHARED_ANONYMOUS, 0, 1), deny, allow]
    steps += [step(_EQUAL, _CLONE[machine], 0, 3), step(_LOAD, 16), step(_ANY_BIT, _NEW_NAMESPACES, 0, 1)]
    steps += [deny, allow]
    return b"".join(steps)
