"""The program's objects as seen from the test.

A `Remote` is equal to no plain value and has no order among plain values, whatever its class says: objects that claim
to be equal to everything earn nothing. Between two objects of the program, the program's own `==`, `<` and `+` count.
Arithmetic with a plain operand is the program's as well, but what tells it a number and gets a number back, such as
`f(1) - 2`, is refused: the 2 may be what the test expects, and the answer 0 would be right every time.

A value of a subclass of a plain class (a named tuple, a member of an IntEnum, a Counter) is here a value of that plain
class, compared as such, with the program's attributes besides.
"""

from __future__ import annotations

from .mirror import PLAIN, empty
from .operations import ANSWERS, BINARY, CHANGING, IN_PLACE, ORDER, TELLING, UNARY

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    from .judge_side import JudgeSide


class Remote:
    """An object of the program, seen from the test."""

    __slots__ = ("_number", "_side", "_told")

    def __init__(self, side: JudgeSide, number: int):
        object.__setattr__(self, "_side", side)
        object.__setattr__(self, "_number", number)
        object.__setattr__(self, "_told", False)  # whether the program heard a number in making it

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        return self._side.call(self._number, arguments, keywords)

    def __getattr__(self, name: str) -> Any:
        return self._side.perform("getattr", self._number, name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._side.perform("setattr", self._number, name, value)

    def __delattr__(self, name: str) -> None:
        self._side.perform("delattr", self._number, name)

    def __getitem__(self, key: Any) -> Any:
        return self._side.perform("getitem", self._number, key)

    def __setitem__(self, key: Any, value: Any) -> None:
        self._side.perform("setitem", self._number, key, value)

    def __delitem__(self, key: Any) -> None:
        self._side.perform("delitem", self._number, key)

    def __contains__(self, item: Any) -> bool:
        if isinstance(item, Remote):
            return self._side.perform("contains", self._number, item) is True
        return any(found is item or found == item for found in self)

    def __str__(self) -> str:
        return self._side.perform("str", self._number)

    def __repr__(self) -> str:
        return self._side.perform("repr", self._number)

    def __format__(self, how: str) -> str:
        return self._side.perform("format", self._number, how)

    def __dir__(self) -> Any:
        return self._side.perform("dir", self._number)

    def __iter__(self) -> Iterator[Any]:
        return _iterator(self._side.perform("iter", self._number))

    def __next__(self) -> Any:
        return self._side.perform("next", self._number)

    def __reversed__(self) -> Iterator[Any]:
        return _iterator(self._side.perform("reversed", self._number))

    def __instancecheck__(self, value: Any) -> bool:
        return number_of(value) is not None and self._side.perform("isinstance", self._number, value) is True

    def __subclasscheck__(self, value: Any) -> bool:
        return isinstance(value, Remote) and self._side.perform("issubclass", self._number, value) is True

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, Remote) and self._side.perform("same", self._number, other) is True)

    def __ne__(self, other: object) -> bool:
        if isinstance(other, Remote):
            return self._side.perform("different", self._number, other) is True
        return True

    def __hash__(self) -> int:
        return self._side.perform("hash", self._number)

    def __enter__(self) -> Any:
        return self._side.perform("enter", self._number)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> bool:
        """Leave the program's context; it may swallow only what the test itself raised, and no failed assertion."""
        swallowed = self._side.perform("leave", self._number, error)
        return swallowed is True and not isinstance(error, AssertionError) and _is_raised_by_test(trace)

    @property
    def __doc__(self) -> Any:  # type: ignore[override]
        return self._side.perform("getattr", self._number, "__doc__")


def _two_sided(name: str, form: str) -> Callable[[Remote, Any], Any]:
    def method(self: Remote, other: Any, *more: Any) -> Any:
        result = self._side.perform(f"{form} {name}", self._number, other, *more)
        hears = name in TELLING if number_of(other) is None else isinstance(other, Remote) and other._told
        return _with_told(result, hears or self._told, name)

    return method


def _ordered(name: str) -> Callable[[Remote, Any], bool]:
    def method(self: Remote, other: Any) -> bool:
        if not isinstance(other, Remote):
            raise TypeError(f"an object of the program has no order among values of the test ({name})")
        if self._told or other._told:
            raise _refused(name)
        return self._side.perform(name, self._number, other) is True

    return method


def _one_sided(name: str) -> Callable[..., Any]:
    def method(self: Remote, *arguments: Any) -> Any:
        return _with_told(self._side.perform(name, self._number, *arguments), self._told, name)

    return method


