"""What the judge may ask the program's process to do with one of the program's objects."""

from __future__ import annotations

import math
import operator

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

# Two-sided operators, by the name of their method.
BINARY: dict[str, Callable[..., Any]] = {
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "truediv": operator.truediv,
    "floordiv": operator.floordiv,
    "mod": operator.mod,
    "divmod": divmod,
    "pow": pow,
    "matmul": operator.matmul,
    "and": operator.and_,
    "or": operator.or_,
    "xor": operator.xor,
    "lshift": operator.lshift,
    "rshift": operator.rshift,
}
# Those by which a number that was expected could be told to the program, and be answered with 0.
TELLING = ("sub", "truediv", "floordiv", "mod", "divmod", "and", "or", "xor")
IN_PLACE: dict[str, Callable[..., Any]] = {name: getattr(operator, f"i{name}") for name in BINARY if name != "divmod"}
# Methods that change a container, which a subclass may do in its own way.
CHANGING = frozenset(
    "append add clear discard extend insert pop popitem remove reverse setdefault sort subtract update".split()
)
ORDER: dict[str, Callable[..., Any]] = {"lt": operator.lt, "le": operator.le, "gt": operator.gt, "ge": operator.ge}
UNARY: dict[str, Callable[..., Any]] = {
    "neg": operator.neg,
    "pos": operator.pos,
    "invert": operator.invert,
    "abs": abs,
    "round": round,
    "trunc": math.trunc,
    "floor": math.floor,
    "ceil": math.ceil,
}
ANSWERS: dict[str, Callable[..., Any]] = {
    "int": int,
    "float": float,
    "complex": complex,
    "index": operator.index,
    "len": len,
    "bool": bool,
}


def _leave(target: Any, error: BaseException | None) -> bool:
    return bool(type(target).__exit__(target, type(error) if error else None, error, None))


def _swapped(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda target, other: function(other, target)


def _truth(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda target, other: bool(function(target, other))


OPERATIONS: dict[str, Callable[..., Any]] = {
    **{f"binary {name}": function for name, function in BINARY.items()},
    **{f"reflected {name}": _swapped(function) for name, function in BINARY.items()},
    **{f"in place {name}": function for name, function in IN_PLACE.items()},
    **{name: _truth(function) for name, function in ORDER.items()},
    **UNARY,
    **ANSWERS,
    "getattr": getattr,
    "setattr": setattr,
    "delattr": delattr,
    "getitem": operator.getitem,
    "setitem": operator.setitem,
    "delitem": operator.delitem,
    "contains": lambda target, item: bool(item in target),
    "reversed": reversed,
    "iter": iter,
    "next": next,
    "str": str,
    "repr": repr,
    "format": format,
    "dir": dir,
    "hash": hash,
    "same": lambda target, other: bool(target == other),
    "different": lambda target, other: bool(target != other),
    "isinstance": lambda target, value: isinstance(value, target),
    "issubclass": lambda target, value: issubclass(value, target),
    "enter": lambda target: type(target).__enter__(target),
    "leave": _leave,
}
