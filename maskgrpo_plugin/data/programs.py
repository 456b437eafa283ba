"""Programming problems with tests: AceCode to train on, MBPP, HumanEval to evaluate."""

import ast
import json
from typing import Any

from maskgrpo_plugin.data.records import DataError, HubSource, text_field, text_list_field
from maskgrpo_plugin.data.rows import Row, verl_row
from maskgrpo_plugin.data.splits import is_held_out

ACECODE_HUB = HubSource("TIGER-Lab/AceCode-87K", "train")
MBPP_HUB = {
    "train": HubSource("google-research-datasets/mbpp", "train", "full"),
    "validation": HubSource("google-research-datasets/mbpp", "test", "full"),
}
HUMANEVAL_HUB = {"validation": HubSource("openai/openai_humaneval", "test")}

MBPP_TASK_IDS = {"train": range(601, 975), "validation": range(11, 511)}
ACECODE_VALIDATION_SHARE = 100  # one in so many problems is held out
INSTRUCTION = (
    "Think about the problem first, then write the whole program as one block of Python code between <answer> and "
    "</answer>:\n<answer>\n```python\n# your code\n```\n</answer>"
)


def acecode_row(record: Any, split: str, index: int) -> Row | None:
    """One row from one AceCode record with `question` and `test_cases`; None where it belongs to the other split."""
    question, tests = text_field(record, "question"), text_list_field(record, "test_cases")
    if is_held_out(question, ACECODE_VALIDATION_SHARE) != (split == "validation"):
        return None
    return _row("acecode", question, _checked(tests), split, index)


def acecode_file_row(record: Any, split: str, index: int) -> Row:
    """One row from one AceCode record of a file that holds only one split."""
    return _row(
        "acecode", text_field(record, "question"), _checked(text_list_field(record, "test_cases")), split, index
    )


def mbpp_row(record: Any, split: str, index: int) -> Row | None:
    """One row from one MBPP record with `text` (or `prompt`), `test_list` and `task_id`; None where the `task_id` is of
    another of the published splits.
    """
    text, tests = text_field(record, "text", "prompt"), _checked(text_list_field(record, "test_list"))
    task_id = record.get("task_id")
    if not isinstance(task_id, int) or isinstance(task_id, bool):
        raise DataError(f"task_id must be a whole number, got {task_id!r}")
    if task_id not in MBPP_TASK_IDS[split]:
        return None
    setup = [str(record.get("test_setup_code") or ""), *text_list_field(record, "test_imports", may_be_empty=True)]
    content = f"{text}\n\nThe program must pass these tests:\n```python\n{chr(10).join(tests)}\n```"
    return _row("mbpp", content, tests, split, index, preamble="\n".join(line for line in setup if line.strip()))


def humaneval_row(record: Any, split: str, index: int) -> Row:
    """One row from one HumanEval record with `prompt`, `test` and `entry_point`.

    The prompt's imports and helpers go before the program, so that an answer need not repeat them.
    """
    prompt, test, entry_point = (text_field(record, name) for name in ("prompt", "test", "entry_point"))
    if not entry_point.isidentifier():
        raise DataError(f"entry_point must be a name, got {entry_point!r}")
    tests = _checked([f"{test}\n\ncheck({entry_point})"])
    content = f"Complete this Python function:\n```python\n{prompt}\n```"
    return _row("humaneval", content, tests, split, index, preamble=_before_function(prompt, entry_point))


def _row(source: str, content: str, tests: list[str], split: str, index: int, preamble: str = "") -> Row:
    return verl_row(
        data_source=source,
        task="code",
        ability="code",
        content=f"{content}\n\n{INSTRUCTION}",
        ground_truth=json.dumps(tests),
        split=split,
        index=index,
        preamble=preamble,
    )


def _checked(tests: list[str]) -> list[str]:
    """`tests`, each of them checked.

    Raises:
        DataError: a test is not Python.
    """
    for test in tests:
        try:
            ast.parse(test)
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            raise DataError(f"a test is not Python ({error}): {test[:80]!r}") from error
    return tests


def _before_function(prompt: str, name: str) -> str:
    """The imports and helpers of a prompt: what stands before the function `name`.

    Raises:
        DataError: the prompt is not Python or does not define it.
    """
    try:
        statements = ast.parse(prompt).body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise DataError(f"the prompt is not Python ({error})") from error
    names = [getattr(statement, "name", None) for statement in statements]
    if name not in names:
        raise DataError(f"the prompt does not define {name}")
    return "\n".join(ast.unparse(statement) for statement in statements[: names.index(name)])
