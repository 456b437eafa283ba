"""Scorer of programs: the share of tests that the Python in a completion passes, run in a sandbox, and its form."""

import ast
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from maskgrpo_plugin.rewards.text.scorers import answer_tag_contents, cut_at_stop, from_json

CORRECT_REWARD = 2.0
BLOCK_REWARD = 0.25
SYNTAX_REWARD = 0.25
LONGEST_PROGRAM = 50_000
COUNTS = ("tests", "tests_passed", "tests_timeout", "tests_sandbox_error")

_BLOCK = re.compile(r"```([^\n`]*)\n(.*?)(?:\n[ \t]*)?```", re.DOTALL)
_OPEN_BLOCK = re.compile(r"```(?:python|py)[^\n]*\n(.*)", re.DOTALL | re.IGNORECASE)
_DEFINITION = re.compile(r"^\s*(?:async\s+def|def|class)\s", re.MULTILINE)


class SandboxLost(RuntimeError):
    """The sandbox failed while it ran a program, so the program was not judged."""


Runner = Callable[[str, Sequence[str]], Mapping[str, float]]


def score_code(
    completion: str, ground_truth: Any, *, preamble: str = "", run: Runner | None = None
) -> dict[str, float]:
    """Score one completion; everything after the first stop token's text is ignored.

    Args:
        completion: text of the response.
        ground_truth: the test statements, a list of strings or the JSON of it.
        preamble: Python that goes before the program, such as its imports.
        run: called as run(program, tests), gives `pass_rate`, `acc` and COUNTS; the default is the sandbox's
            `score_program` with its default settings.

    Returns:
        `pass_rate` 0 to 1; `acc` 1 where all tests pass, else 0; `correct` 2 × `pass_rate`; `format` 0.25 for a closed
        block of Python, 0.5 where it also parses, else 0; `score` is `correct` + `format` (0 to 2.5); COUNTS as the
        sandbox gives them. A completion without a program passes no test and runs none.

    Raises:
        ValueError: `ground_truth` is not a list of test statements, or none.
        RuntimeError: the sandbox cannot run.
        SandboxLost: it did not judge every test.
    """
    tests = parse_ground_truth(ground_truth)
    text = cut_at_stop(completion)
    program = extract_code(text)
    outcome: Mapping[str, float] = {"pass_rate": 0.0, "acc": 0.0, "tests": float(len(tests))}
    if program:
        outcome = (run or _sandbox)(f"{preamble}\n{program}" if preamble else program, tests)
        if outcome.get("tests_sandbox_error"):
            raise SandboxLost(f"the sandbox did not judge {outcome['tests_sandbox_error']:.0f} of {len(tests)} tests")
    components = {"format": format_reward(text), "correct": CORRECT_REWARD * outcome["pass_rate"]}
    return {
        "score": sum(components.values()),
        "acc": float(outcome["acc"]),
        "pass_rate": float(outcome["pass_rate"]),
        **components,
        **{name: float(outcome.get(name, 0.0)) for name in COUNTS},
    }


def parse_ground_truth(ground_truth: Any) -> list[str]:
    """The test statements of a list of strings or its JSON.

    Raises:
        ValueError: it is something else, or empty.
    """
    tests = from_json(ground_truth)
    tests = tests.tolist() if hasattr(tests, "tolist") else tests
    if not isinstance(tests, list | tuple) or not tests or not all(isinstance(test, str) for test in tests):
        raise ValueError(
            f"ground_truth of a code task must be a list of test statements, got {str(ground_truth)[:200]}"
        )
    return list(tests)


def extract_code(completion: str) -> str:
    """The program of a completion, or "" where there is none.

    The first of these: the last closed fenced block of Python that defines something, the last closed block of Python,
    a block of Python that is never closed, the last `<answer>…</answer>` or the whole text if that parses as Python
    with a definition. Blocks of other languages are no programs; more than LONGEST_PROGRAM characters are none either.
    """
    text = cut_at_stop(completion)
    blocks = _python_blocks(text)
    defining = [block for block in blocks if _DEFINITION.search(block)]
    unclosed = _OPEN_BLOCK.search(text)
    if blocks:
        program = (defining or blocks)[-1]
    elif unclosed:
        program = unclosed[1]
    else:
        plain = [*answer_tag_contents(text)[-1:], text]
        program = next((p for p in plain if "```" not in p and _DEFINITION.search(p) and _parses(p)), "")
    return program.strip("\n") if len(program) <= LONGEST_PROGRAM else ""


def format_reward(completion: str) -> float:
    """0.25 where `completion` has a closed block of Python, 0.5 where the program in it parses too, else 0."""
    text = cut_at_stop(completion)
    if not any(block.strip() for block in _python_blocks(text)):
        return 0.0
    return BLOCK_REWARD + SYNTAX_REWARD * _parses(extract_code(text))


def _python_blocks(text: str) -> list[str]:
    return [
        code for language, code in _BLOCK.findall(text) if language.strip().lower() in ("", "python", "py", "python3")
    ]


def _parses(program: str) -> bool:
    if not program.strip() or len(program) > LONGEST_PROGRAM:
        return False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ast.parse(program)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True


def _sandbox(program: str, tests: Sequence[str]) -> Mapping[str, float]:
    from maskgrpo_plugin.sandbox import score_program

    return score_program(program, tests)
