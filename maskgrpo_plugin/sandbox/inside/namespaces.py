"""A jail of our own where bubblewrap and nsjail are missing: fresh namespaces and a root that holds a Python alone."""

import ctypes
import errno
import os
import struct

from .confinement import FIRST_PRIVATE_UID, NOBODY, die_with_parent, libc

_NEW_USER, _NEW_OTHERS = 0x10000000, 0x00020000 | 0x20000000 | 0x40000000 | 0x08000000 | 0x04000000 | 0x02000000
_RDONLY, _NOSUID, _NODEV, _NOEXEC, _REMOUNT, _BIND, _REC, _PRIVATE = 1, 2, 4, 8, 32, 4096, 16384, 1 << 18
_DETACH = 2
_NOATIME, _NODIRATIME = 1024, 2048
_AT_FDCWD, _AT_RECURSIVE = -100, 0x8000
_SYS_MOUNT_SETATTR = 442
DEVICES = ("null", "full", "random", "urandom")  # not zero: mapped, it is memory that no process's account has
# Shared memory lies in /tmp, so that it has its size, is counted and emptied with it.
DEVICE_LINKS = {
    "shm": "/tmp",
    "fd": "/proc/self/fd",
    **{f"std{n}": f"/proc/self/fd/{i}" for i, n in enumerate(("in", "out", "err"))},
}
_SYSTEM_FOLDERS = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64")
SCRATCH_FILES = 4096
_SYSTEM_FILES = ("/etc/ld.so.cache", "/etc/localtime")


def enter(folders: list[str], tmp_mb: int) -> int:
    """Put this process, as process 1 of a jail, where it sees `folders`, the system's programs and nothing else.

    Forks: the caller returns in the child; the parent waits for it and exits as it did. User, mount, process, network,
    IPC, host name and cgroup namespaces are new; where the kernel has no user namespaces, root does without.

    Args:
        folders: absolute paths to show, read-only (a Python's prefix).
        tmp_mb: size of /tmp, MiB.

    Returns:
        the user to run untrusted code as, which runs nothing else on the machine.

    Raises:
        OSError: the kernel denies a step; no untrusted code may run then.
    """
    private_uid = FIRST_PRIVATE_UID + os.getpid() % 100_000_000
    die_with_parent()
    has_user_namespace = _unshare()
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        os._exit(os.waitstatus_to_exitcode(status) & 0xFF)
    die_with_parent()
    _build_root(folders, tmp_mb)
    libc.sethostname(b"sandbox", 7)
    return NOBODY if has_user_namespace else private_uid


def _unshare() -> bool:
    """Enter new namespaces; a short-lived child writes the user map, which only a process outside may do freely.

    Returns:
        whether the namespaces include a user namespace.
    """
    uid, gid, target = os.geteuid(), os.getegid(), os.getpid()
    ready_read, ready_write = os.pipe()
    writer = os.fork()
    if writer == 0:
        os.close(ready_write)
        code = 1
        try:
            if os.read(ready_read, 1):
                _write_maps(target, uid, gid)
                code = 0
        finally:
            os._exit(code)
    os.close(ready_read)
    has_user = libc.unshare(_NEW_USER | _NEW_OTHERS) == 0
    if has_user:
        os.write(ready_write, b"x")
    os.close(ready_write)
    status = os.waitstatus_to_exitcode(os.waitpid(writer, 0)[1])
    if has_user and status:
        raise OSError(errno.EPERM, "the kernel refused to map a user into a new user namespace")
    if not has_user and libc.unshare(_NEW_OTHERS) != 0:
        _fail("unshare")
    return has_user


def _write_maps(pid: int, uid: int, gid: int) -> None:
    """Map the caller to root and, where the caller is root, nobody to an id of the jail's own; else just the caller."""
    both = f"0 {uid} 1\n{NOBODY} {FIRST_PRIVATE_UID + pid % 100_000_000} 1\n"
    try:
        for name, text in (("uid_map", both), ("gid_map", both.replace(f"0 {uid}", f"0 {gid}", 1))):
            _write(f"/proc/{pid}/{name}", text)
    except OSError:
        try:
            _write(f"/proc/{pid}/setgroups", "deny")
        except OSError:
            pass
        for name, own in (("uid_map", uid), ("gid_map", gid)):
            _write(f"/proc/{pid}/{name}", f"{NOBODY} {own} 1\n")


