"""The provider `local`: processes on this machine, jailed by bubblewrap, nsjail or namespaces of our own.

None of the first two comes from PyPI, and on many clusters nobody may install them: there the namespaces of our own
(`inside/namespaces.py`) need nothing but a kernel that grants them. nsjail stays for images that have it already.
"""

import asyncio
import functools
import itertools
import json
import logging
import marshal
import os
import pathlib
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from maskgrpo_plugin.sandbox.base import (
    START_UP_S,
    Job,
    Sandbox,
    SandboxFailure,
    from_output,
    inside_sources,
    to_input,
)
from maskgrpo_plugin.sandbox.config import SandboxConfig
from maskgrpo_plugin.sandbox.inside.confinement import FIRST_PRIVATE_UID, NOBODY
from maskgrpo_plugin.sandbox.inside.namespaces import DEVICE_LINKS, DEVICES

logger = logging.getLogger(__name__)

# Reads the compiled modules of `inside` from standard input and starts; what follows there is for the supervisor.
_START = """
import marshal, os, sys
def read(count):
    data = b""
    while len(data) < count:
        data += os.read(0, count - len(data)) or sys.exit("the input ended early")
    return data
package = sys.modules["inside"] = type(sys)("inside")
package.__path__ = []
for name, code in marshal.loads(read(int.from_bytes(read(4), "big"))):
    module = sys.modules["inside." + name] = type(sys)("inside." + name)
    module.__package__ = "inside"
    exec(code, module.__dict__)
del sys.path[0]
sys.modules["inside.entry"].main(sys.argv[1])
"""
_ENVIRONMENT = {
    "PATH": "/usr/bin:/bin",
    "HOME": "/tmp",
    "LANG": "C.UTF-8",
    "PYTHONHASHSEED": "0",
    "PYTHONDONTWRITEBYTECODE": "1",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}
# The first is for mounting /tmp and given up before anything else happens.
_CAPABILITIES = ("SYS_ADMIN", "SETUID", "SETGID", "SETPCAP", "KILL", "DAC_OVERRIDE")
_OUTPUT_ROOM = 1 << 20
_jail_numbers = itertools.count()

# Says what a program sees, for the probe.
_PROBE = """
import os, colorsys
def look():
    try:
        open("/etc/shadow").close()
        shadow = True
    except OSError:
        shadow = False
    with open("/proc/self/status") if os.path.exists("/proc/self/status") else open("/dev/null") as file:
        status = dict(line.split(":\\t", 1) for line in file.read().splitlines() if ":\\t" in line)
    return [shadow, os.getuid(), os.getppid(), status.get("Seccomp", "?").strip(), len(os.environ)]
"""


@dataclass(frozen=True)
class Isolation:
    """What keeps programs from the machine.

    Args:
        name: bubblewrap, nsjail, namespaces or none.
        seccomp: whether a filter of system calls is active besides; None where it could not be seen.
    """

    name: str
    seccomp: bool | None = None


class LocalSandbox(Sandbox):
    """One jail for each program, one fresh process in it for each test.

    The jail has namespaces of its own (no network, no other processes, none of the machine's files but the system's
    programs and a Python, read-only), an empty environment, a small /tmp; the program has no privileges, cannot gain
    any, and has limits on everything. The jail dies with its first process, which dies with ours.

    Raises:
        RuntimeError: nothing isolates here and `allow_unisolated` is not set.
    """

    def __init__(self, config: SandboxConfig):
        super().__init__(config)
        self.isolation = detect_isolation(config)
        self._pool = ThreadPoolExecutor(config.workers, thread_name_prefix="sandbox")
        logger.log(
            logging.WARNING if self.isolation.name == "none" else logging.INFO, "code rewards: %s", self.describe()
        )

    async def run(self, jobs: Sequence[Job]) -> list[list[Any] | SandboxFailure]:
        loop = asyncio.get_running_loop()
        return await asyncio.gather(*(loop.run_in_executor(self._pool, self._run_safely, job) for job in jobs))

    def describe(self) -> str:
        if self.isolation.name == "none":
            return "programs run UNISOLATED, with limits alone (the sandbox's setting allow_unisolated)"
        names = {True: "and a system call filter", False: "without a system call filter", None: ""}
        return f"programs run isolated by {self.isolation.name} {names[self.isolation.seccomp]}".rstrip()

    def _run_safely(self, job: Job) -> list[Any] | SandboxFailure:
        try:
            return run_jail(job, self.config, self.isolation.name)
        except SandboxFailure as failure:
            return failure
        except Exception as error:
            return SandboxFailure(f"{type(error).__name__}: {error}")


