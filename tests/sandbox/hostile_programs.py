"""Programs that attack the sandbox's memory, its supervisor or the process that judges, and what a user may see of it.

Each row: the program, its tests, and for each test the outcomes that are right. No test may end as an outage of the
sandbox, and the last test of each row is an honest one that must pass.
"""

from maskgrpo_plugin.sandbox import Status

GOOD = "assert good(1) == 2"
PASSED, FAILED, ERROR, TIMEOUT = ({s} for s in (Status.PASSED, Status.FAILED, Status.ERROR, Status.TIMEOUT))
MEMORY, OUTPUT = {Status.MEMORY}, {Status.OUTPUT_LIMIT}
BAD = FAILED | ERROR | OUTPUT

_DENIED = """
def denied(work):
    try: work()
    except (OSError, ValueError) as error: return True
    return False
"""
# Writes a frame to every descriptor that the program has, in the hope that one of them is the supervisor's.
_FRAME = """
import os, struct
def write(body):
    for fd in range(3, 64):
        try: os.write(fd, struct.pack(">I", len(body)) + body)
        except OSError: pass
    os._exit(0)
"""
_SYSCALL = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
def refused(*numbers_and_arguments):
    numbers, *arguments = numbers_and_arguments
    number = numbers[os.uname().machine == "aarch64"]
    return libc.syscall(ctypes.c_long(number), *map(ctypes.c_long, arguments)) == -1 and ctypes.get_errno() == 1
