"""Tests given as pairs of input and output, in the forms that data sets of programming problems have them.

A program that reads standard input is right where it prints the output; a function where it returns it.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_NUMBER = re.compile(r"[+-]?(?:[0-9]{1,30}\.?[0-9]{0,30}|\.[0-9]{1,30})(?:[eE][+-]?[0-9]{1,3})?")
_WHOLE = re.compile(r"[+-]?[0-9]+")
_TOLERANCE = 1e-6
_CALLS = ("functional", "function_call")


@dataclass(frozen=True)
class Pair:
    """What a program reads on standard input, and what it is to print."""

    input: str
    output: str


@dataclass(frozen=True)
class FunctionPair:
    """What a function, or the method of that name of a class `Solution`, is called with, and what it is to return.

    Args:
        function: its name.
        arguments: its positional arguments.
        output: what it is to return; a list stands for a tuple as well.
        wrapped: whether `output` may be a list around what it is to return, as some data sets have it.
    """

    function: str
    arguments: tuple[Any, ...]
    output: Any
    wrapped: bool = False


def read_pair(test: Mapping[str, Any]) -> Pair | FunctionPair:
    """The pair of one test: `input` and `output`, both text, or `function`, `arguments` and `output`.

    Raises:
        ValueError: it is neither.
    """
    if isinstance(test.get("input"), str) and isinstance(test.get("output"), str):
        return Pair(test["input"], test["output"])
    name, arguments = test.get("function"), test.get("arguments")
    if isinstance(name, str) and name.isidentifier() and isinstance(arguments, list | tuple) and "output" in test:
        return FunctionPair(name, tuple(arguments), test["output"], bool(test.get("wrapped")))
    raise ValueError(f"a test must have 'input' and 'output', or 'function', 'arguments' and 'output': {_shown(test)}")


def tests_of(content: Any, function: str = "") -> list[str | dict[str, Any]]:
    """The tests of a problem, each as statements or in the form of `read_pair`.

    Args:
        content: a list of test statements; a list of objects with `input` and `output`, which may say by `testtype` or
            `type` that a function is called (LiveCodeBench and its relatives); or one object with the lists `inputs`
            and `outputs` and perhaps `fn_name` (APPS and TACO).
        function: name of the function that such tests call, where they do not say it themselves.

    Raises:
        ValueError: it is something else, or empty.
    """
    tests: list[str | dict[str, Any]]
    if isinstance(content, Mapping):
        tests = list(_of_lists(content, function))
    elif isinstance(content, Sequence) and not isinstance(content, str):
        tests = [test if isinstance(test, str) else _of_object(test, function) for test in content]
    else:
        tests = []
    if not tests:
        raise ValueError(f"a list of tests is needed, or an object with inputs and outputs, got {_shown(content)}")
    return tests


def same_output(printed: str, expected: str) -> bool:
    """Whether two outputs are the same but for white space and, of numbers with a decimal point, the last digits.

    Numbers may differ by 1e-6, or by a millionth of the expected one where that is more.
    """
    found, wanted = printed.split(), expected.split()
    return len(found) == len(wanted) and all(a == b or _close(a, b) for a, b in zip(found, wanted, strict=True))


def _close(found: str, wanted: str) -> bool:
    if _WHOLE.fullmatch(wanted) or not _NUMBER.fullmatch(wanted) or not _NUMBER.fullmatch(found):
        return False
    a, b = float(found), float(wanted)
    return abs(a - b) <= _TOLERANCE * max(1.0, abs(b))


def _of_lists(content: Mapping[str, Any], function: str) -> list[dict[str, Any]]:
    inputs, outputs = content.get("inputs"), content.get("outputs")
    name = content.get("fn_name") or function
    if not isinstance(inputs, list) or not isinstance(outputs, list) or len(inputs) != len(outputs):
        raise ValueError(f"inputs and outputs must be lists of the same length: {_shown(content)}")
    if name:
        return [
            _checked({"function": name, "arguments": given, "output": wanted, "wrapped": True})
            for given, wanted in zip(inputs, outputs, strict=True)
        ]
    return [_checked({"input": _text(i), "output": _text(o)}) for i, o in zip(inputs, outputs, strict=True)]


def _of_object(test: Any, function: str) -> dict[str, Any]:
    if not isinstance(test, Mapping):
        raise ValueError(f"a test must be statements or an object: {_shown(test)}")
    name = test.get("fn_name") or function
    if "function" in test or not (name and (test.get("testtype") or test.get("type") or _CALLS[0]) in _CALLS):
        return _checked({**test, **{key: _text(test[key]) for key in ("input",) if key in test}})
    given, wanted = test.get("input"), test.get("output")
    try:
        arguments = (
            [json.loads(line) for line in given.split("\n") if line.strip()] if isinstance(given, str) else given
        )
        output = json.loads(wanted) if isinstance(wanted, str) else wanted
    except (ValueError, RecursionError):
        raise ValueError(f"a function's arguments and output must be JSON: {_shown(test)}") from None
    return _checked({"function": name, "arguments": arguments, "output": output})


def _text(lines: Any) -> Any:
    """Text that may come as a list of lines."""
    return "\n".join(map(str, lines)) if isinstance(lines, list) else lines


def _checked(test: dict[str, Any]) -> dict[str, Any]:
    read_pair(test)
    return test


def _shown(value: Any) -> str:
    return repr(value)[:200]