def detect_isolation(config: SandboxConfig) -> Isolation:
    """The first isolation that works here, of those that the configuration admits; each is tried with a program.

    Raises:
        RuntimeError: none works, and the configuration does not allow to run unisolated.
    """
    asked = ("bubblewrap", "nsjail", "namespaces") if config.isolation == "auto" else (config.isolation,)
    reasons = []
    for name in asked:
        try:
            return _probe(name, config)
        except (SandboxFailure, OSError) as error:
            reasons.append(f"{name}: {error}")
    if config.allow_unisolated:
        return Isolation("none")
    raise RuntimeError(
        f"no isolation for code rewards works on this machine ({'; '.join(reasons)}). Install bubblewrap, allow user "
        "namespaces, choose another provider of the sandbox (e2b, sandbox_fusion), or, for code you trust, set its "
        "allow_unisolated=true"
    )


def _probe(name: str, config: SandboxConfig) -> Isolation:
    """Run a small program under an isolation and look at what it saw."""
    outcomes = run_jail(Job(_PROBE, ("look()",), ("value",)), config, name)
    value = outcomes[0].get("value") if outcomes and isinstance(outcomes[0], dict) else None
    if not isinstance(value, list):
        raise SandboxFailure(f"a program did not run: {outcomes}")
    shadow, uid, parent, seccomp, variables = value
    if shadow or uid == 0 or parent != 1 or variables > len(_ENVIRONMENT) + 2:
        raise SandboxFailure(f"a program is not isolated: {value}")
    return Isolation(name, {"2": True, "0": False}.get(seccomp))


def run_jail(job: Job, config: SandboxConfig, isolation: str) -> list[Any]:
    """Run one job in a jail of its own.

    Args:
        isolation: bubblewrap, nsjail, namespaces or none.

    Returns:
        the outcomes of its tests, fewer where the jail broke off.

    Raises:
        SandboxFailure: the jail could not be started, or overran the time for all tests.
    """
    with tempfile.TemporaryFile() as source, tempfile.TemporaryFile() as complaints:
        source.write(_compiled() + to_input(job, config))
        source.seek(0)
        try:
            process = subprocess.Popen(
                _command(isolation, config),
                stdin=source,
                stdout=subprocess.PIPE,
                stderr=complaints,
                env=_ENVIRONMENT,
                cwd="/",
                start_new_session=True,
            )
        except OSError as error:
            raise SandboxFailure(f"{isolation} does not start: {error}") from None
        limit = _OUTPUT_ROOM + len(job.tests) * ((config.output_kb << 11) + 16384)
        try:
            data = _read(process, config.total_timeout_s + START_UP_S, limit)
        finally:
            _kill(process)
        outcomes = from_output(data)
        if len(outcomes) < len(job.tests):
            complaints.seek(0)
            reason = complaints.read(2000).decode(errors="replace").strip() or f"exit code {process.returncode}"
            if not outcomes:
                raise SandboxFailure(f"{isolation}: {reason}")
            logger.warning(
                "a sandbox broke off after %d of %d tests, its input read to %d of %d bytes: %s",
                len(outcomes),
                len(job.tests),
                os.lseek(source.fileno(), 0, os.SEEK_CUR),
                os.fstat(source.fileno()).st_size,
                reason,
            )
        return outcomes


def _read(process: "subprocess.Popen[bytes]", seconds: float, limit: int) -> bytes:
    """What a process writes until it closes its output, has written `limit` bytes, or its time is over."""
    assert process.stdout is not None
    descriptor = process.stdout.fileno()
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    end = time.monotonic() + seconds
    data = bytearray()
    while len(data) <= limit and (left := end - time.monotonic()) > 0:
        if poll.poll(left * 1000):
            chunk = os.read(descriptor, 1 << 16)
            if not chunk:
                break
            data += chunk
    return bytes(data)


