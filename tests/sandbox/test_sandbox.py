"""The sandbox of code rewards: programs that attack it earn nothing and harm nobody; services may fail."""

import asyncio
import http.server
import json
import os
import socket
import subprocess
import sys
import threading
import time
import types

import pytest

from maskgrpo_plugin import sandbox
from maskgrpo_plugin.sandbox import SandboxConfig, Status, run_batch, run_tests, score_program
from maskgrpo_plugin.sandbox.base import SandboxFailure
from maskgrpo_plugin.sandbox.inside.codec import CodecError, decode, encode, from_frame, to_frame
from maskgrpo_plugin.sandbox.judging import Opaque, judge, plan
from maskgrpo_plugin.sandbox.local import Isolation, LocalSandbox, detect_isolation

QUICK = {"timeout_s": 1.0, "total_timeout_s": 8.0, "memory_mb": 256}


def _reason(isolation: str) -> str:
    """Why an isolation does not work here, or nothing where it does."""
    try:
        detect_isolation(SandboxConfig(isolation=isolation))
    except RuntimeError as error:
        return str(error)
    return ""


REASONS = {name: _reason(name) for name in ("namespaces", "bubblewrap", "nsjail")}
ISOLATIONS = [
    pytest.param(name, marks=pytest.mark.skipif(bool(reason), reason=reason)) for name, reason in REASONS.items()
]
needs_isolation = pytest.mark.skipif(all(REASONS.values()), reason="; ".join(REASONS.values()))


@pytest.fixture(params=ISOLATIONS)
def quick(request):
    """Short limits under each isolation that works here."""
    return SandboxConfig(isolation=request.param, **QUICK)


SOLUTION = """
class Node:
    def __init__(self, value):
        self.value, self.next = value, None
class Odd(ValueError): pass
def add(a, b=1): return a + b
def sort(values): values.sort()
def count(n): yield from range(n)
def refuse(x): raise Odd("no")
def apply(function, values): return [function(value) for value in values]
def half(x): return x / 2
def counts(text):
    from collections import Counter
    return Counter(text)
def nothing(): return None
"""
SOLUTION_TESTS = [
    "assert add(1) == 2",
    "assert 3 == add(1, b=2), 'message'",
    "assert add(1) != 3",
    "assert nothing() is None",
    "assert not nothing()",
    "assert set(apply(str, [1, 2])) == {'1', '2'}",
    "assert list(count(3)) == [0, 1, 2]",
    "assert counts('aab') == {'a': 2, 'b': 1}",
    "assert Node(3).value == 3",
    "values = [3, 1, 2]\nsort(values)\nassert values == [1, 2, 3]",
    "assert abs(half(3) - 1.5) < 1e-6 and add(1) in (2, 3)",
    "import math\nassert math.isclose(half(1), 0.5)",
    "assert apply(lambda v: v * 2, [1, 2]) == [2, 4]",
    "def check(candidate):\n    assert candidate(1) == 2\n    assert candidate(2) == 3\ncheck(add)",
    "node = Node(1)\nnode.next = Node(2)\nassert node.next.value == 2 and isinstance(node, Node)",
    "try:\n    refuse(1)\nexcept Odd as error:\n    assert str(error) == 'no'\nelse:\n    assert False",
    "assert [n for n in count(3)] == [0, 1, 2]",
]


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
        assert time.monotonic() - started < 5

    @needs_isolation
    def test_batch_and_async(self):
        programs = [f"def f(): return {n}" for n in range(12)]
        tests = [[f"assert f() == {n}", "assert f() == 3"] for n in range(12)]
        passed = [report.passed for report in run_batch(programs, tests)]
        assert passed == [2 if n == 3 else 1 for n in range(12)]

        async def several():
            return await asyncio.gather(*(sandbox.run_tests_async(p, t) for p, t in zip(programs, tests, strict=True)))

        assert [report.passed for report in asyncio.run(several())] == passed

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


