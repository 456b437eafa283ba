"""The scorer of MATH: extraction, spelling, form, math-verify for the rest, time-outs, threads."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from maskgrpo_plugin import rewards
from maskgrpo_plugin.rewards.text.equivalence import EquivalenceFailure, Verdict, compare_latex, pool
from maskgrpo_plugin.rewards.text.scorers.competition_math import compare_answers, extract_answer

HARD = (r"\int_0^1 \sin(x^{x^{x}}) dx", r"\int_0^1 \cos(x^{x^{x}}) + 1 dx")


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        ("\\boxed{5}", "5"),
        ("first \\boxed{4}, no: \\boxed{5}", "5"),
        ("\\boxed{\\boxed{\\frac{1}{2}}}", "\\frac{1}{2}"),
        ("\\boxed{\\{1, 2\\}}", "\\{1, 2\\}"),
        ("\\boxed{\\left\\{ x \\right.}", "\\left\\{ x \\right."),
        ("<answer>\n\\boxed{5}\n</answer>", "5"),
        ("<answer> 7 </answer>", "7"),
        ("\\boxed{5}<|eot_id|>\\boxed{6}", "5"),
        ("\\fbox{5}", "5"),
        ("\\boxed{2000\n</answer>", None),
        ("the answer is 5", None),
        ("<answer></answer>", None),
        ("\\boxed{}", None),
        ("", None),
    ],
)
def test_the_answer_is_the_last_closed_box_or_else_the_tags(completion, answer):
    assert extract_answer(completion) == answer


@pytest.mark.parametrize(
    ("truth", "answer"),
    [
        ("5", "x = 5"),
        ("5", "5.0"),
        ("5", "2 + 3 = 5"),
        ("5 \\text{ cm}", "5"),
        ("30^\\circ", "30"),
        ("90", "90^{\\circ}"),
        ("\\$36", "36.00"),
        ("10\\%", "10"),
        ("10,\\!080", "10080"),
        ("\\frac{1}{2}", "\\dfrac12"),
        ("\\frac{1}{2}", "1/2"),
        ("\\frac{1}{2}", "0.5"),
        ("-\\frac{1}{2}", "\\frac{-1}{2}"),
        ("\\frac{7}{2}", "3\\frac{1}{2}"),
        ("0.4", "\\frac{2}{5}"),
        ("\\text{Evelyn}", "evelyn"),
        ("\\text{(C)}", "C"),
        ("(3,4]", "x \\in (3, 4]"),
        ("y = 2x + 3", "2x+3"),
        ("\\frac{\\sqrt{21}}{5}", "\\frac{\\sqrt{21}}{5}"),
        ("$18$", "18"),
        ("\\boxed{18}", "18"),
        # by math-verify
        ("x^2 + 2x + 1", "(x+1)^2"),
        ("\\frac{\\sqrt{2}}{2}", "\\frac{1}{\\sqrt{2}}"),
        ("1,-2", "-2, 1"),
        ("3 \\pm 2\\sqrt{2}", "3 - 2\\sqrt{2}, 3 + 2\\sqrt{2}"),
        ("6 - 5i", "-5i + 6"),
    ],
)
def test_equal_answers(truth, answer):
    result = rewards.score("math", f"\\boxed{{{answer}}}", truth)
    assert (result["acc"], result["correct"], result["timeout"]) == (1.0, 2.0, 0.0)


@pytest.mark.parametrize(
    ("truth", "answer"),
    [
        ("5", "6"),
        ("5", "-5"),
        ("\\frac{2}{21}", "\\frac{8}{84}"),  # not in lowest terms
        ("3", "\\frac{6}{2}"),
        ("4", "\\sqrt{16}"),
        ("\\frac{639}{40}", "15.975"),  # the problem asks for a fraction
        ("\\frac{1}{3}", "0.33"),
        ("\\pi", "3.14159265358979"),
        ("\\text{east}", "seat"),  # not a product of letters
        ("(1,2)", "(2,1)"),
        ("(3,4]", "[3,4)"),
        ("x \\le 3", "x < 3"),
        ("x^2 + 1", "x^2 - 1"),
        ("5", "{"),
        ("x+1", "\\frac{"),
        ("5", "1" * 600),
    ],
)
def test_different_answers(truth, answer):
    assert compare_answers(truth, answer) is Verdict.DIFFERENT


@pytest.mark.parametrize(
    ("completion", "format_reward"),
    [
        ("<answer>\\boxed{6}</answer>", 1.0),
        ("<answer>6</answer> \\boxed{6}", 0.75),
        ("\\boxed{6}", 0.5),
        ("\\boxed{6", 0.0),
        ("6", 0.0),
        ("", 0.0),
    ],
)
def test_format(completion, format_reward):
    result = rewards.score("math", completion, "5")
    assert (result["format"], result["correct"], result["score"]) == (format_reward, 0.0, format_reward)


def test_best_score_is_3():
    assert rewards.score("math", "<answer>\\boxed{5}</answer>", 5)["score"] == 3.0


@pytest.mark.parametrize("truth", ["", "  ", "\\boxed{}"])
def test_ground_truth_without_an_answer_is_refused(truth):
    with pytest.raises(ValueError, match="ground_truth"):
        rewards.score("math", "\\boxed{5}", truth)


def test_a_comparison_ends_at_its_limit_and_the_next_one_works():
    assert compare_latex("x", "x", time_limit_s=30) is Verdict.EQUAL  # a process is there
    assert compare_latex(*HARD, time_limit_s=0.2) is Verdict.UNDECIDED
    assert compare_latex("x+1", "1+x", time_limit_s=30) is Verdict.EQUAL


def test_a_timeout_is_an_outcome_of_the_score(monkeypatch):
    monkeypatch.setattr(
        "maskgrpo_plugin.rewards.text.scorers.competition_math.compare_latex", lambda *_, **__: Verdict.UNDECIDED
    )
    result = rewards.score("math", "<answer>\\boxed{1+x}</answer>", "x+1")
    assert result == {"score": 1.0, "acc": 0.0, "timeout": 1.0, "format": 1.0, "correct": 0.0}


def test_many_threads_share_few_processes():
    before = threading.active_count()
    with ThreadPoolExecutor(8) as threads:
        verdicts = list(threads.map(lambda n: compare_latex(f"x+{n}", f"{n}+x", time_limit_s=60), range(24)))
    assert set(verdicts) == {Verdict.EQUAL}
    assert 1 <= len(pool._pool_of_this_process().idle) <= pool.MOST_WORKERS
    assert threading.active_count() < before + 50


def test_a_killed_process_is_replaced():
    compare_latex("x", "x", time_limit_s=30)
    workers = pool._pool_of_this_process().idle
    for worker in workers:
        os.kill(worker.process.pid, 9)
        worker.process.wait()
    for _ in range(len(workers)):
        compare_latex("x", "x", time_limit_s=30)
    assert compare_latex("x+1", "1+x", time_limit_s=30) is Verdict.EQUAL


def test_a_missing_math_verify_is_said(monkeypatch, tmp_path):
    script = tmp_path / "worker.py"
    script.write_text("import json; print(json.dumps({'error': 'No module named math_verify'}), flush=True)")
    monkeypatch.setattr(pool, "_WORKER", script)
    with pytest.raises(RuntimeError, match=r"No module named math_verify.*pip install math-verify"):
        pool._Pool().compare("x", "x", 1.0)


def test_time_limit_must_be_positive():
    with pytest.raises(ValueError, match="time_limit_s"):
        compare_latex("x", "x", time_limit_s=0)


@pytest.fixture
def failing_worker(tmp_path, monkeypatch):
    """A function: the worker's `equal` runs the given statement in place of asking math-verify, but for x and x."""

    def make(statement):
        text = Path(pool._WORKER).read_text()
        script = tmp_path / "worker.py"
        body = f'    if truth != "x":\n        {statement}\n    return True\n\n\ndef old_equal('
        script.write_text(text.replace("def equal(", "def equal(truth, answer):\n" + body, 1))
        monkeypatch.setattr(pool, "_WORKER", script)
        monkeypatch.setattr(pool, "_pool", None)

    return make


@pytest.mark.parametrize("error", ["AttributeError('no parser')", "TypeError('an unknown argument')", "KeyError(1)"])
def test_a_math_verify_that_fails_is_a_failed_reward_and_no_wrong_answer(failing_worker, error):
    failing_worker(f"raise {error}")
    with pytest.raises(EquivalenceFailure, match=r"math-verify failed on 'x\+1' and '1\+x': " + error.split("(")[0]):
        compare_latex("x+1", "1+x", time_limit_s=30)
    with pytest.raises(EquivalenceFailure):
        rewards.score("math", "\\boxed{1+x}", "x+1")


@pytest.mark.parametrize("error", ["MemoryError()", "RecursionError()"])
def test_an_answer_that_takes_too_much_is_wrong_and_counted(failing_worker, error):
    failing_worker(f"raise {error}")
    assert compare_latex("x+1", "1+x", time_limit_s=30) is Verdict.UNDECIDED
    assert rewards.score("math", "\\boxed{1+x}", "x+1")["timeout"] == 1.0
