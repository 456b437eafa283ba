"""Programs in the sandbox: right ones earn their tests, cheats earn nothing, and whoever takes all is stopped."""

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from sandbox_programs import ALL_TESTS, FORGERIES, QUICK, SIMPLE, SOLUTION, SOLUTION_TESTS, needs_isolation

import maskgrpo_plugin
from maskgrpo_plugin.sandbox import SandboxConfig, Status, run_batch, run_tests, score_program


class TestPrograms:
    """Programs that do nothing bad."""

    def test_right(self, quick):
        report = run_tests(SOLUTION, SOLUTION_TESTS, config=quick)
        assert [r for r in report.results if r.status is not Status.PASSED] == []
        assert report.passed == report.total == len(SOLUTION_TESTS)
        assert report.pass_rate == 1.0
        assert all(0 < r.duration < 1 for r in report.results)

    @needs_isolation
    def test_wrong(self):
        wrong = [test.replace("add(1)", "add(2)") for test in SOLUTION_TESTS[:1]]
        tests = [*wrong, "assert add(1) in (5, 6)", "assert add('x') == 1", "assert absent(1) == 1"]
        tests += ["assert add(1) == 2", "assert Node(1) == 1"]
        report = run_tests(SOLUTION, tests)
        failed, error = Status.FAILED, Status.ERROR
        assert report.statuses == (failed, failed, error, error, Status.PASSED, failed)
        assert report.pass_rate == 1 / 6

    @needs_isolation
    def test_score(self):
        scored = score_program(SOLUTION, ["assert add(1) == 2", "assert add(1) == 3"])
        assert scored["pass_rate"] == 0.5 and scored["acc"] == 0.0 and scored["tests_sandbox_error"] == 0.0
        assert score_program(SOLUTION, ["assert add(1) == 2"])["acc"] == 1.0
        assert score_program("def add(:", ["assert add(1) == 2"])["pass_rate"] == 0.0

    @needs_isolation
    def test_one_hangs_among_three(self):
        program = "def f(x):\n    while x == 2: pass\n    return x"
        tests = ["assert f(1) == 1", "assert f(2) == 2", "assert f(3) in (3,)"]
        report = run_tests(program, tests, config=SandboxConfig(**QUICK))
        assert report.statuses == (Status.PASSED, Status.TIMEOUT, Status.PASSED)

    @needs_isolation
    def test_total_time(self):
        started = time.monotonic()
        config = SandboxConfig(timeout_s=0.5, total_timeout_s=0.8)
        report = run_tests("while True: pass", ["assert f(1) == 1"] * 50, config=config)
        assert report.statuses == (Status.TIMEOUT,) * 50
        assert time.monotonic() - started < 20  # 25 s without the limit of all

    @needs_isolation
    def test_batch(self):
        programs = [f"def f(): return {n}" for n in range(12)]
        tests = [[f"assert f() == {n}", "assert f() == 3"] for n in range(12)]
        passed = [report.passed for report in run_batch(programs, tests)]
        assert passed == [2 if n == 3 else 1 for n in range(12)]

    @needs_isolation
    def test_in_threads(self):
        scores = [None] * 6

        def work(n):
            scores[n] = score_program("def f(): return 1", ["assert f() == 1"])["acc"]

        threads = [threading.Thread(target=work, args=(n,)) for n in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert scores == [1.0] * 6

    @needs_isolation
    def test_python_path(self, tmp_path):
        folder = tmp_path / "packages"
        folder.mkdir()
        (folder / "helpful_package.py").write_text("x = 7")
        config = SandboxConfig(python_path=(str(folder),))
        program = "import helpful_package\ndef f(): return helpful_package.x"
        assert run_tests(program, ["assert f() == 7"], config=config).pass_rate == 1.0
        assert run_tests(program, ["assert f() == 7"]).pass_rate == 0.0


@pytest.mark.parametrize("name", FORGERIES)
@needs_isolation
def test_forged_verdicts(name):
    """No program earns anything by cheating, whatever the form of the test."""
    config = SandboxConfig(**QUICK)
    report = run_tests(FORGERIES[name], ALL_TESTS, config=config)
    assert report.passed == 0, report
    assert Status.SANDBOX_ERROR not in report.statuses, report


@needs_isolation
def test_text_of_a_judged_test_stays_out_of_the_program():
    """With a distinctive text, so that finding anything at all of it is seen."""
    program = FORGERIES["looks through frames"].replace(
        "found = ", "return sum('-'.join(('kum', 'quat')) in t for t in texts)\n    "
    )
    test = "answers = 'kum-quat'\nassert f(1) == 0, answers"
    report = run_tests(program, [test, test], config=SandboxConfig(**QUICK))
    assert report.passed == 2, report


RESOURCES = {
    "fork bomb": (
        "import os\ndef f(x):\n    while True:\n        try: os.fork()\n        except OSError: pass",
        {Status.TIMEOUT, Status.MEMORY},
    ),
    "threads": (
        "import threading, time\ndef f(x):\n    while True: threading.Thread(target=time.sleep, args=(9,)).start()",
        {Status.ERROR},
    ),
    "10 GB at once": ("def f(x): return len(bytearray(10 << 30))", {Status.MEMORY}),
    "10 GB bit by bit": ("def f(x):\n    a = []\n    while True: a.append(bytearray(1 << 20))", {Status.MEMORY}),
    "memory of many": (
        "import os, time\ndef f(x):\n    for _ in range(6): os.fork()\n"
        "    a = bytearray(b'x') * (100 << 20)\n    time.sleep(5)",
        {Status.MEMORY, Status.ERROR},
    ),
    "infinite output": ("def f(x):\n    while True: print('x' * 1000)", {Status.OUTPUT_LIMIT}),
    "infinite output of a child": (
        "import os\ndef f(x):\n    if os.fork(): return 1\n    while True: os.write(2, b'x' * 1000)",
        {Status.FAILED, Status.OUTPUT_LIMIT},
    ),
    "huge value": ("def f(x): return 'x' * (1 << 24)", {Status.OUTPUT_LIMIT}),
    "deep value": ("def f(x):\n    a = []\n    for _ in range(9999): a = [a]\n    return a", {Status.OUTPUT_LIMIT}),
    "infinite loop": ("def f(x):\n    while True: pass", {Status.TIMEOUT}),
    "sleeps": ("import time\ntime.sleep(99)", {Status.TIMEOUT}),
    "deep recursion": (
        "import sys\nsys.setrecursionlimit(10**9)\ndef f(x): return f(x)",
        {Status.ERROR, Status.MEMORY, Status.TIMEOUT},
    ),
    "ignores signals": (
        "import signal\nfor n in range(1, 65):\n    try: signal.signal(n, signal.SIG_IGN)\n"
        "    except (OSError, ValueError): pass\nwhile True: pass",
        {Status.TIMEOUT},
    ),
    "fills the disk": (
        "def f(x):\n    for n in range(99):\n        open(f'/tmp/{n}', 'wb').write(b'x' * (8 << 20))",
        {Status.ERROR},
    ),
    "one big file": ("def f(x):\n    file = open('/tmp/a', 'wb')\n    file.seek(1 << 40)\n    file.write(b'x')", None),
}


@pytest.mark.parametrize("name", RESOURCES)
def test_resources(name, quick):
    """A program that takes all it can get is stopped, and the test after it runs."""
    program, expected = RESOURCES[name]
    report = run_tests(program + "\ndef g(): return 5", [SIMPLE, "assert g() == 5"], config=quick)
    assert report.statuses[0] in (expected or {Status.ERROR, Status.FAILED}), report
    loads = name not in ("sleeps", "ignores signals")
    assert report.statuses[1] is (Status.PASSED if loads else Status.TIMEOUT), report


_PINNED = """
import os, sys, types
package = sys.modules["maskgrpo_plugin"] = types.ModuleType("maskgrpo_plugin")
package.__path__ = [sys.argv[1]]
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
from maskgrpo_plugin.sandbox import SandboxConfig, run_batch
program = "import time\\ndef f():\\n    while time.process_time() < 0.8: pass\\n    return 1"
config = SandboxConfig(timeout_s=1.2, total_timeout_s=20, concurrency=3)
reports = run_batch([program] * 3, [["assert f() == 1"]] * 3, config=config)
sys.stdout.write(" ".join(report.statuses[0].value for report in reports))
"""


@needs_isolation
def test_waiting_for_a_processor_does_not_count():
    """Three programs of 0.8 s on one processor take 2.4 s, and none of them more than its 1.2 s."""
    ran = subprocess.run(
        [sys.executable, "-c", _PINNED, str(Path(maskgrpo_plugin.__file__).parent)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ran.stdout == "passed passed passed", ran.stderr[-500:]