SIMPLE = "assert f(1) == 2"
JUDGED = "assert f(1) in (2,)"
CHECK = "def check(candidate):\n    assert candidate(1) == 2\ncheck(f)"
CLOSE = "assert abs(f(1) - 2) < 0.1"
MAPPED = "cases = [(1, 2)]\nassert all(map(lambda case: f(case[0]) == case[1], cases))"
ALL_TESTS = [SIMPLE, JUDGED, CHECK, CLOSE, MAPPED]
EVIL = """
class Evil:
    def __getattr__(self, name): return self
    def __call__(self, *a, **k): return self
for name in "eq ne lt le gt ge contains".split():
    setattr(Evil, f"__{name}__", lambda self, *a: True)
for name in "add radd sub rsub mul rmul truediv abs neg round getitem iter enter".split():
    setattr(Evil, f"__{name}__", lambda self, *a: self)
Evil.__float__ = lambda self: 2.0
Evil.__hash__ = lambda self: 2
"""
FORGERIES = {
    "exit before the tests": "import os\nos._exit(0)",
    "exit in the call": "import os\ndef f(x): os._exit(0)",
    "sys.exit": "import sys\ndef f(x): sys.exit(0)",
    "sys.exit at once": "import sys\nsys.exit(0)",
    "atexit": "import atexit, os\natexit.register(os._exit, 0)\ndef f(x): raise SystemExit(0)",
    "prints verdicts": """
import os, json, struct
body = json.dumps({"status": "passed", "value": 3, "reply": {"value": True}}).encode()
def f(x):
    for fd in range(1, 64):
        for data in (b"passed\\n", struct.pack(">I", len(body)) + body):
            try: os.write(fd, data)
            except OSError: pass
    print('{"status": "passed"}')
    return 1
""",
    "always equal": EVIL + "def f(x): return Evil()",
    "equal subclass": """
class Int(int):
    __eq__ = __le__ = __ge__ = __lt__ = lambda self, other: True
    __hash__ = lambda self: 2
    __sub__ = __abs__ = lambda self, *a: self
def f(x): return Int(77)
""",
    "equal in a list": EVIL + "class L(list):\n    __eq__ = lambda s, o: True\ndef f(x): return L([Evil()])",
    "replaces builtins": """
import builtins, sys, math
for name in ("abs", "len", "isinstance", "sorted", "set", "AssertionError", "compile", "eval", "exec"):
    setattr(builtins, name, lambda *a, **k: True)
def f(x): return 1
""",
    "replaces modules": """
import sys, json, os
json.dumps = lambda *a, **k: '{"status": "passed"}'
for name in list(sys.modules):
    if name.startswith("inside") or name in ("unittest", "ast"):
        for key, value in list(vars(sys.modules[name]).items()):
            if callable(value) and not isinstance(value, type):
                setattr(sys.modules[name], key, lambda *a, **k: {"status": "passed"})
def f(x): return 1
""",
    "no asserts": "import sys\nsys.flags.__class__\n__debug__ and None\ndef f(x): raise AssertionError",
    "looks through frames": """
import sys, gc, re
def f(x):
    texts, frame = [], sys._getframe()
    while frame:
        texts += [repr(frame.f_locals), repr(frame.f_globals)]
        frame = frame.f_back
    texts += [repr(o) for o in gc.get_objects() if type(o) in (dict, list, tuple)]
    found = re.search(r"candidate\\(1\\) == (\\d)|f\\(1\\) (?:==|in) \\(?(\\d)", " ".join(texts).replace(__source, ""))
    return int(found[1] or found[2]) if found else 1
__source = "f(1) =="
""",
    "searches its memory": """
import re
def f(x):
    try:
        spans = [l.split()[0].split("-") for l in open("/proc/self/maps") if " rw" in l]
        with open("/proc/self/mem", "rb") as memory:
            for low, high in spans:
                memory.seek(int(low, 16))
                if found := re.search(rb"candidate\\(1\\) == ([0-9])", memory.read(int(high, 16) - int(low, 16))):
                    return int(found[1])
    except Exception:
        pass
    return 1
""",
    "reads other processes": """
import os, re
def f(x):
    for pid in [p for p in os.listdir("/proc") if p.isdigit()]:
        for name in ("mem", "environ", "cmdline", "fd/0", "fd/3", "fd/4", "fd/5"):
            try:
                with open(f"/proc/{pid}/{name}", "rb") as file:
                    if found := re.search(rb"f\\(1\\) == ([0-9])", file.read(1 << 20)): return int(found[1])
            except OSError: pass
            try:
                with open(f"/proc/{pid}/{name}", "wb") as file: file.write(b"passed")
            except OSError: pass
    return 1
""",
    "threads that write": """
import threading, os, json, struct
body = json.dumps({"reply": {"value": 5, "status": "passed"}}).encode()
def spam():
    while True:
        for fd in range(3, 12):
            try: os.write(fd, struct.pack(">I", len(body)) + body)
            except OSError: pass
def f(x):
    for _ in range(3): threading.Thread(target=spam, daemon=True).start()
    while True: pass
""",
    "kills the parent": """
import os, signal
def f(x):
    for pid in (os.getppid(), 1, -1):
        for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGSTOP):
            try: os.kill(pid, number)
            except OSError: pass
    return 1
""",
    "a generator of equals": EVIL + "def f(x):\n    while True: yield Evil()",
    "ends the test's loop": "def f(x): raise StopIteration",
    "raises what tests expect": "class E(BaseException): pass\ndef f(x): raise E",
}


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
    started = time.monotonic()
    report = run_tests(program + "\ndef g(): return 5", [SIMPLE, "assert g() == 5"], config=quick)
    assert time.monotonic() - started < 8
    assert report.statuses[0] in (expected or {Status.ERROR, Status.FAILED}), report
    loads = name not in ("sleeps", "ignores signals")
    assert report.statuses[1] is (Status.PASSED if loads else Status.TIMEOUT), report


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
    "write to /dev/shm": "open('/dev/shm/forged', 'w')",
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
        assert "UNISOLATED" in sandbox.active_isolation(config)
        assert "UNISOLATED" in caplog.text
        assert run_tests(SOLUTION, SOLUTION_TESTS, config=config).pass_rate == 1.0
        program = (
            "import os, time\nif os.fork() == 0: time.sleep(77.5)\ndef f(x): return 2\ndef g(x):\n    while True: pass"
        )
        report = run_tests(program, [*ALL_TESTS[:2], "assert g(1) == 1"], config=config)
        assert report.statuses == (Status.PASSED, Status.PASSED, Status.TIMEOUT)


