"""Scorer of programs: the share of tests that the Python in a completion passes, run in a sandbox, and its form."""

import ast
import functools
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from maskgrpo_plugin.errors import OptionError
from maskgrpo_plugin.rewards.failures import SandboxLost
from maskgrpo_plugin.rewards.sections import plain
from maskgrpo_plugin.rewards.text.answers import answer_tag_contents, cut_at_stop, from_json
from maskgrpo_plugin.rewards.text.registry import register_task
from maskgrpo_plugin.sandbox import SandboxConfig, score_program, tests_of

CORRECT_REWARD = 2.0
BLOCK_REWARD = 0.25
SYNTAX_REWARD = 0.25
LONGEST_PROGRAM = 50_000
COUNTS = ("tests", "tests_passed", "tests_timeout", "tests_sandbox_error")

_BLOCK = re.compile(r"```([^\n`]*)\n(.*?)(?:\n[ \t]*)?```", re.DOTALL)
_OPEN_BLOCK = re.compile(r"```(?:python|py)[^\n`]*\n(.*)", re.DOTALL | re.IGNORECASE)
_DEFINITION = re.compile(r"^[^\S\n]*(?:async\s+def|def|class)\s", re.MULTILINE)


Test = str | Mapping[str, Any]
Runner = Callable[[str, Sequence[Test]], Mapping[str, float]]


def sandbox_settings(reward: Mapping[str, Any]) -> dict[str, Any]:
    """The option `run` of `score_code` from `reward.sandbox` of a run's config.

    Raises:
        OptionError: an unknown key or a value out of its range, under `sandbox`.
    """
    try:
        config = SandboxConfig.from_mapping(plain(reward.get("sandbox")) or {})
    except OptionError as error:
        raise error.under("sandbox") from None
    return {"run": functools.partial(score_program, config=config)}


@register_task(
    "code",
    keys=("score", "acc", "pass_rate", "format", "correct", *COUNTS),
    extra=("preamble",),
    components=("format", "correct"),
    settings=sandbox_settings,
)
def score_code(
    completion: str, ground_truth: Any, *, preamble: str = "", run: Runner | None = None
) -> dict[str, float]:
    """Score one completion; everything after the first stop token's text is ignored.

    Args:
        completion: text of the response.
        ground_truth: the tests, or the JSON of them: a list of test statements, or pairs of input and output in one of
            the forms of `sandbox.tests_of`.
        preamble: Python that goes before the program, such as its imports.
        run: called as run(program, tests), gives `pass_rate`, `acc` and COUNTS; the default is the sandbox's
            `score_program` with its default settings.

    Returns:
        `pass_rate` 0 to 1; `acc` 1 where all tests pass, else 0; `correct` 2 × `pass_rate`; `format` 0.25 for a closed
        block of Python, 0.5 where it also parses, else 0; `score` is `correct` + `format` (0 to 2.5); COUNTS as the
        sandbox gives them. A completion without a program passes no test and runs none.

    Raises:
        ValueError: `ground_truth` holds no tests, or something else.
        RuntimeError: the sandbox cannot run.
        SandboxLost: it did not judge every test.
    """
    tests = parse_ground_truth(ground_truth)
    text = cut_at_stop(completion)
    program = extract_code(text)
    outcome: Mapping[str, float] = {"pass_rate": 0.0, "acc": 0.0, "tests": float(len(tests))}
    if program:
        outcome = (run or score_program)(f"{preamble}\n{program}" if preamble else program, tests)
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


def parse_ground_truth(ground_truth: Any) -> list[Test]:
    """The tests of a ground truth or its JSON, each as statements or as a pair of input and output.

    Raises:
        ValueError: it is something else, or empty.
    """
    tests = from_json(ground_truth)
    try:
        return list(tests_of(tests.tolist() if hasattr(tests, "tolist") else tests))
    except ValueError as error:
        raise ValueError(f"ground_truth of a code task: {error}") from None


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
