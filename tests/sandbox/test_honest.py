"""Honest programs earn their tests, whatever these do with the program's objects, and whether they read input."""

import functools
import json

import pytest
from honest_programs import INSIDE_ALONE, PROGRAM, SCRIPTS, TESTS
from sandbox_programs import ALL_TESTS, FORGERIES, ISOLATIONS, needs_isolation

from maskgrpo_plugin import rewards
from maskgrpo_plugin.sandbox import SandboxConfig, Status, run_tests, tests_of
from maskgrpo_plugin.sandbox.pairs import same_output

LIMITS = {"timeout_s": 4.0, "total_timeout_s": 120.0}
tests_of.__test__ = False


@functools.cache
def statuses(isolation, judging):
    tests = {**TESTS, **INSIDE_ALONE}
    report = run_tests(
        PROGRAM, list(tests.values()), config=SandboxConfig(isolation=isolation, judging=judging, **LIMITS)
    )
    return dict(zip(tests, report.results, strict=True))


@pytest.mark.parametrize("isolation", ISOLATIONS)
@pytest.mark.parametrize("name", TESTS)
def test_outside(name, isolation):
    assert statuses(isolation, "outside")[name].status is Status.PASSED


@needs_isolation
@pytest.mark.parametrize("name", [*TESTS, *INSIDE_ALONE])
def test_inside(name):
    assert statuses("auto", "inside")[name].status is Status.PASSED


@needs_isolation
@pytest.mark.parametrize(
    "name", ["prints verdicts", "exit in the call", "atexit", "sys.exit", "raises what tests expect"]
)
def test_a_verdict_inside_needs_its_word(name):
    report = run_tests(FORGERIES[name], ALL_TESTS, config=SandboxConfig(judging="inside", **LIMITS))
    assert report.passed == 0 and Status.SANDBOX_ERROR not in report.statuses


@needs_isolation
def test_a_verdict_written_by_the_program_does_not_count():
    program = """
import json, os, struct
def f(x):
    for word in ("", "0" * 32):
        body = json.dumps({"status": "passed", "word": word}).encode()
        for fd in range(3, 64):
            try: os.write(fd, struct.pack(">I", len(body)) + body)
            except OSError: pass
    os._exit(0)
"""
    report = run_tests(program, ["assert f(1) in (2,)"], config=SandboxConfig(judging="inside", **LIMITS))
    assert report.statuses == (Status.ERROR,)


@needs_isolation
def test_numpy_where_the_sandbox_has_it():
    from pathlib import Path

    numpy = pytest.importorskip("numpy")
    program = (
        "import numpy as np\ndef double(a): return a * 2\ndef clear(a): a[:] = 0\n"
        "def norm(a): return np.linalg.norm(a)\n"
        "def count(a): return np.int64(len(a))\nclass Holder:\n    def __init__(self): self.a = np.zeros((2, 2))"
    )
    tests = [
        "import numpy as np\nb = double(np.array([1, 2]))\nassert (b == np.array([2, 4])).all() and b.shape == (2,)",
        "import numpy as np\na = np.array([1.5, 2])\nclear(a)\nassert (a == 0).all()",
        "import numpy as np\nassert np.allclose(norm(np.array([3.0, 4.0])), 5) and abs(norm([3, 4]) - 5) < 1e-9",
        "assert count([1, 2]) == 2",
        "h = Holder()\nh.a[0, 1] = 5\nassert h.a.tolist() == [[0, 5], [0, 0]] and h.a.dtype == float",
    ]
    folder = str(Path(numpy.__file__).parents[1])
    config = SandboxConfig(python_path=(folder,), memory_mb=2048, timeout_s=10, total_timeout_s=60)
    report = run_tests(program, tests, config=config)
    assert report.passed == len(tests), report


PAIR = {"input": "3\n1\n2\n3\n", "output": "6\n"}