def _fails(name, config):
    raise SandboxFailure("not here")


class TestConfig:
    @pytest.mark.parametrize(
        ("values", "message"),
        [
            ({"provider": "docker"}, r"reward\.sandbox\.provider must be one of local, e2b, sandbox_fusion"),
            ({"isolation": "chroot"}, r"reward\.sandbox\.isolation"),
            ({"timeout_s": 0}, r"reward\.sandbox\.timeout_s"),
            ({"total_timeout_s": 1}, r"reward\.sandbox\.total_timeout_s"),
            ({"memory_mb": 1}, r"reward\.sandbox\.memory_mb"),
            ({"processes": True}, r"reward\.sandbox\.processes"),
            ({"provider": "sandbox_fusion"}, r"reward\.sandbox\.url must be set"),
            ({"url": "localhost:80"}, r"reward\.sandbox\.url must start with"),
            ({"python_path": ["here"]}, r"reward\.sandbox\.python_path"),
            ({"memory": 1}, r"unknown key reward\.sandbox\.memory; available: provider"),
        ],
    )
    def test_mistakes(self, values, message):
        with pytest.raises(ValueError, match=message):
            SandboxConfig.from_mapping(values)

    def test_tests_that_cannot_be_read(self):
        for tests in ([], "assert f(1) == 1", ["assert f("], [1]):
            with pytest.raises(ValueError, match="test"):
                run_tests("", tests)


class TestJudging:
    @pytest.mark.parametrize(
        ("test", "content"),
        [
            ("assert f(1, [2], k={'a': -1}) == (1, 2)", "f(1, [2], k={'a': -1})"),
            ("assert 2 == f(1)", "f(1)"),
            ("assert set(f(1)) == {1}", "set(f(1))"),
            ("assert Solution().f(1) is None", "Solution().f(1)"),
            ("assert f('x')", "f('x')"),
            ("assert not f('x')", "f('x')"),
        ],
    )
    def test_the_right_side_stays_here(self, test, content):
        made = plan(test)
        assert made.content == content and made.accepts is not None

    @pytest.mark.parametrize(
        "test",
        [
            "assert f(g(1)) == 2",
            "assert isclose(f(1), 2.0)",
            "assert isclose(f(1), 2.0) == True",
            "assert f(1) == x",
            "assert 1 < f(1) < 3",
            "assert f(*[1]) == 2",
            "assert f(1) == 1; assert f(2) == 2",
            "x = f(1)",
        ],
    )
    def test_anything_else_is_judged_by_a_process(self, test):
        assert plan(test).accepts is None and plan(test).content == test

    def test_a_program_cannot_say_that_it_passed(self):
        assert judge(plan(SIMPLE), {"status": "passed"}).status is Status.ERROR
        assert judge(plan(SIMPLE), {"status": "sandbox_error"}).status is Status.ERROR
        assert judge(plan(SIMPLE), {"value": {"t": "opaque", "v": True}}).status is Status.FAILED
        assert judge(plan(SIMPLE), {"value": {"t": "int", "v": "zz"}}).status is Status.FAILED
        assert judge(plan(SIMPLE), {"value": 2}).status is Status.PASSED
        assert judge(plan(SIMPLE), [1]).status is Status.SANDBOX_ERROR


