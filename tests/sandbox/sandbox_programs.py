"""Programs for the tests of the sandbox, good and bad, and which isolations work on this machine."""

import pytest

from maskgrpo_plugin.sandbox import SandboxConfig
from maskgrpo_plugin.sandbox.local import detect_isolation

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