def _kill(process: "subprocess.Popen[bytes]") -> None:
    """End a jail with all in it."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait()
    if process.stdout is not None:
        process.stdout.close()


def _command(isolation: str, config: SandboxConfig) -> list[str]:
    """The command line that starts a supervisor in a jail.

    Raises:
        SandboxFailure: the program that makes the jail is not installed.
    """
    python = os.path.realpath(sys.executable)
    folders = [os.path.realpath(sys.base_prefix), *config.python_path]
    uid = FIRST_PRIVATE_UID + 100_000_000 + (os.getpid() * 1009 + next(_jail_numbers)) % 100_000_000
    options = {
        "jail": isolation == "namespaces",
        "isolated": isolation != "none",
        "uid": uid,
        "folders": folders,
        "tmp_mb": config.file_mb,
        # A folder that lies in /tmp would be hidden by another /tmp: bubblewrap's stays then.
        "mount_tmp": isolation == "bubblewrap" and not any(folder.startswith("/tmp/") for folder in folders),
    }
    prefix = _PREFIXES[isolation](folders, config) if isolation in _PREFIXES else []
    return [*prefix, python, "-s", "-S", "-c", _START, json.dumps(options)]


@functools.cache
def _compiled() -> bytes:
    """The modules of `inside` for the same Python in a sandbox, which then need not compile them each time."""
    codes = [(name, compile(text, f"<{name}>", "exec")) for name, text in inside_sources().items()]
    data = marshal.dumps(codes)
    return len(data).to_bytes(4, "big") + data


def _bubblewrap(folders: list[str], config: SandboxConfig) -> list[str]:
    """bwrap's command line up to the command. Root stays root for the supervisor alone, with few capabilities."""
    command = [_find("bwrap"), "--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts"]
    command += ["--unshare-cgroup-try", "--die-with-parent", "--as-pid-1", "--hostname", "sandbox"]
    if os.geteuid() == 0:
        command += ["--cap-drop", "ALL", *(part for name in _CAPABILITIES for part in ("--cap-add", f"CAP_{name}"))]
    else:
        command += ["--unshare-user", "--uid", str(NOBODY), "--gid", str(NOBODY)]
        command += ["--cap-add", "CAP_SYS_ADMIN", "--cap-add", "CAP_SETPCAP"]  # the latter to give up both for good
    command += ["--size", str(config.file_mb << 20), "--perms", "1777", "--tmpfs", "/tmp"]
    for folder in ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64"):
        if os.path.islink(folder):
            command += ["--symlink", os.readlink(folder), folder]
        elif os.path.isdir(folder):
            command += ["--ro-bind", folder, folder]
    for path in ("/etc/ld.so.cache", "/etc/localtime"):
        command += ["--ro-bind-try", os.path.realpath(path), path]
    for folder in folders:
        if not folder.startswith("/usr/") and folder != "/usr":
            for parent in list(reversed(pathlib.PurePath(folder).parents))[1:]:
                if str(parent) != "/tmp":  # otherwise they get the modes that they have outside
                    command += ["--perms", "0755", "--dir", str(parent)]
            command += ["--ro-bind", folder, folder]
    command += ["--proc", "/proc", "--perms", "0755", "--dir", "/dev"]
    for device in DEVICES:
        command += ["--dev-bind", f"/dev/{device}", f"/dev/{device}"]
    for name, target in DEVICE_LINKS.items():
        command += ["--symlink", target, f"/dev/{name}"]
    return [*command, "--remount-ro", "/", "--chdir", "/tmp", "--"]


def _nsjail(folders: list[str], config: SandboxConfig) -> list[str]:
    """nsjail's command line up to the command."""
    command = [_find("nsjail"), "--mode", "o", "--really_quiet", "--hostname", "sandbox", "--iface_no_lo"]
    command += ["--user", str(NOBODY), "--group", str(NOBODY), "--time_limit", "0", "--keep_env", "--cwd", "/tmp"]
    for name in ("as", "core", "cpu", "fsize", "nofile", "nproc", "stack"):
        command += [f"--rlimit_{name}", "hard"]
    command += ["--mount", f"none:/tmp:tmpfs:size={config.file_mb << 20},mode=1777"]
    for folder in ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/etc/ld.so.cache", *folders):
        if os.path.exists(folder):
            command += ["--bindmount_ro", folder]
    for device in DEVICES:
        command += ["--bindmount", f"/dev/{device}"]
    return [*command, "--"]


_PREFIXES = {"bubblewrap": _bubblewrap, "nsjail": _nsjail}


def _find(program: str) -> str:
    found = shutil.which(program)
    if found is None:
        raise SandboxFailure("not installed")
    return found
