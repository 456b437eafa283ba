"""The jails of this machine: nothing outside is within a program's reach, and nothing of a program is left."""

import os
import socket
import subprocess

import pytest
from sandbox_programs import ALL_TESTS, SOLUTION, SOLUTION_TESTS

from maskgrpo_plugin.sandbox import SandboxConfig, Status, run_tests
from maskgrpo_plugin.sandbox.base import SandboxFailure
from maskgrpo_plugin.sandbox.local import Isolation, LocalSandbox, detect_isolation

LOOKS = {
    "/etc/shadow": "open('/etc/shadow').read()",
    "/etc/passwd": "open('/etc/passwd').read()",
    "the machine's folders": "[p for p in ('/var', '/srv', '/boot', '/sys', '/run', '/mnt') if os.path.exists(p)][0]",
    "the environment": "os.environ['SECRET_OF_THE_PARENT']",
    "another's environment": "[open(f'/proc/{{p}}/environ').read() for p in os.listdir('/proc') if p.isdigit()]",
    "our process": "open('/proc/{pid}/cmdline').read()",
    "supervisor's memory": "open('/proc/1/mem', 'rb')",
    "supervisor's descriptors": "os.listdir('/proc/1/fd')",
    "our files": "open({file!r}).read()",
    "more processes than the jail's": "[p for p in os.listdir('/proc') if p.isdigit()][5]",
    "write outside": "open('/usr/bin/forged', 'w')",
    "write to the root": "open('/forged', 'w')",
    "write to Python": "open(os.__file__, 'a')",
    "write to the harness": "open(sys.modules['inside.codec'].__file__, 'a')",
    "write to /dev": "open('/dev/forged', 'w')",
    "write to /proc": "open('/proc/sys/kernel/hostname', 'w').write('x')",
    "socket": "socket.socket().connect(('127.0.0.1', {port}))",
    "socket outwards": "socket.create_connection(('192.0.2.1', 80), 0.2)",
    "unix socket": "socket.socket(socket.AF_UNIX).connect({unix!r})",
    "become root": "os.setuid(0)",
    "new namespaces": "ctypes.CDLL(None).unshare(0x10000000) == 0 or [][0]",
    "mount": "ctypes.CDLL(None).mount(b'none', b'/tmp', b'tmpfs', 0, None) == 0 or [][0]",
    "trace": "ctypes.CDLL(None).ptrace(16, 1, 0, 0) == 0 or [][0]",
    "set-uid program": "subprocess.run(['/usr/bin/su', '-c', 'id'], check=True)",
    "chroot": "os.chroot('/tmp')",
}


def test_nothing_of_the_machine_is_within_reach(quick, monkeypatch, tmp_path):
    """Each look must raise; the program tells by name what did not."""
    monkeypatch.setenv("SECRET_OF_THE_PARENT", "1")
    file = tmp_path / "secret"
    file.write_text("secret")
    with socket.socket() as listening, socket.socket(socket.AF_UNIX) as unix:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        unix.bind(str(tmp_path / "unix"))
        unix.listen()
        known = {"pid": os.getpid(), "file": str(file), "port": listening.getsockname()[1]}
        looks = {name: text.format(unix=str(tmp_path / "unix"), **known) for name, text in LOOKS.items()}
        program = f"""
import os, sys, socket, ctypes, subprocess
def reached(looks):
    found = []
    for name, text in looks.items():
        try: eval(text)
        except Exception: continue
        found.append(name)
    return found
def look(): return reached({looks!r})
def environment(): return sorted(os.environ)
def privileges():
    status = dict(line.split(":", 1) for line in open("/proc/self/status").read().splitlines())
    return [int(status[key], 16) for key in ("CapEff", "CapPrm", "CapBnd", "CapAmb", "NoNewPrivs")] + [os.getuid() == 0]
"""
        tests = ["assert look() == []", "assert privileges() == [0, 0, 0, 0, 1, False]"]
        names = ["HOME", "LANG", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "PATH"]
        tests += [
            f"assert {{'PWD', *environment()}} == { ({'PWD', 'PYTHONDONTWRITEBYTECODE', 'PYTHONHASHSEED', *names}) }"
        ]
        report = run_tests(program, tests, config=quick)
    if report.passed != 3:  # say what was reached
        text = run_tests(program, ["assert 0, (look(), privileges(), environment())"], config=quick)
        pytest.fail(f"{report} {text}")
    assert not os.path.exists("/forged") and not os.path.exists("/usr/bin/forged")


def test_nothing_is_left(quick):
    """Daemons that a program starts end with its test; its files go as well."""
    program = """
import os, time
def f(x):
    for _ in range(5):
        if os.fork() == 0:
            os.setsid()
            time.sleep(77.125)
    return x
def count():
    return sum(p.isdigit() for p in os.listdir('/proc'))
def leave(x):
    os.makedirs("/tmp/a/b")
    open("/tmp/a/b/c", "w").close()
    os.symlink("/usr", "/tmp/link")
    return os.listdir("/tmp") != []
def left(): return os.listdir("/tmp")
"""
    tests = ["assert f(1) == 1", "assert count() == 2", "assert leave(1) is True", "assert left() == []"]
    report = run_tests(program, tests, config=quick)
    assert report.passed == 4, report
    children = subprocess.run(["ps", "-eo", "ppid,comm"], capture_output=True, text=True).stdout.split("\n")
    assert [line for line in children if line.split()[:1] == [str(os.getpid())] and "bwrap" in line] == []


class TestNoIsolation:
    def test_refused(self, monkeypatch):
        monkeypatch.setattr("maskgrpo_plugin.sandbox.local._probe", _fails)
        with pytest.raises(RuntimeError, match=r"allow_unisolated=true"):
            LocalSandbox(SandboxConfig())
        assert detect_isolation(SandboxConfig(allow_unisolated=True)) == Isolation("none")

    def test_unisolated_is_said_and_still_judges(self, monkeypatch, caplog):
        monkeypatch.setattr("maskgrpo_plugin.sandbox.local._probe", _fails)
        config = SandboxConfig(allow_unisolated=True, timeout_s=1.5, total_timeout_s=9.0)
        assert "UNISOLATED" in LocalSandbox(config).describe()
        assert "UNISOLATED" in caplog.text
        assert run_tests(SOLUTION, SOLUTION_TESTS, config=config).pass_rate == 1.0
        program = (
            "import os, time\nif os.fork() == 0: time.sleep(77.5)\ndef f(x): return 2\ndef g(x):\n    while True: pass"
        )
        report = run_tests(program, [*ALL_TESTS[:2], "assert g(1) == 1"], config=config)
        assert report.statuses == (Status.PASSED, Status.PASSED, Status.TIMEOUT)


def _fails(name, config):
    raise SandboxFailure("not here")