def _write(path: str, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)


def _build_root(folders: list[str], tmp_mb: int) -> None:
    """Make a small tmpfs the root, with read-only views of what is to be seen, and drop the old one."""
    _mount("none", "/", None, _REC | _PRIVATE)
    _mount("tmpfs", "/tmp", "tmpfs", _NOSUID | _NODEV, "size=1m,mode=0755")
    os.mkdir("/tmp/old")
    os.chdir("/tmp")
    if libc.pivot_root(b".", b"old") != 0:
        _fail("pivot_root")
    os.chdir("/")
    for folder in ("/proc", "/tmp"):
        os.mkdir(folder)
    mount_scratch(tmp_mb)
    for path in (*_SYSTEM_FOLDERS, *_SYSTEM_FILES, *sorted(folders)):
        _show(path)
    os.mkdir("/dev")
    for device in DEVICES:
        _show(f"/dev/{device}", device=True)
    for name, target in DEVICE_LINKS.items():
        os.symlink(target, f"/dev/{name}")
    try:
        _mount("proc", "/proc", "proc", _RDONLY | _NOSUID | _NODEV | _NOEXEC)
    except OSError:
        pass  # a container that masks parts of its own /proc may not mount another: programs do without
    if libc.umount2(b"/old", _DETACH) != 0:
        _fail("umount2")
    os.rmdir("/old")
    _mount("none", "/", None, _REMOUNT | _BIND | _RDONLY | _NOSUID | _NODEV)
    os.chdir("/tmp")


def mount_scratch(tmp_mb: int) -> None:
    """Mount an empty /tmp of so many MiB and few files, from which nothing can be executed.

    Raises:
        OSError: the kernel denies it.
    """
    options = f"size={tmp_mb}m,nr_inodes={SCRATCH_FILES},mode=1777"
    _mount("tmpfs", "/tmp", "tmpfs", _NOSUID | _NODEV | _NOEXEC, options)


def _show(path: str, *, device: bool = False) -> None:
    """Show `path` of the old root at its place in the new one, read-only, where it exists and is not shown yet."""
    source = "/old" + path
    if os.path.lexists(path) or not os.path.lexists(source):
        return
    if os.path.islink(source) and path in _SYSTEM_FOLDERS:
        os.symlink(os.readlink(source), path)
        return
    if os.path.isdir(source):
        os.makedirs(path)
    else:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY))
    _mount(source, path, None, _BIND | _REC)
    if not device:
        _make_read_only(path)


def _make_read_only(path: str) -> None:
    """Make a mount and all below it read-only, without devices and without programs that change the user."""
    attributes = struct.pack("=QQQQ", 1 | 2 | 4, 0, 0, 0)
    done = libc.syscall(
        ctypes.c_long(_SYS_MOUNT_SETATTR),
        ctypes.c_long(_AT_FDCWD),
        ctypes.c_char_p(path.encode()),
        ctypes.c_long(_AT_RECURSIVE),
        ctypes.c_char_p(attributes),
        ctypes.c_long(len(attributes)),
    )
    if done == 0:
        return
    # A kernel before 5.12: flags that the mount already has must be repeated.
    kept = os.statvfs(path).f_flag & (_NOEXEC | _NOATIME | _NODIRATIME)
    _mount("none", path, None, _REMOUNT | _BIND | _RDONLY | _NOSUID | _NODEV | kept)


def _mount(source: str, target: str, kind: str | None, flags: int, options: str = "") -> None:
    arguments = (source.encode(), target.encode(), kind.encode() if kind else None)
    if libc.mount(*arguments, ctypes.c_ulong(flags), options.encode() or None) != 0:
        _fail(f"mount {target}")


def _fail(what: str) -> None:
    number = ctypes.get_errno()
    raise OSError(number, f"{what}: {os.strerror(number)}")
