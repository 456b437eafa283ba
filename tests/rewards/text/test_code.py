"""The scorer of programs: which text is the program, its form, and the runner that counts tests."""

import json

import pytest

from maskgrpo_plugin import rewards
from maskgrpo_plugin.rewards.text.scorers.code import extract_code, format_reward

TESTS = ["assert f(1) == 2", "assert f(2) == 3"]
PROGRAM = "def f(x):\n    return x + 1"


def fence(code, language="python"):
    return f"```{language}\n{code}\n```"


@pytest.mark.parametrize(
    ("completion", "program"),
    [
        (fence(PROGRAM), PROGRAM),
        (f"<answer>\n{fence(PROGRAM, '')}\n</answer>", PROGRAM),
        (fence("def f(x):\n    return x") + " better: " + fence(PROGRAM), PROGRAM),
        (fence(PROGRAM) + "\nFor example:\n" + fence("f(1)"), PROGRAM),
        (fence(PROGRAM) + "\nIt prints\n" + fence("def nothing", "text"), PROGRAM),
        (fence("f = lambda x: x + 1"), "f = lambda x: x + 1"),
        (f"```python\n{PROGRAM}", PROGRAM),
        (f"<answer>{PROGRAM}</answer>", PROGRAM),
        (PROGRAM, PROGRAM),
        (f"{fence(PROGRAM)}<|endoftext|>{fence('def f(): pass')}", PROGRAM),
        ("I would define a function.", ""),
        (fence("int f(int x);", "cpp"), ""),
        (fence("#" * 60_000), ""),
        ("", ""),
    ],
)
def test_the_program_of_a_completion(completion, program):
    assert extract_code(completion) == program


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        (fence(PROGRAM), 0.5),
        (fence("def f(:"), 0.25),
        (fence("(" * 5000), 0.25),
        (f"```python\n{PROGRAM}", 0.0),
        (PROGRAM, 0.0),
        (fence(""), 0.0),
        (fence(PROGRAM, "cpp"), 0.0),
        ("", 0.0),
    ],
)
def test_format(completion, expected):
    assert format_reward(completion) == expected


def runner(*passed):
    calls = []

    def run(program, tests):
        calls.append((program, list(tests)))
        rate = sum(passed) / len(passed)
        return {"pass_rate": rate, "acc": float(rate == 1), "tests": len(passed), "tests_passed": sum(passed)}

    return run, calls


@pytest.mark.parametrize(("passed", "score", "acc"), [((1, 1), 2.5, 1.0), ((1, 0), 1.5, 0.0), ((0, 0), 0.5, 0.0)])
def test_score_is_twice_the_pass_rate_and_the_form(passed, score, acc):
    run, calls = runner(*passed)
    result = rewards.score("code", fence(PROGRAM), json.dumps(TESTS), run=run)
    assert (result["score"], result["acc"], result["pass_rate"]) == (score, acc, sum(passed) / 2)
    assert result["tests_passed"] == sum(passed)
    assert calls == [(PROGRAM, TESTS)]


def test_the_preamble_goes_before_the_program():
    run, calls = runner(1)
    rewards.score("code", fence(PROGRAM), TESTS, run=run, preamble="import math")
    assert calls[0][0] == f"import math\n{PROGRAM}"


def test_without_a_program_nothing_runs():
    run, calls = runner(1)
    result = rewards.score("code", "no idea", TESTS, run=run)
    assert (result["score"], result["acc"], result["tests"], calls) == (0.0, 0.0, 2.0, [])


def test_what_the_sandbox_did_not_judge_is_no_verdict():
    def run(program, tests):
        return {"pass_rate": 0.0, "acc": 0.0, "tests_sandbox_error": 2.0}

    with pytest.raises(RuntimeError, match="2 of 2 tests"):
        rewards.score("code", fence(PROGRAM), TESTS, run=run)


@pytest.mark.parametrize("truth", [[], "[]", "assert f(1) == 2", [1], None, {"a": 1}])
def test_other_ground_truths_are_refused(truth):
    with pytest.raises(ValueError, match="ground_truth"):
        rewards.score("code", fence(PROGRAM), truth)


def test_the_default_runner_is_the_sandbox():
    from maskgrpo_plugin.sandbox import SandboxConfig
    from maskgrpo_plugin.sandbox.local import detect_isolation

    try:
        detect_isolation(SandboxConfig())
    except RuntimeError as error:
        pytest.skip(str(error))
    result = rewards.score("code", fence(PROGRAM), [*TESTS, "assert f(3) == 3"])
    assert (result["tests"], result["tests_passed"], result["acc"]) == (3.0, 2.0, 0.0)
    assert result["score"] == pytest.approx(0.5 + 4 / 3)
