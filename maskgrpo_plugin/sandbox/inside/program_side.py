"""The program's side of a judged test: does what the judge asks with the program's objects."""

from __future__ import annotations

import builtins

from .channel import Channel, ProgramGone
from .codec import CodecError
from .exceptions import describe_class, describe_exception, make_exception
from .mirror import PLAIN, Mirror, empty
from .operations import BINARY, CHANGING, OPERATIONS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

_MOST_OBJECTS = 100_000
_OPERATORS = frozenset(f"__{name}__" for name in BINARY)
_CONTAINERS = (list, dict, set, bytearray)


class ProgramSide:
    """Answers the judge's requests with the program's objects.

    Args:
        descriptor: the socket to the judge.
        namespace: the program's names.
    """

    def __init__(self, descriptor: int, namespace: dict[str, Any]):
        self.namespace = namespace
        self.channel = Channel(descriptor, self.handle)
        self.mirror = Mirror(1, self._to_data, self._from_data, lambda kind, _: empty(kind), evicts=False)
        self._objects: list[Any] = []
        self._numbers: dict[int, int] = {}
        self._foreign: dict[int, Foreign] = {}

    def handle(self, request: dict[str, Any]) -> dict[str, Any]:
        """Perform one request; what it raises becomes part of the reply."""
        try:
            self.mirror.apply(request.get("changes", {}))
            reply = {"value": self.mirror.encode(self._perform(request))}
        except ProgramGone:
            raise
        except KeyError as error:
            reply = {"missing": True} if request["do"] == "name" else self._raised(error)
        except BaseException as error:
            reply = self._raised(error)
        try:
            return {**reply, "changes": self.mirror.changes()}
        except CodecError as error:
            return self._raised(error)

    def request(self, message: dict[str, Any], arguments: tuple[Any, ...]) -> Any:
        """Have the judge do something with an object of the test."""
        data = self.mirror.encode(arguments)
        reply = self.channel.request({**message, "arguments": data, "changes": self.mirror.changes()})
        self.mirror.apply(reply.get("changes", {}))
        if "raised" in reply:
            raise make_exception(reply["raised"])
        return self.mirror.decode(reply["value"])

    def _perform(self, request: dict[str, Any]) -> Any:
        operation = request["do"]
        if operation == "name":
            return self.namespace[request["name"]]
        target = self._objects[request["on"]]
        arguments = self.mirror.decode(request["arguments"])
        if operation == "call":
            return target(*arguments, **dict(self.mirror.decode(request["keywords"])))
        return OPERATIONS[operation](target, *arguments)

    def _raised(self, error: BaseException) -> dict[str, Any]:
        described = describe_exception(error)
        return {"raised": {**described, "object": self._number(error)} if described["names"] else described}

    def _to_data(self, value: Any) -> dict[str, Any]:
        if isinstance(value, Foreign):
            return {"foreign": object.__getattribute__(value, "_number")}
        if isinstance(value, type) and issubclass(value, Exception):
            return {"exception": describe_class(value)}
        data: dict[str, Any] = {"number": self._number(value)}
        if own := _own_methods(type(value)):
            data["own"] = own
        if isinstance(value, PLAIN):
            data["plain"] = self.mirror.plain(value)
            fields = getattr(type(value), "_fields", None)
            if isinstance(value, tuple) and isinstance(fields, tuple):
                data["fields"] = [str(field) for field in fields]
        return data

    def _number(self, value: Any) -> int:
        number = self._numbers.get(id(value))
        if number is None:
            if len(self._objects) >= _MOST_OBJECTS:
                raise CodecError("too many objects")
            number = self._numbers[id(value)] = len(self._objects)
            self._objects.append(value)
        return number

    def _from_data(self, data: dict[str, Any]) -> Any:
        if "number" in data:
            return self._objects[data["number"]]
        if "builtin" in data:
            return getattr(builtins, data["builtin"])
        if "error" in data:
            return make_exception(data["error"])
        number = data["foreign"]
        if number not in self._foreign:
            self._foreign[number] = Foreign(self, number)
        return self._foreign[number]


def _own_methods(kind: type) -> list[str]:
    """Names of the operators of a container's class, and of its methods that change it otherwise than the plain ones.

    Methods that ask (`count`, `index`) stay the plain ones: an answer of yes would be right too often.
    """
    base = next((c for c in kind.__mro__ if c in _CONTAINERS), None)
    between = kind.__mro__[: kind.__mro__.index(base)] if base is not None else ()
    return sorted({name for c in between for name in vars(c) if name in CHANGING or name in _OPERATORS})


class Foreign:
    """A function, an iterator or an object of the test, seen from the program."""

    __slots__ = ("_number", "_side")

    def __init__(self, side: ProgramSide, number: int):
        object.__setattr__(self, "_side", side)
        object.__setattr__(self, "_number", number)

    def __setattr__(self, name: str, value: Any) -> None:
        _ask(self, "setattr", name, value)

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        return _ask(self, "call", arguments, tuple(keywords.items()))

    def __iter__(self) -> Any:
        return _ask(self, "iter")

    def __eq__(self, other: object) -> bool:
        return self is other or bool(isinstance(other, Foreign) and _ask(self, "same", other))

    def __hash__(self) -> int:
        return _ask(self, "hash")


def _ask(foreign: Foreign, operation: str, *arguments: Any) -> Any:
    side: ProgramSide = object.__getattribute__(foreign, "_side")
    return side.request({"do": operation, "on": object.__getattribute__(foreign, "_number")}, arguments)


def _asks(operation: str) -> Callable[..., Any]:
    return lambda foreign, *arguments: _ask(foreign, operation, *arguments)


FOREIGN = ("getattr", "next", "len", "bool", "str", "repr", "getitem", "setitem", "contains", "lt", "le", "gt", "ge")
for _name in FOREIGN:
    setattr(Foreign, f"__{_name}__", _asks(_name))