"""

FORGED_VALUES = {
    "fraction of a huge exponent": (
        "from fractions import Fraction\nclass F(Fraction):\n"
        "    numerator = property(lambda s: '1e9999999')\n    denominator = property(lambda s: None)\n"
        "def f(): return F(1, 2)",
        ["assert f() == 3", "assert f() in (3,)"],
        [BAD, BAD],
    ),
    "fraction of long numbers": (
        "from fractions import Fraction\ndef f(): return Fraction(3 ** 60000, 2 ** 99999)",
        ["assert f() == 3"],
        [BAD],
    ),
    "complex of texts": (
        "class C(complex):\n    real = property(lambda s: '3')\n    imag = property(lambda s: None)\n"
        "def f(): return C(1)",
        ["assert f() == 3"],
        [BAD],
    ),
    "colliding set": (
        "def f(): return {n * (2 ** 61 - 1) for n in range(5000)}",
        ["assert f() == {1, 2}", "assert f() == [1]"],
        [BAD, BAD],
    ),
    "colliding keys": ("def f(): return {n * (2 ** 61 - 1): 1 for n in range(5000)}", ["assert f() == {1: 2}"], [BAD]),
    "forged data of every kind": (
        _FRAME
        + "import json\nkinds = 'int bytes complex range fraction decimal datetime date time timedelta tuple set dict "
        "frozenset deque bytearray opaque x'.split()\n"
        "contents = [None, 1, 'zz', '1e99', [], [1], ['1e9999999', None], [[1]], "
        "{}, [1e300, 2], {'t': 'int', 'v': 1}]\n"
        "def f(n):\n    data = {'t': kinds[n // len(contents)], 'v': contents[n % len(contents)]}\n"
        "    write(json.dumps({'value': data}).encode())",
        [f"assert f({n}) == 3" for n in range(0, 18 * 11, 7)],
        [BAD] * 29,
    ),
}
OUTAGES = {
    "a frame that grows when it is written again": (
        _FRAME + "def f(): write(b'{\"value\": [' + b','.join([b'9e15'] * 52000) + b']}')",
        ["assert f() == 3"] * 4,
        [BAD] * 4,
    ),
    "a text that grows": (
        _FRAME + "def f(): write(('{\"value\": \"' + 'é' * 130000 + '\"}').encode())",
        ["assert f() == 3"] * 4,
        [BAD] * 4,
    ),
    "a detail that grows": (
        _FRAME + 'def f(): write((\'{"status": "error", "detail": "\' + \'é\' * 130000 + \'"}\').encode())',
        ["assert f() == 3"] * 4,
        [BAD] * 4,
    ),
    "a value nested almost too deeply": (
        _FRAME + "def f(n): write(b'{\"value\": ' + b'[' * n + b']' * n + b'}')",
        [f"assert f({n}) == 3" for n in (300, 400, 900, 980, 985, 986, 987, 988, 989, 990, 995)],
        [BAD] * 11,
    ),
    "keys nobody asked for": (
        _FRAME + 'def f(): write(b\'{"duration": "x", "printed": 1, "status": {"a": 1}, "value": {"t": []}}\')',
        ["assert f() == 3"],
        [BAD],
    ),
    "signals to all": (
        "import os, signal\ndef f(x):\n    for pid in (os.getppid(), 1):\n        for number in range(1, 65):\n"
        "            if number not in (9, 19):\n                try: os.kill(pid, number)\n"
        "                except OSError: pass\n"
        "    return x",
        ["assert f(1) == 1", "assert f(1) in (1,)"],
        [PASSED | ERROR] * 2,
    ),
    "limits of others": (
        _DENIED + "import os, resource\ndef f(x):\n    pids = (os.getppid(), 1)\n    return all(denied(lambda: "
        "resource.prlimit(pid, r, (0, 0))) for pid in pids for r in range(16))",
        ["assert f(1)"],
        [PASSED],
    ),
    "priorities of others": (
        _DENIED + "import os\ndef f():\n    return [denied(lambda: os.setpriority(os.PRIO_PROCESS, os.getppid(), 19)),"
        " denied(lambda: os.sched_setscheduler(os.getppid(), os.SCHED_IDLE, os.sched_param(0))),"
        " denied(lambda: os.sched_setaffinity(os.getppid(), [0]))]",
        ["assert f() == [True, True, True]"],
        [PASSED],
    ),
    "stops the judge of a long test": (
        "import os, signal\ntry: os.kill(-1, signal.SIGSTOP)\nexcept OSError: pass\ndef f(x): return x",
        ["assert f(1) in (1,)  # " + "x" * 300_000],
        [TIMEOUT | ERROR | PASSED],
    ),
    "kills the judge": (
        "import os\ndef f(x):\n    for pid in range(2, 99):\n        if pid != os.getpid():\n"
        "            try: os.kill(pid, 9)\n"
        "            except OSError: pass\n    return 1",
        ["assert f(1) in (1,)"],
        [ERROR | PASSED],
    ),
}
MEMORY_OUT_OF_ACCOUNT = {
    "memfd": (_DENIED + "import os\ndef f(): return denied(lambda: os.memfd_create('x'))", ["assert f()"], [PASSED]),
    "secret memfd": (_SYSCALL + "def f(): return refused((447, 447), 0)", ["assert f()"], [PASSED]),
    "shared anonymous mapping": (
        _DENIED + "import mmap\ndef f(): return denied(lambda: mmap.mmap(-1, 1 << 20))",
        ["assert f()"],
        [PASSED],
    ),
    "pages pinned in pipes": (_SYSCALL + "def f(): return refused((278, 75), 1, 0, 0, 0)", ["assert f()"], [PASSED]),
    "message queue": (_SYSCALL + "def f(): return refused((240, 180), 0, 0, 0, 0)", ["assert f()"], [PASSED]),
    "mapped /dev/zero": (
        _DENIED
        + "import mmap, os\ndef f(): return denied(lambda: mmap.mmap(os.open('/dev/zero', os.O_RDWR), 1 << 20))",
        ["assert f()"],
        [PASSED],
    ),
    "shared memory": (
        "def f(folder):\n    written = 0\n    try:\n        for n in range(99):\n"
        "            with open(f'{folder}/{n}', 'wb') as file:\n"
        "                written += file.write(b'x' * (1 << 20))\n    except OSError: pass\n    return written >> 20\n"
        "import os\ndef left(): return os.listdir('/dev/shm') + os.listdir('/tmp')",
        ["assert f('/dev/shm') <= 16", "assert left() == []", "assert f('/tmp') <= 16", "assert left() == []"],
        [PASSED] * 4,
    ),
    "many small files": (
        "def f(x):\n    n = 0\n    while True:\n        open(f'/tmp/{n}', 'wb').close()\n        n += 1",
        ["assert f(1) == 1"],
        [MEMORY | ERROR],
    ),
    "sockets": (
        "import socket, time, os\ndef f(x):\n    for _ in range(4): os.fork()\n    kept = []\n    for _ in range(29):\n"
        "        pair = socket.socketpair()\n        kept.append(pair)\n        pair[0].setblocking(False)\n"
        "        try:\n"
        "            while True: pair[0].send(b'x' * 65536)\n        except OSError: pass\n    time.sleep(3)",
        ["assert f(1) == 1"],
        [MEMORY | ERROR],
    ),
    "execution from /tmp": (
        _DENIED + "import os, shutil, subprocess\ndef f():\n    shutil.copy('/usr/bin/env', '/tmp/env')\n"
        "    os.chmod('/tmp/env', 0o755)\n    return denied(lambda: subprocess.run(['/tmp/env']))",
        ["assert f()"],
        [PASSED],
    ),
}
PRIVILEGES = {
    "capabilities": (
        "def f():\n    status = dict(line.split(':', 1) for line in open('/proc/self/status').read().splitlines())\n"
        "    keys = ('CapEff', 'CapPrm', 'CapInh', 'CapBnd', 'CapAmb')\n"
        "    return [k for k in keys if int(status[k], 16)] + [int(status[k]) for k in ('NoNewPrivs', 'Seccomp')]",
        ["assert f() == [1, 2]"],
        [PASSED],
    ),
}
_OBJECT = """
class E:
    def __getattr__(self, name): return self
    def __call__(self, *a, **k): return self
    def __hash__(self): return 2
