"""The judge's side of a judged test: the program's names, and the program's requests to functions of the test."""

from __future__ import annotations

import builtins
import types

from .channel import Channel
from .codec import CodecError
from .exceptions import describe_exception, known_class, make_exception
from .mirror import PLAIN, Mirror
from .operations import OPERATIONS
from .remote import Remote, mirrored, mirrored_container, number_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# What a program may ask of an iterator of the test, and of an instance of a class of the test.
_OF_ITERATOR = ("iter", "next")
_OF_INSTANCE = (
    *("call", "getattr", "setattr", "iter", "next", "len", "bool", "str", "repr", "getitem", "setitem", "contains"),
    *("lt", "le", "gt", "ge", "same", "hash"),
)


class JudgeSide:
    """The program's names and objects as seen from the test.

    Args:
        descriptor: the socket to the program.
    """

    def __init__(self, descriptor: int):
        self.channel = Channel(descriptor, self.handle)
        self.mirror = Mirror(0, self._to_data, self._from_data, self._make, evicts=True)
        self._known: dict[int, Any] = {}
        self._handed: list[Any] = []
        self._handed_numbers: dict[int, int] = {}

    def name(self, name: str) -> Any:
        """The program's global of that name.

        Raises:
            NameError: it has none.
        """
        reply = self._request({"do": "name", "name": name})
        if "missing" in reply:
            raise NameError(f"name {name!r} is not defined")
        return self._decode(reply.get("value"))

    def perform(self, operation: str, on: int, *arguments: Any) -> Any:
        """Do something with the program's object number `on`."""
        reply = self._request({"do": operation, "on": on, "arguments": self.mirror.encode(arguments)})
        return self._decode(reply.get("value"))

    def call(self, on: int, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
        """Call the program's object number `on`."""
        encoded = {"arguments": self.mirror.encode(arguments), "keywords": self.mirror.encode(tuple(keywords.items()))}
        return self._decode(self._request({"do": "call", "on": on, **encoded}).get("value"))

    def handle(self, request: dict[str, Any]) -> dict[str, Any]:
        """Answer the program's request to a function, iterator or instance of the test that it was handed.

        Nothing else of the test is open to it: no module, and no attribute such as `__globals__` that leads to others.
        """
        self._apply(request)
        number, operation, arguments = request.get("on"), request.get("do"), self._decode(request.get("arguments"))
        if type(number) is not int or not 0 <= number < len(self._handed) or type(arguments) is not tuple:
            raise self.channel.gone("a request to nothing of the test")
        target = self._handed[number]
        try:
            if operation not in _allowed(target):
                raise TypeError("a program cannot do that with an object of the test")
            if operation in ("getattr", "setattr") and (type(arguments[0]) is not str or arguments[0].startswith("__")):
                raise AttributeError("a program cannot reach that attribute of the test")
            if operation == "call":
                value = target(*arguments[0], **dict(arguments[1]))
            else:
                value = OPERATIONS[operation](target, *arguments)
            return {"value": self.mirror.encode(value), "changes": self.mirror.changes()}
        except Exception as error:
            return {"raised": describe_exception(error), "changes": self.mirror.changes()}

    def _request(self, message: dict[str, Any]) -> dict[str, Any]:
        reply = self.channel.request({**message, "changes": self.mirror.changes()})
        self._apply(reply)
        if "raised" not in reply:
            return reply
        error = make_exception(reply["raised"])
        number = reply["raised"].get("object")
        if isinstance(number, int) and hasattr(error, "remote"):
            error.remote = self._remote(number)
        if isinstance(error, StopIteration) and message["do"] != "next":
            # In a test's `all(map(...))` it would end the loop, and the test would pass.
            raise RuntimeError("the program raised StopIteration")
        raise error

    def _apply(self, message: dict[str, Any]) -> None:
        try:
            self.mirror.apply(message.get("changes", {}))
        except CodecError as error:
            raise self.channel.gone(str(error)) from None

    def _decode(self, data: Any) -> Any:
        try:
            return self.mirror.decode(data)
        except CodecError as error:
            raise self.channel.gone(str(error)) from None

    def _from_data(self, data: Any) -> Any:
        if "exception" in data:
            return known_class(data["exception"])
        if "foreign" in data:
            return self._handed[int(data["foreign"])]
        number = int(data["number"])
        if "plain" in data and number not in self._known:
            self._known[number] = mirrored(self.mirror.decode(data["plain"]), self, number, data)
        return self._remote(number)

    def _remote(self, number: int) -> Any:
        """The one object here for an object there, so that `is` means the same."""
        if number not in self._known:
            self._known[number] = Remote(self, number)
        return self._known[number]

    def _make(self, kind: str, of_class: Any) -> Any:
        return mirrored_container(kind, self, int(of_class["number"]), of_class)

    def _to_data(self, value: Any) -> dict[str, Any]:
        if (number := number_of(value)) is not None:
            return {"number": number}
        name = getattr(value, "__name__", None)
        if isinstance(name, str) and getattr(builtins, name, None) is value:
            return {"builtin": name}
        if isinstance(value, PLAIN):
            raise TypeError(f"a {type(value).__name__} of the test cannot be handed to the program")
        if isinstance(value, BaseException):
            return {"error": describe_exception(value)}
        if not _allowed(value):
            raise TypeError(f"a {type(value).__name__} of the test cannot be handed to the program")
        if id(value) not in self._handed_numbers:
            self._handed_numbers[id(value)] = len(self._handed)
            self._handed.append(value)
        return {"foreign": self._handed_numbers[id(value)]}


def _allowed(value: Any) -> tuple[str, ...]:
    """What a program may ask of an object of the test."""
    if isinstance(value, (types.ModuleType, types.FrameType, types.CodeType, types.TracebackType)):
        return ()
    if type(value).__module__ == "test" or isinstance(value, types.SimpleNamespace):
        return _OF_INSTANCE
    if callable(value):
        return ("call",)
    return _OF_ITERATOR if hasattr(type(value), "__next__") else ()
