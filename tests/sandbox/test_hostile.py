"""Hostile programs under each isolation that works here, as root and as another user, and unisolated where that is
what a test is about."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from cpu_time import least_cpu_seconds
from hostile_programs import GOOD, HOSTILE, OF_THE_JAIL, OF_VERDICTS, OUTAGES
from sandbox_programs import ISOLATIONS, REASONS, needs_isolation

import maskgrpo_plugin
from maskgrpo_plugin.sandbox import SandboxConfig, Status, run_tests
from maskgrpo_plugin.sandbox.base import from_output
from maskgrpo_plugin.sandbox.comparison import equals, is_true
from maskgrpo_plugin.sandbox.inside.codec import CodecError, decode, to_frame
from maskgrpo_plugin.sandbox.inside.outcomes import MESSAGE_ROOM, checked, is_nested_deeper
from maskgrpo_plugin.sandbox.results import TestReport

LIMITS = {"timeout_s": 1.5, "total_timeout_s": 60.0, "memory_mb": 256}


def check(name: str, report: TestReport) -> None:
    """Fail where an outcome is none of those that are right, or the honest test at the end did not pass."""
    _, tests, expected = HOSTILE[name]
    assert len(tests) == len(expected)
    wrong = [
        (test, result)
        for test, result, right in zip([*tests, GOOD], report.results, [*expected, {Status.PASSED}], strict=True)
        if result.status not in right
    ]
    assert not wrong


def run(name: str, config: SandboxConfig) -> TestReport:
    program, tests, _ = HOSTILE[name]
    return run_tests("def good(x): return x + 1\n" + program, [*tests, GOOD], config=config)


@pytest.mark.parametrize("name", OF_THE_JAIL)
@pytest.mark.parametrize("isolation", ISOLATIONS)
def test_the_jail_holds(name, isolation):
    check(name, run(name, SandboxConfig(isolation=isolation, **LIMITS)))


@needs_isolation
@pytest.mark.parametrize("name", OF_VERDICTS)
def test_no_verdict_is_forged(name):
    """Which jail it is does not matter for these."""
    check(name, run(name, SandboxConfig(**LIMITS)))


@pytest.mark.parametrize(
    "name", ["limits of others", "priorities of others", "memfd", "a value nested almost too deeply"]
)
def test_held_without_isolation(name, monkeypatch):
    """A program of the supervisor's own user, which no namespace keeps from it."""
    monkeypatch.setattr("maskgrpo_plugin.sandbox.local.detect_isolation", lambda config: _none())
    check(name, run(name, SandboxConfig(allow_unisolated=True, **LIMITS)))


def test_the_supervisor_outlives_interrupts(monkeypatch):
    """Python turns SIGINT into an exception, in process 1 of a jail as well, which is safe from all other signals."""
    monkeypatch.setattr("maskgrpo_plugin.sandbox.local.detect_isolation", lambda config: _none())
    program = "import os, signal\ndef f(x):\n    os.kill(os.getppid(), signal.SIGINT)\n    return x"
    tests = ["assert f(1) == 1", "assert f(1) in (1,)", "assert f(1) == 1"]
    config = SandboxConfig(allow_unisolated=True, timeout_s=1.4, total_timeout_s=20)
    assert Status.SANDBOX_ERROR not in run_tests(program, tests, config=config).statuses


def _none():
    from maskgrpo_plugin.sandbox.local import Isolation

    return Isolation("none")


# Runs rows of hostile programs with the sandbox alone imported, for a Python that has nothing else.
_ALONE = """
import json, sys, types
root, tests = sys.argv[1:3]
package = sys.modules["maskgrpo_plugin"] = types.ModuleType("maskgrpo_plugin")
package.__path__ = [root]
sys.path.insert(0, tests)
from hostile_programs import GOOD, HOSTILE
from maskgrpo_plugin.sandbox import SandboxConfig, run_tests
statuses = {}
for name in json.loads(sys.argv[4]):
    program, tests, _ = HOSTILE[name]
    config = SandboxConfig(isolation=sys.argv[3], timeout_s=1.5, total_timeout_s=60, memory_mb=256)
    report = run_tests("def good(x): return x + 1\\n" + program, [*tests, GOOD], config=config)
    statuses[name] = [result.status.value for result in report.results]
print(json.dumps(statuses))
"""
AS_ANOTHER = [
    name
    for name in HOSTILE
    if name in OUTAGES or name in ("memfd", "shared memory", "execution from /tmp", "capabilities")
]


@pytest.fixture(scope="module")
def readable():
    """The package and the rows in a folder that every user can read, wherever the clone lies."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        package = Path(maskgrpo_plugin.__file__).parent
        shutil.copytree(package, folder / "package", ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(Path(__file__).parent / "hostile_programs.py", folder)
        for path in folder.rglob("*"):
            path.chmod(0o755 if path.is_dir() else 0o644)
        yield folder


@pytest.mark.parametrize("isolation", ISOLATIONS)
def test_held_where_we_are_not_root(isolation, readable):
    """There program and supervisor have one user, so that signals and limits reach it."""
    command, python = [], sys.executable
    if os.geteuid() == 0:
        python = "/usr/bin/python3"
        if not shutil.which("setpriv") or not os.path.exists(python):
            pytest.skip("no setpriv, or no Python that another user can read")
        command = ["setpriv", "--reuid", "12345", "--regid", "12345", "--clear-groups"]
    arguments = [str(readable / "package"), str(readable), isolation, json.dumps(AS_ANOTHER)]
    ran = subprocess.run(
        [*command, python, "-c", _ALONE, *arguments], capture_output=True, text=True, timeout=300, cwd="/"
    )
    if "no isolation for code rewards works" in ran.stderr or "PermissionError" in ran.stderr:
        pytest.skip(ran.stderr.splitlines()[-1][:200])
    assert ran.returncode == 0, ran.stderr[-1000:]
    for name, statuses in json.loads(ran.stdout).items():
        right = [*HOSTILE[name][2], {Status.PASSED}]
        assert all(status in allowed for status, allowed in zip(statuses, right, strict=True)), (name, statuses)


@needs_isolation
def test_memory_in_all_ways_together_stays_under_the_limit():
    """What the machine has left while a program takes all it can."""
    program = """