class TestCodec:
    def test_round_trip(self):
        value = [1, 2**70, -1.5, "é\ud800", None, True, (1, [2]), {1: {2}, (3,): b"4"}, frozenset({5}), 1j, range(3)]
        sent = decode(json.loads(json.dumps(encode(value, lambda _: None))), lambda _: None)
        assert sent == value and [type(v) for v in sent] == [type(v) for v in value]

    def test_subclasses_become_plain(self):
        class Liar(int):
            __eq__ = lambda self, other: True  # noqa: E731
            __hash__ = int.__hash__

        assert type(decode(encode(Liar(3), bool), Opaque)) is int
        assert decode(encode(object(), lambda _: True), Opaque) == Opaque(True) != 1

    def test_forged(self):
        deep: list = []
        for _ in range(500):
            deep = [deep]
        forged = [{"t": "tuple", "v": 1}, {"t": "eval", "v": []}, {"v": 1}, {"t": "dict", "v": [[1]]}, deep]
        forged += [{"t": "set", "v": [[1]]}, {"t": "fraction", "v": [1, 0]}, {"t": "decimal", "v": "x"}]
        for data in forged:
            with pytest.raises(CodecError):
                decode(data, Opaque)
        with pytest.raises(CodecError):
            from_frame(b"\xff\xff\xff\xff", 100)
        with pytest.raises(CodecError):
            from_frame(b"\x00\x00\x00\x02[[", 100)
        assert from_frame(to_frame({"a": 1}, 100) + b"rest", 100) == ({"a": 1}, 12)


class Service(http.server.BaseHTTPRequestHandler):
    """A router or a Sandbox Fusion that runs scripts on this machine, and fails when it is told to."""

    def do_POST(self):
        service = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        service.requests.append(body)
        failure = service.failures.pop(0) if service.failures else None
        if failure == "drop":
            self.connection.close()
            return
        if failure == "500":
            self.send_error(500)
            return
        answer = self.batch(body, failure) if self.path == "/execute_batch" else self.fusion(body)
        data = b"no json" if failure == "garbage" else json.dumps(answer).encode()
        self.send_response(200)
        self.end_headers()
        self.wfile.write(data)

    def batch(self, body, failure):
        assert len(body["languages"]) == len(body["scripts"])
        answers = [{"execution": _execution(_run_script(script)), "exception_str": None} for script in body["scripts"]]
        if failure == "one":
            answers[0] = {"execution": None, "exception_str": "no machine was free"}
        return answers

    def fusion(self, body):
        printed = _run_script(body["code"])
        return {"status": "Success", "run_result": {"status": "Finished", "return_code": 0, "stdout": printed}}

    def log_message(self, *arguments):
        pass


def _run_script(script):
    run = subprocess.run([sys.executable, "-I", "-c", script], capture_output=True, text=True, timeout=30)
    return "some noise\n" + run.stdout


def _execution(printed):
    logs = {"stdout": [printed[:20], printed[20:]], "stderr": []}
    return {"results": [], "logs": logs, "error": None, "execution_count": 1}


