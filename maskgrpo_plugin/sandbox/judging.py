"""Who judges a test: this process, by comparing plain values, or a process beside the program's.

A statement of the form `assert f(1, "a") == [2, 3]` is taken apart. The sandbox gets `f(1, "a")`, evaluates it and
sends the value; the right side never leaves this process, and the comparison happens here. The forms are `assert call`,
`assert not call` and `assert call (== | != | is | is not) literal`, either way round, where the call's arguments are
literals and one of a few built-in conversions may be around it. Pairs of input and output are judged in the same way.
Whatever a program does, it can only answer.

Any other test runs, as it stands, in a process of its own inside the sandbox, which calls the program in another
process (see inside/remote.py); the program's process is forked before the test's text arrives. Or, where the
configuration says `judging: inside`, it runs in the program's own process.

What stays forgeable: an answer that can be guessed (`assert f(3)` is met by anything true); what a test asks an object
of the program's own class to say of itself (`assert a == b` of two such objects, `assert isinstance(f(), Thing)`);
with `judging: inside`, whatever plain Python leaves to the program. With a service, the judging process runs on the
service's machine beside the program's, kept apart by user ids and process protection alone; and the service's word is
taken for what happened there.
"""

import ast
import binascii
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from maskgrpo_plugin.sandbox.comparison import equals, is_same, is_true
from maskgrpo_plugin.sandbox.inside.codec import CodecError
from maskgrpo_plugin.sandbox.pairs import FunctionPair, Pair, read_pair, same_output
from maskgrpo_plugin.sandbox.results import Status, TestResult

Test = str | Mapping[str, Any]

_CONVERSIONS = ("set", "frozenset", "list", "tuple", "dict", "sorted", "len", "str", "int", "float", "bool")
_COMPARISONS: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Eq: equals,
    ast.NotEq: lambda data, expected: not equals(data, expected),
    ast.Is: is_same,
    ast.IsNot: lambda data, expected: not is_same(data, expected),
}
_FAILURES = (Status.FAILED, Status.ERROR, Status.TIMEOUT, Status.MEMORY, Status.OUTPUT_LIMIT)


@dataclass(frozen=True)
class Plan:
    """How a test is run and judged.

    Args:
        content: what the sandbox gets: an expression, what a program reads, or the test's statements.
        kind: what the sandbox does with it (see inside/supervisor.py): `value` and `output` send what the expression
            is or the program printed; `judged` and `inside` send a verdict.
        accepts: says of what the sandbox sends whether the test passes; None where it sends a verdict.
    """

    content: str
    kind: str
    accepts: Callable[[Any], bool] | None = None


def plan(test: Test, judging: str = "outside") -> Plan:
    """How to run and judge a test.

    Args:
        test: Python statements, or a pair of input and output (see pairs.read_pair).
        judging: where statements that cannot be taken apart are judged, see SandboxConfig.

    Raises:
        ValueError: it is neither.
    """
    if not isinstance(test, str):
        return _plan_pair(read_pair(test))
    try:
        body = ast.parse(test).body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f"a test of a code task must be Python statements: {error}: {test[:200]!r}") from None
    if len(body) == 1 and isinstance(body[0], ast.Assert):
        found = _split(body[0].test)
        if found is not None:
            return found
    return Plan(test, "inside" if judging == "inside" else "judged")


def _plan_pair(pair: Pair | FunctionPair) -> Plan:
    if isinstance(pair, Pair):
        return Plan(pair.input, "output", lambda data: same_output(_printed(data), pair.output))
    name, arguments, expected = pair.function, ", ".join(map(repr, pair.arguments)), pair.output

    right = [expected, *(expected if pair.wrapped and isinstance(expected, list) and len(expected) == 1 else [])]
    return Plan(f"(Solution().{name} if 'Solution' in globals() else {name})({arguments})", "value", _equals_any(right))


def judge(plan: Plan, outcome: Any) -> TestResult:
    """The result of a test.

    Args:
        plan: of the test.
        outcome: what the sandbox sent, `value` or `status` among its keys; not to be trusted to be anything.
    """
    if not isinstance(outcome, Mapping):
        return TestResult(Status.SANDBOX_ERROR, detail="no outcome")
    duration = outcome.get("duration")
    seconds = float(duration) if isinstance(duration, (int, float)) else 0.0
    detail = str(outcome.get("detail", ""))[:500]
    sent = {"value": "value", "output": "printed"}.get(plan.kind)
    if plan.accepts is not None and sent in outcome:
        return TestResult(_compare(plan.accepts, outcome[sent]), seconds, detail)
    allowed = [status.value for status in _FAILURES] + ([Status.PASSED.value] if plan.accepts is None else [])
    status = outcome.get("status")
    if status not in allowed:
        return TestResult(Status.ERROR, seconds, detail or "no verdict")
    return TestResult(Status(status), seconds, detail)


def _compare(accepts: Callable[[Any], bool], data: Any) -> Status:
    try:
        return Status.PASSED if accepts(data) else Status.FAILED
    except (CodecError, ArithmeticError, TypeError, ValueError, RecursionError):
        return Status.FAILED


def _equals_any(right: list[Any]) -> Callable[[Any], bool]:
    return lambda data: any(equals(data, expected, loose=True) for expected in right)


def _printed(data: Any) -> str:
    """What a program printed, which travels in base 64."""
    if not isinstance(data, str):
        raise CodecError("not a text")
    return binascii.a2b_base64(data.encode()).decode(errors="replace")


def _split(condition: ast.expr) -> Plan | None:
    """The plan for a condition of one of the simple forms, None for any other."""
    if isinstance(condition, ast.UnaryOp) and isinstance(condition.op, ast.Not) and _is_call(condition.operand):
        return Plan(ast.unparse(condition.operand), "value", lambda data: not is_true(data))
    if _is_call(condition):
        return Plan(ast.unparse(condition), "value", is_true)
    if not isinstance(condition, ast.Compare) or len(condition.ops) != 1 or type(condition.ops[0]) not in _COMPARISONS:
        return None
    sides = (condition.left, condition.comparators[0])
    call, literal = sides if _is_call(sides[0]) else sides[::-1]
    if not _is_call(call) or not _is_literal(literal):
        return None
    expected, compare = ast.literal_eval(literal), _COMPARISONS[type(condition.ops[0])]
    return Plan(ast.unparse(call), "value", lambda data: compare(data, expected))


def _is_call(node: ast.expr) -> bool:
    """Whether `node` calls a name, or an attribute of one or of such a call, with literals alone."""
    if not isinstance(node, ast.Call):
        return False
    if isinstance(node.func, ast.Name) and node.func.id in _CONVERSIONS and len(node.args) == 1 and not node.keywords:
        if _is_call(node.args[0]):
            return True
    arguments = [*node.args, *(keyword.value for keyword in node.keywords if keyword.arg is not None)]
    if len(arguments) != len(node.args) + len(node.keywords) or not all(map(_is_literal, arguments)):
        return False
    target = node.func
    while isinstance(target, ast.Attribute):
        target = target.value
    return isinstance(target, ast.Name) or _is_call(target)


def _is_literal(node: ast.expr) -> bool:
    try:
        ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return False
    return True