import os, time, mmap
def f(x):
    for _ in range(3): os.fork()
    kept, n = [], 0
    while True:
        for take in (lambda: os.memfd_create("x"), lambda: mmap.mmap(-1, 8 << 20), lambda: bytearray(8 << 20)):
            try:
                got = take()
                if isinstance(got, int): os.write(got, b"x" * (8 << 20))
                else: got[:] = b"x" * (8 << 20)
                kept.append(got)
            except (OSError, MemoryError): pass
"""
    before, least = _available_mb(), float("inf")
    import threading

    ended = threading.Event()

    def watch():
        nonlocal least
        while not ended.wait(0.02):
            least = min(least, _available_mb())

    thread = threading.Thread(target=watch)
    thread.start()
    report = run_tests(program, ["assert f(1) == 1"], config=SandboxConfig(**{**LIMITS, "memory_mb": 512}))
    ended.set()
    thread.join()
    assert report.statuses[0] in (Status.MEMORY, Status.TIMEOUT, Status.ERROR)
    assert before - least < 2048, (before, least)


def _available_mb() -> float:
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable")) / 1024


class TestInTheTrustedProcess:
    """Data that a sandbox may send, without one."""

    @pytest.mark.parametrize(
        "data",
        [
            {"t": "fraction", "v": ["1e1000000", None]},
            {"t": "fraction", "v": [1, "1"]},
            {"t": "fraction", "v": [True, 2]},
            {"t": "fraction", "v": [1.0, 2]},
            {"t": "fraction", "v": [{"t": "int", "v": "0x" + "f" * 100_000}, {"t": "int", "v": "0x" + "e" * 100_001}]},
            {"t": "complex", "v": ["1", None]},
            {"t": "complex", "v": [1, 2]},
            {"t": "range", "v": [0, "1", 1]},
            {"t": "range", "v": [0, 1.0, 1]},
            {"t": "timedelta", "v": [1e300, 0, 0]},
            {"t": "timedelta", "v": ["1", 0, 0]},
            {"t": "timedelta", "v": [1, 2, 3, 4]},
            {"t": "decimal", "v": "1e99999999999"},
            {"t": "decimal", "v": [0, [1], 99]},
            {"t": "int", "v": "1e9"},
            {"t": "int", "v": 1 << 60},
            10**4000,
        ],
    )
    def test_numbers_are_plain_and_of_bounded_length(self, data):
        for read in (lambda: decode(data, str), lambda: equals(data, 3), lambda: is_true(data)):

            def refused(read=read):
                with pytest.raises(CodecError):
                    read()

            assert least_cpu_seconds(refused, 0.1) < 0.1

    @pytest.mark.parametrize("expected", [{1, 2}, {1: 2}, [1], 3, (1,)])
    def test_colliding_members_are_never_put_together(self, expected):
        members = [{"t": "int", "v": hex(n * (2**61 - 1))} for n in range(20_000)]

        def compare():
            assert not equals({"t": "set", "v": members}, expected)
            assert not equals({"t": "dict", "v": [[m, 1] for m in members]}, expected)
            assert not equals([{"t": "set", "v": members}], [expected])

        assert least_cpu_seconds(compare, 0.5) < 0.5  # one set of them alone takes seconds

    def test_an_outcome_that_cannot_be_read_costs_its_test_alone(self):
        deep = b"[" * 100_000 + b"]" * 100_000
        data = to_frame({"value": 1}, 100) + len(deep).to_bytes(4, "big") + deep + to_frame({"value": 2}, 100)
        assert [outcome.get("value", outcome.get("status")) for outcome in from_output(data + b"\0\0")] == [
            1,
            "error",
            2,
        ]

    @pytest.mark.parametrize(
        "sent",
        [
            {"value": [9e15] * 52_000},
            {"value": "é" * 130_000},
            {"status": "error", "detail": "\U0001f600" * 65_000},
            {"status": "é" * 100_000},
            {"anything": "x" * 250_000},
            [1],
            None,
        ],
    )
    def test_outcomes_are_short_enough_to_be_written_again(self, sent):
        limit = 256 << 10
        assert len(to_frame(checked(sent, limit), 1 << 30)) <= limit + MESSAGE_ROOM

    def test_nesting(self):
        deep = 1
        for _ in range(5):
            deep = [deep, {"a": deep}]
        assert is_nested_deeper(deep, 5) and not is_nested_deeper(deep, 15) and not is_nested_deeper(3, 0)


def test_the_rows_are_counted():
    assert len(HOSTILE) >= 30 and set(REASONS) == {"namespaces", "bubblewrap", "nsjail"}