def always(*a): return True
def zero(*a): return 0.0
for name in "eq lt le gt ge contains".split(): setattr(E, f"__{name}__", always)
for name in "sub rsub add radd mul rmul truediv rtruediv mod rmod xor rxor and rand".split():
    setattr(E, f"__{name}__", {0})
for name in "abs neg round".split(): setattr(E, f"__{name}__", {1})
E.__float__ = lambda self: 77.0
E.__enter__ = lambda self: self
E.__exit__ = always
E.__iter__ = lambda self: iter([E()] * 3)
def f(x): return E()
"""
_TESTS = [
    "assert abs(f(1) - 2) < 0.1",
    "assert f(1) - 2 == 0",
    "assert 2 - f(1) == 0",
    "assert round(f(1) - 2, 3) == 0",
    "assert not (f(1) - 2)",
    "assert f(1) / 2 == 1 or f(1) % 2 == 0 or f(1) ^ 2 == 0",
    "assert f(1) < 3 and f(1) > 1",
    "assert 1 < f(1) < 3",
    "assert 2 in f(1)",
    "assert f(1) in [2]",
    "assert f(1) in {2: 1}",
    "assert sorted(f(1)) == [1, 2]",
    "assert list(f(1)) == [1, 2, 3]",
    "assert max(f(1), 2) == 2 and min(f(1), 2) == 2",
    "assert sum(f(1)) == 6",
    "import math\nassert math.isclose(f(1), 2)",
    "import unittest\nunittest.TestCase().assertAlmostEqual(f(1), 2)",
    "import unittest\nunittest.TestCase().assertEqual(f(1), 2)",
    "with f(1) as value:\n    assert value == 2",
    "with f(1) as value:\n    raise AssertionError",
    "assert f(1) == 2 and f(1) != 3",
    "assert f(1) is 2 or f(1) == [2] or f(1) == (2,)",
]
ALWAYS_RIGHT = {
    f"an object that is always right, {how}": (_OBJECT.replace("{0}", a).replace("{1}", b), _TESTS, [BAD] * len(_TESTS))
    for how, a, b in (
        ("and stays one", "lambda s, o: s", "lambda s, *a: s"),
        ("and answers zero", "zero", "zero"),
        ("and answers zero in the end", "lambda s, o: s", "zero"),
    )
}
REACHES_INTO_THE_TEST = {
    "attributes of an object of the test": (
        "def f(thing):\n    found = []\n    for path in ('__class__', 'method.__globals__', "
        "'method.__func__', '__dict__', 'nested.gi_frame', 'module.modules'):\n        value = thing\n        try:\n"
        "            for name in path.split('.'): value = getattr(value, name)\n"
        "            if type(value) is not type: found.append(path)\n        except Exception: pass\n    return found",
        [
            "import sys\nclass Thing:\n    module = sys\n    def __init__(self): self.nested = (n for n in [1])\n"
            "    def method(self): pass\nfound = f(Thing())\nassert found == [], found"
        ],
        [PASSED],
    ),
    "a name that is not what it says": (
        "class Name(str):\n    def __str__(self): return 'method'\n"
        "def f(thing):\n    try: return getattr(thing, Name('__globals__'))\n    except Exception: return None",
        ["class Thing:\n    def method(self): pass\nassert f(Thing().method) is None and f(Thing()) is None"],
        [PASSED],
    ),
    "values whose methods say yes": (
        "yes = lambda *a: True\nclass S(str): startswith = endswith = isdigit = isupper = __contains__ = yes\n"
        "class L(list): count = index = __contains__ = lambda *a: 1\n"
        "class D(dict): get = lambda *a: 5\nD.__contains__ = D.has = yes\n"
        "class T(set): issubset = issuperset = isdisjoint = __contains__ = __le__ = __ge__ = yes\n"
        "def f(kind): return {'s': S, 'l': L, 'd': D, 't': T}[kind]()",
        [
            "r = f('s')\nassert r.startswith('ab')",
            "r = f('s')\nassert r.isdigit() or 'a' in r",
            "r = f('l')\nassert r.count(2) == 1 or 2 in r",
            "r = f('d')\nassert r.get('a') == 5 or 'a' in r",
            "r = f('t')\nassert r.issuperset({1}) or r >= {1} or 1 in r",
        ],
        [BAD] * 5,
    ),
    "swallows failed assertions": (
        "class C:\n    def __enter__(self): return self\n    def __exit__(self, *a): return True\n"
        "    def get(self): raise ValueError\n    text = 'a'",
        [
            "with C() as c:\n    assert False",
            "with C() as c:\n    assert c.get() == 1",
            "with C() as c:\n    assert int(c.text) == 1",
        ],
        [BAD] * 3,
    ),
}
OF_THE_JAIL = {**OUTAGES, **MEMORY_OUT_OF_ACCOUNT, **PRIVILEGES}
OF_VERDICTS = {**FORGED_VALUES, **ALWAYS_RIGHT, **REACHES_INTO_THE_TEST}
HOSTILE = {**OF_THE_JAIL, **OF_VERDICTS}