def _with_told(result: Any, told: bool, name: str) -> Any:
    if told:
        if not isinstance(result, Remote):
            raise _refused(name)
        object.__setattr__(result, "_told", True)
    return result


def _refused(name: str) -> TypeError:
    return TypeError(f"what an object of the program makes of a number of the test counts for nothing here ({name})")


for _name in BINARY:
    setattr(Remote, f"__{_name}__", _two_sided(_name, "binary"))
    setattr(Remote, f"__r{_name}__", _two_sided(_name, "reflected"))
for _name in IN_PLACE:
    setattr(Remote, f"__i{_name}__", _two_sided(_name, "in place"))
for _name in ORDER:
    setattr(Remote, f"__{_name}__", _ordered(_name))
for _name in (*UNARY, *ANSWERS):
    setattr(Remote, f"__{_name}__", _one_sided(_name))


def _iterator(found: Any) -> Iterator[Any]:
    if not isinstance(found, Remote):
        raise TypeError("not an iterator")
    return found


def _is_raised_by_test(trace: Any) -> bool:
    """Whether an exception comes from a `raise` statement of the test itself."""
    import opcode

    while trace.tb_next is not None:
        trace = trace.tb_next
    code = trace.tb_frame.f_code
    return code.co_filename == "<test>" and code.co_code[trace.tb_lasti] == opcode.opmap["RAISE_VARARGS"]


def number_of(value: Any) -> int | None:
    """The program's number of a value that stands for one of its objects, None for any other value."""
    if isinstance(value, Remote):
        return object.__getattribute__(value, "_number")
    remote = getattr(value, "remote", None) if isinstance(value, _Mirrored) else None
    return object.__getattribute__(remote, "_number") if isinstance(remote, Remote) else None


class _Mirrored:
    """What a value of a plain class has besides, where it stands for an object of the program."""

    remote: Any = None

    def __getattr__(self, name: str) -> Any:
        if self.remote is None:
            raise AttributeError(name)
        return getattr(self.remote, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.remote, name, value)

    def __missing__(self, key: Any) -> Any:
        return self.remote[key]

    def __str__(self) -> str:
        return str(self.remote)

    def __repr__(self) -> str:
        return repr(self.remote)

    def __format__(self, how: str) -> str:
        return format(self.remote, how)


_classes: dict[tuple[type, frozenset[str]], type] = {}


def _class_for(plain: type, own: frozenset[str] = frozenset()) -> type:
    """The class of values of a plain class that stand for the program's, with its operators that are named in `own`."""
    if (plain, own) not in _classes:
        operators = {f"__{name}__": _two_sided_remotely(name) for name in BINARY if f"__{name}__" in own}
        _classes[plain, own] = type(plain.__name__, (_Mirrored, plain), operators)
    return _classes[plain, own]


def _two_sided_remotely(name: str) -> Callable[[Any, Any], Any]:
    return lambda self, other: getattr(type(self.remote), f"__{name}__")(self.remote, other)


def mirrored(value: Any, side: JudgeSide, number: int, data: dict[str, Any]) -> Any:
    """A value of a subclass of its class, which stands for the program's object of that number.

    Args:
        value: a plain value.
        data: `fields`, names of the items where it is a named tuple.
    """
    if type(value) not in PLAIN:
        return value
    made = _class_for(type(value))(value)
    _stand_for(made, Remote(side, number), {})
    if isinstance(value, tuple) and isinstance(data.get("fields"), list):
        for name, item in zip(data["fields"], value, strict=False):
            if not callable(item):  # which could stand in for a method of tuples
                made.__dict__[str(name)] = item
    return made


def mirrored_container(kind: str, side: JudgeSide, number: int, data: dict[str, Any]) -> Any:
    """An empty container of a kind, which stands for the program's object of that number."""
    plain = empty(kind)
    if kind == "ndarray":
        return plain
    made = _class_for(type(plain), frozenset(map(str, data.get("own", ()))))()
    _stand_for(made, Remote(side, number), data)
    return made


def _stand_for(made: Any, remote: Remote, data: dict[str, Any]) -> None:
    made.__dict__["remote"] = remote
    for name in map(str, data.get("own", ())):
        if name in CHANGING:
            made.__dict__[name] = _method(remote, name)


def _method(remote: Remote, name: str) -> Callable[..., Any]:
    return lambda *arguments, **keywords: getattr(remote, name)(*arguments, **keywords)