@pytest.fixture
def service():
    """A loopback server; `failures` says how each of the next requests fails."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Service) as server:
        server.failures, server.requests = [], []
        server.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


PROGRAMS = [f"def f(x): return x + {n}" for n in range(4)]
PROGRAM_TESTS = [["assert f(1) == 2", "assert f(1) in (2,)"]] * 4
REMOTE = {"retry_wait_s": 0.01, "request_timeout_s": 5.0, "timeout_s": 2.0, "total_timeout_s": 6.0}


def _remote(service, provider, **more):
    url = service.url + ("/run_code" if provider == "sandbox_fusion" else "")
    return SandboxConfig(provider=provider, url=url, **{**REMOTE, **more})


@pytest.mark.parametrize("provider", ["e2b", "sandbox_fusion"])
class TestServices:
    def test_programs(self, service, provider):
        reports = run_batch(PROGRAMS[:2], PROGRAM_TESTS[:2], config=_remote(service, provider))
        assert [report.passed for report in reports] == [0, 2]
        assert reports[0].statuses == (Status.FAILED, Status.FAILED)

    def test_forgeries(self, service, provider):
        names = ["exit before the tests", "prints verdicts", "always equal", "reads other processes"]
        programs = [FORGERIES[name] for name in names]
        reports = run_batch(programs, [ALL_TESTS[:2]] * 4, config=_remote(service, provider))
        assert [report.passed for report in reports] == [0] * 4, reports

    def test_the_expected_value_is_not_sent(self, service, provider):
        assert (
            run_tests("def f(x): return 1", ["assert f(1) == 'kumquat'"], config=_remote(service, provider)).total == 1
        )
        assert service.requests and "kumquat" not in json.dumps(service.requests)


class TestOutages:
    def test_retried(self, service):
        service.failures = ["500", "drop", "garbage"]
        config = _remote(service, "e2b", retries=3)
        assert run_tests(PROGRAMS[1], PROGRAM_TESTS[0], config=config).pass_rate == 1.0
        assert len(service.requests) == 4

    def test_only_what_failed_is_repeated(self, service):
        service.failures = ["one"]
        reports = run_batch(PROGRAMS[1:3], PROGRAM_TESTS[:2], config=_remote(service, "e2b"))
        assert [report.passed for report in reports] == [2, 0]
        assert [len(request["scripts"]) for request in service.requests] == [2, 1]

    def test_mid_batch(self, service):
        """The service answers the first request and then no more: that is counted, and nothing is raised."""
        before = sandbox.outcomes()
        service.failures = [None, *["500"] * 20]
        config = _remote(service, "e2b", batch_size=1, concurrency=1, retries=1)
        reports = run_batch([PROGRAMS[1]] * 3, PROGRAM_TESTS[:3], config=config)
        assert reports[0].pass_rate == 1.0
        assert [r.statuses for r in reports[1:]] == [(Status.SANDBOX_ERROR,) * 2] * 2
        after = sandbox.outcomes()
        assert after["outages"] - before["outages"] == 2
        assert after["sandbox_error"] - before["sandbox_error"] == 4

    def test_nobody_listens(self):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        for provider, path in (("e2b", ""), ("sandbox_fusion", "/run_code")):
            config = SandboxConfig(provider=provider, url=f"http://127.0.0.1:{port}{path}", retries=0, **REMOTE)
            scored = score_program(PROGRAMS[1], PROGRAM_TESTS[0], config)
            assert scored["acc"] == 0.0 and scored["tests_sandbox_error"] == 2.0


class FakeMachine:
    """Stands for e2b_code_interpreter.AsyncSandbox: same calls, runs the script here."""

    made, killed, under_way, most, refuse = [], 0, 0, 0, 0

    @classmethod
    async def create(cls, template=None, timeout=None, *, request_timeout=None, api_key=None):
        if cls.refuse:
            cls.refuse -= 1
            raise ConnectionError("refused")
        cls.made.append((template, timeout, request_timeout, api_key))
        return cls()

    async def run_code(self, code, language=None, timeout=None):
        assert language == "python" and timeout > 0
        cls = type(self)
        cls.under_way += 1
        cls.most = max(cls.most, cls.under_way)
        printed = await asyncio.to_thread(_run_script, code)
        cls.under_way -= 1
        return types.SimpleNamespace(logs=types.SimpleNamespace(stdout=[printed], stderr=[]), error=None)

    async def kill(self):
        type(self).killed += 1


def test_e2b_client(monkeypatch):
    monkeypatch.setitem(sys.modules, "e2b_code_interpreter", types.SimpleNamespace(AsyncSandbox=FakeMachine))
    FakeMachine.refuse = 1
    config = SandboxConfig(provider="e2b", api_key="key", concurrency=2, **REMOTE)
    reports = run_batch(PROGRAMS, PROGRAM_TESTS, config=config)
    assert [report.passed for report in reports] == [0, 2, 0, 0]
    assert FakeMachine.killed == len(FakeMachine.made) == 4 and FakeMachine.most == 2
    assert FakeMachine.made[0][3] == "key"


def test_e2b_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "e2b_code_interpreter", None)
    with pytest.raises(ValueError, match=r"maskgrpo-plugin\[e2b\]"):
        sandbox.active_isolation(SandboxConfig(provider="e2b", api_key="other"))
