"""Programming problems with tests: AceCode and APPS to train on, MBPP, HumanEval and LiveCodeBench to evaluate."""

import ast
import base64
import json
import pickletools
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

from maskgrpo_plugin.data.records import DataError, HubSource, as_object, text_field, text_list_field
from maskgrpo_plugin.data.rows import Row, verl_row
from maskgrpo_plugin.data.splits import is_held_out
from maskgrpo_plugin.sandbox.pairs import tests_of

ACECODE_HUB = HubSource("TIGER-Lab/AceCode-87K", "train")
MBPP_HUB = {
    "train": HubSource("google-research-datasets/mbpp", "train", "full"),
    "validation": HubSource("google-research-datasets/mbpp", "test", "full"),
}
APPS_HUB = {"train": HubSource("codeparrot/apps", "train"), "validation": HubSource("codeparrot/apps", "test")}
LIVECODEBENCH_HUB = {"validation": HubSource("livecodebench/code_generation_lite", "test")}
HUMANEVAL_HUB = {"validation": HubSource("openai/openai_humaneval", "test")}

MBPP_TASK_IDS = {"train": range(601, 975), "validation": range(11, 511)}
ACECODE_VALIDATION_SHARE = 100  # one in so many problems is held out
INSTRUCTION = (
    "Think about the problem first, then write the whole program as one block of Python code between <answer> and "
    "</answer>:\n<answer>\n```python\n# your code\n```\n</answer>"
)


def acecode_row(record: Any, split: str, index: int) -> Row | None:
    """One row from one AceCode record with `question` and `test_cases`; None where it belongs to the other split."""
    if is_held_out(text_field(record, "question"), ACECODE_VALIDATION_SHARE) != (split == "validation"):
        return None
    return acecode_file_row(record, split, index)


def acecode_file_row(record: Any, split: str, index: int) -> Row:
    """One row from one AceCode record of a file that holds only one split."""
    tests = _tests(as_object(record).get("test_cases"), "test_cases")
    return _row("acecode", text_field(record, "question"), tests, split, index)


def apps_row(record: Any, split: str, index: int) -> Row:
    """One row from one APPS or TACO record with `question`, `input_output` and perhaps `starter_code`."""
    question, pairs = text_field(record, "question"), _json(as_object(record).get("input_output"), "input_output")
    return _row("apps", _with_starter(question, record), _tests(pairs, "input_output"), split, index)


def livecodebench_row(record: Any, split: str, index: int) -> Row:
    """One row from one LiveCodeBench record with `question_content`, `public_test_cases`, `private_test_cases`,
    `metadata` and `starter_code`.
    """
    question, metadata = text_field(record, "question_content"), _json(record.get("metadata") or {}, "metadata")
    function = str(metadata.get("func_name") or "") if isinstance(metadata, Mapping) else ""
    pairs = [pair for name in ("public_test_cases", "private_test_cases") for pair in _pairs(record.get(name), name)]
    tests = _tests(pairs, "public_test_cases", function)
    return _row("livecodebench", _with_starter(question, record), tests, split, index)


def mbpp_row(record: Any, split: str, index: int) -> Row | None:
    """One row from one MBPP record with `text` (or `prompt`), `test_list` and `task_id`; None where the `task_id` is of
    another of the published splits.
    """
    text, (tests, preamble) = text_field(record, "text", "prompt"), mbpp_tests(record)
    task_id = record.get("task_id")
    if not isinstance(task_id, int) or isinstance(task_id, bool):
        raise DataError(f"task_id must be a whole number, got {task_id!r}")
    if task_id not in MBPP_TASK_IDS[split]:
        return None
    shown = "\n".join(text_list_field(record, "test_list"))
    content = f"{text}\n\nThe program must pass these tests:\n```python\n{shown}\n```"
    return _row("mbpp", content, tests, split, index, preamble=preamble)


def mbpp_tests(record: Any) -> tuple[list[str], str]:
    """Test statements of one MBPP record, and what goes before the program: the imports of its `test_setup_code`.

    Set-up code that does more may use what the program defines, as problems 367 and 927 do: it goes before each test.
    """
    tests = _checked(text_list_field(record, "test_list"))
    setup = [str(record.get("test_setup_code") or ""), *text_list_field(record, "test_imports", may_be_empty=True)]
    before = "\n".join(line.replace("\r\n", "\n") for line in setup if line.strip())
    return (tests, before) if _only_imports(before) else (_checked([f"{before}\n{test}" for test in tests]), "")


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


def _with_starter(question: str, record: Any) -> str:
    """The question, and that input is read or what the program is to start with."""
    starter = str(record.get("starter_code") or "").strip()
    if not starter:
        return f"{question}\n\nThe program reads its input from standard input and prints its output."
    return f"{question}\n\nThe program must have this form:\n```python\n{starter}\n```"


def _json(value: Any, name: str) -> Any:
    """A field that may be JSON.

    Raises:
        DataError: it is text but no JSON.
    """
    try:
        return json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError) as error:
        raise DataError(f"{name} is not JSON ({error})") from error


def _pairs(value: Any, name: str) -> list[Any]:
    """Tests as a list, its JSON, or what LiveCodeBench has for its larger tests: base 64 of a compressed pickle of it.

    The pickle holds one text. It is read, not run.

    Raises:
        DataError: it is something else.
    """
    try:
        if isinstance(value, str) and not value.lstrip().startswith("["):
            operations = pickletools.genops(zlib.decompress(base64.b64decode(value, validate=True)))
            value = next(argument for code, argument, _ in operations if isinstance(argument, str))
    except (ValueError, zlib.error, StopIteration) as error:
        raise DataError(f"{name} is neither JSON nor a packed text ({error})") from error
    found = _json(value, name)
    if found is None:
        return []
    if not isinstance(found, list):
        raise DataError(f"{name} is no list of tests")
    return found


def _tests(value: Any, name: str, function: str = "") -> list[str | dict[str, Any]]:
    """The tests of a field, each of them checked.

    Raises:
        DataError: it holds no tests, or a test is neither Python nor a pair of input and output.
    """
    try:
        tests = tests_of(value, function)
    except ValueError as error:
        raise DataError(f"no tests under {name!r}: {error}") from error
    _checked([test for test in tests if isinstance(test, str)])
    return tests


def _only_imports(code: str) -> bool:
    try:
        return all(isinstance(node, ast.Import | ast.ImportFrom) for node in ast.parse(code).body)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise DataError(f"the set-up code is not Python ({error})") from error


def _row(
    source: str, content: str, tests: Sequence[str | dict[str, Any]], split: str, index: int, preamble: str = ""
) -> Row:
    return verl_row(
        data_source=source,
        task="code",
        ability="code",
        content=f"{content}\n\n{INSTRUCTION}",
        ground_truth=json.dumps(list(tests)),
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