class TestInputAndOutput:
    @needs_isolation
    @pytest.mark.parametrize("name", SCRIPTS)
    def test_right(self, name):
        wrong = {**PAIR, "output": "7\n"}
        report = run_tests(SCRIPTS[name], [PAIR, wrong], config=SandboxConfig(**LIMITS))
        assert report.statuses == (Status.PASSED, Status.FAILED), report

    @pytest.mark.parametrize("isolation", ISOLATIONS)
    def test_wrong(self, isolation):
        config = SandboxConfig(isolation=isolation, timeout_s=1.5, total_timeout_s=20)
        cases = {
            "print(6)\nraise ValueError": Status.ERROR,
            "print(6)\nexit(3)": Status.ERROR,
            "import os\nprint(6, flush=True)\nos._exit(1)": Status.ERROR,
            "print(6": Status.ERROR,
            "print(6)\nwhile True: pass": Status.TIMEOUT,
            "while True: print(6)": Status.OUTPUT_LIMIT,
            "x = [bytearray(1 << 30) for _ in range(9)]": Status.MEMORY,
            "import sys\nprint(6, file=sys.stderr)": Status.FAILED,
            "": Status.FAILED,
        }
        found = {program: run_tests(program, [PAIR], config=config).statuses[0] for program in cases}
        assert found == cases

    @needs_isolation
    def test_output_may_be_large_and_anything(self):
        text = "é\0\U0001f600" * 20_000
        report = run_tests("import sys\nsys.stdout.write(sys.stdin.read())", [{"input": text, "output": text}] * 2)
        assert report.passed == 2, report

    @pytest.mark.parametrize(
        ("printed", "expected", "same"),
        [
            ("1 2\n3 \n\n", "1 2\n3", True),
            ("0.3333333", "0.33333333", True),
            ("1e-7", "0.0", True),
            ("1000000.4", "1000000.5", True),
            ("0.334", "0.333", False),
            ("1.0", "1", False),
            ("2", "3", False),
            ("1_0.0", "10.0", False),
            ("nan", "1.0", False),
            ("1 2 3", "1 2", False),
            ("yes", "YES", False),
            ("9" * 100_000 + ".0", "9" * 100_000 + ".0", True),
        ],
    )
    def test_what_is_the_same(self, printed, expected, same):
        assert same_output(printed, expected) is same


FUNCTION_FORMS = {
    "APPS": {"fn_name": "add", "inputs": [[1, 2], [3, 4]], "outputs": [3, [7]]},
    "LiveCodeBench": [{"fn_name": "add", "input": "1\n2", "output": "3", "testtype": "functional"}],
    "ours": [{"function": "add", "arguments": [1, 2], "output": 3}],
}
SCRIPT_FORMS = {
    "APPS": {"inputs": ["1\n2\n", ["3", "4"]], "outputs": ["3\n", ["7"]]},
    "LiveCodeBench": [{"input": "1\n2", "output": "3", "testtype": "stdin"}],
    "AceCode": [{"input": "1\n2\n", "output": "3\n"}],
    "relatives": [{"type": "stdin_stdout", "input": "1\n2\n", "output": "3\n", "fn_name": None}],
}


class TestForms:
    @needs_isolation
    @pytest.mark.parametrize("form", FUNCTION_FORMS)
    @pytest.mark.parametrize(
        ("program", "rate"),
        [
            ("def add(a, b):\n    return a + b", 1.0),
            ("class Solution:\n    def add(self, a, b):\n        return a + b", 1.0),
            ("def add(a, b):\n    return a - b", 0.0),
        ],
    )
    def test_functions(self, form, program, rate):
        scored = rewards.score("code", f"```python\n{program}\n```", json.dumps(FUNCTION_FORMS[form]))
        assert scored["pass_rate"] == rate

    @needs_isolation
    @pytest.mark.parametrize("form", SCRIPT_FORMS)
    def test_scripts(self, form):
        for program, rate in (("print(int(input()) + int(input()))", 1.0), ("print(0)", 0.0)):
            scored = rewards.score("code", f"```python\n{program}\n```", json.dumps(SCRIPT_FORMS[form]))
            assert scored["pass_rate"] == rate

    @needs_isolation
    def test_a_tuple_is_what_json_calls_a_list(self):
        tests = [{"function": "f", "arguments": [[1]], "output": [[1, 2]]}]
        assert run_tests("def f(x): return [(1, 2)]", tests).passed == 1
        assert run_tests("def f(x): return (1, 2)", tests).passed == 0

    @pytest.mark.parametrize(
        "content",
        [
            {},
            [],
            {"inputs": ["1"], "outputs": []},
            {"inputs": "1", "outputs": "1"},
            [{"input": "1"}],
            [{"input": 1, "output": 2}],
            [{"function": "f g", "arguments": [], "output": 1}],
            [{"fn_name": "f", "input": "{", "output": "1", "testtype": "functional"}],
            [1],
            "assert f(1) == 2",
            None,
        ],
    )
    def test_other_forms_are_refused(self, content):
        with pytest.raises(ValueError, match=r"test|inputs|output"):
            tests_of(content)
