"""Calls between the process that judges and the process that holds the program: only plain values cross.

The judge runs the test's statements. A name that only the program knows becomes a `Remote` there, and calling it calls
the program in the other process. What comes back is a plain value, compared where the program cannot reach, or another
`Remote`. A `Remote` is equal to no plain value and has no order and no arithmetic, whatever its class says: objects
that claim to be equal to everything earn nothing.
"""

from __future__ import annotations

import builtins
import os

from .codec import CodecError, decode, encode, from_frame, to_frame

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

MESSAGE_LIMIT = 4 << 20
_MAX_HANDLES = 100_000
_MUTABLE = (list, dict, set, bytearray)


class ProgramGone(BaseException):
    """The program ended, or sent what it may not; no `except Exception` of a test hides it."""


class Channel:
    """Requests and replies over one socket, nested as the calls are.

    Args:
        descriptor: a connected stream socket.
        handle: answers a request of the other side.
    """

    def __init__(self, descriptor: int, handle: Callable[[dict[str, Any]], Any]):
        self.descriptor = descriptor
        self.handle = handle
        self.broken = False
        self._buffer = bytearray()

    def request(self, message: dict[str, Any]) -> dict[str, Any]:
        """Send a request and return the reply; requests that arrive meanwhile are answered first."""
        self._send({"request": message})
        while True:
            received = self.receive()
            if "reply" in received:
                reply = received["reply"]
                if not isinstance(reply, dict):
                    raise self.gone("malformed reply")
                return reply
            self._answer(received)

    def serve(self) -> None:
        """Answer requests until the other side closes."""
        while True:
            self._answer(self.receive())

    def _answer(self, received: dict[str, Any]) -> None:
        request = received.get("request")
        if not isinstance(request, dict):
            raise self.gone("malformed request")
        self.reply(self.handle(request))

    def reply(self, answer: dict[str, Any]) -> None:
        """Send a reply."""
        self._send({"reply": answer})

    def _send(self, message: dict[str, Any]) -> None:
        frame = memoryview(to_frame(message, MESSAGE_LIMIT))
        try:
            while frame:
                frame = frame[os.write(self.descriptor, frame) :]
        except OSError as error:
            raise self.gone(str(error)) from None

    def receive(self) -> dict[str, Any]:
        """The next message.

        Raises:
            ProgramGone: there is none any more, or what came is none.
        """
        while True:
            try:
                found = from_frame(self._buffer, MESSAGE_LIMIT)
                data = b"" if found is not None else os.read(self.descriptor, 1 << 16)
            except (CodecError, OSError) as error:
                raise self.gone(str(error)) from None
            if found is not None:
                del self._buffer[: found[1]]
                if not isinstance(found[0], dict):
                    raise self.gone("malformed message")
                return found[0]
            if not data:
                raise self.gone("the program ended")
            self._buffer += data

    def gone(self, reason: str) -> ProgramGone:
        """The error to raise for a program that cannot be talked to any more."""
        self.broken = True
        return ProgramGone(reason)


class ProgramSide:
    """Answers the judge's requests with the program's objects.

    Args:
        descriptor: the socket to the judge.
        namespace: the program's names.
    """

    def __init__(self, descriptor: int, namespace: dict[str, Any]):
        self.namespace = namespace
        self.channel = Channel(descriptor, self.handle)
        self._objects: list[Any] = []

    def handle(self, request: dict[str, Any]) -> dict[str, Any]:
        """Perform one request; what it raises becomes part of the reply."""
        try:
            return self._perform(request)
        except ProgramGone:
            raise
        except BaseException as error:
            return {"raised": describe_exception(error)}

    def _perform(self, request: dict[str, Any]) -> dict[str, Any]:
        operation = request["do"]
        if operation == "name":
            name = request["name"]
            return {"value": self._encode(self.namespace[name])} if name in self.namespace else {"missing": True}
        target = self._objects[request["on"]]
        arguments = self._decode(request.get("arguments", []))
        if operation == "call":
            keywords = self._decode(request["keywords"])
            value = target(*arguments, **keywords)
            changed = [a for a in (*arguments, *keywords.values()) if isinstance(a, _MUTABLE)]
            return {"value": self._encode(value), "changed": self._encode(changed)}
        return {"value": self._encode(_OPERATIONS[operation](target, *arguments))}

    def _encode(self, value: Any) -> Any:
        return encode(value, self._handle_of)

    def _handle_of(self, value: Any) -> dict[str, Any]:
        if isinstance(value, _Callback):
            return {"callback": value.number}
        if isinstance(value, type) and issubclass(value, Exception):
            return {"exception": _exception_class(value)}
        if len(self._objects) >= _MAX_HANDLES:
            raise CodecError("too many objects")
        self._objects.append(value)
        return {"object": len(self._objects) - 1}

    def _decode(self, data: Any) -> Any:
        return decode(data, self._object_of)

    def _object_of(self, data: dict[str, Any]) -> Any:
        if "object" in data:
            return self._objects[data["object"]]
        if "builtin" in data:
            return getattr(builtins, data["builtin"])
        return _Callback(self, data["callback"])


class _Callback:
    """A function of the test, callable from the program."""

    def __init__(self, side: ProgramSide, number: int):
        self.side, self.number = side, number

    def __call__(self, *arguments: Any) -> Any:
        reply = self.side.channel.request({"callback": self.number, "arguments": self.side._encode(list(arguments))})
        if "raised" in reply:
            raise make_exception(reply["raised"])
        return self.side._decode(reply["value"])


_OPERATIONS: dict[str, Callable[..., Any]] = {
    "getattr": getattr,
    "setattr": setattr,
    "getitem": lambda target, key: target[key],
    "setitem": lambda target, key, value: target.__setitem__(key, value),
    "len": len,
    "iter": iter,
    "next": next,
    "bool": bool,
    "str": str,
    "repr": repr,
    "same": lambda target, other: bool(target == other),
    "isinstance": lambda target, value: isinstance(value, target),
}


class JudgeSide:
    """The program's names and objects as seen from the test.

    Args:
        descriptor: the socket to the program.
    """

    def __init__(self, descriptor: int):
        self.channel = Channel(descriptor, self.handle)
        self._callbacks: list[Callable[..., Any]] = []

    def name(self, name: str) -> Any:
        """The program's global of that name.

        Raises:
            NameError: it has none.
        """
        reply = self._checked({"do": "name", "name": name})
        if "missing" in reply:
            raise NameError(f"name {name!r} is not defined")
        return self._decode(reply.get("value"))

    def perform(self, operation: str, on: int, *arguments: Any) -> Any:
        """Do something with the program's object number `on`."""
        reply = self._checked({"do": operation, "on": on, "arguments": self._encode(list(arguments))})
        return self._decode(reply.get("value"))

    def call(self, on: int, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
        """Call the program's object number `on`; arguments that it changes in place are changed here as well."""
        encoded = {"arguments": self._encode(list(arguments)), "keywords": self._encode(keywords)}
        reply = self._checked({"do": "call", "on": on, **encoded})
        mutable = [a for a in (*arguments, *keywords.values()) if isinstance(a, _MUTABLE)]
        changed = self._decode(reply.get("changed"))
        if not isinstance(changed, list) or len(changed) != len(mutable):
            raise self.channel.gone("a reply that does not match its call")
        for argument, now in zip(mutable, changed, strict=True):
            _assign(argument, now)
        return self._decode(reply.get("value"))

    def handle(self, request: dict[str, Any]) -> dict[str, Any]:
        """Answer the program's call of a function of the test; nothing else of the test is open to it."""
        number = request.get("callback")
        if not isinstance(number, int) or not 0 <= number < len(self._callbacks):
            raise self.channel.gone("a call of no function of the test")
        try:
            value = self._callbacks[number](*self._decode(request.get("arguments")))
            return {"value": self._encode(value)}
        except Exception as error:
            return {"raised": describe_exception(error)}

    def _checked(self, message: dict[str, Any]) -> dict[str, Any]:
        reply = self.channel.request(message)
        if "raised" not in reply:
            return reply
        error = make_exception(reply["raised"])
        if isinstance(error, StopIteration) and message["do"] != "next":
            # In a test's `all(map(...))` it would end the loop, and the test would pass.
            raise RuntimeError("the program raised StopIteration")
        raise error

    def _decode(self, data: Any) -> Any:
        try:
            return decode(data, self._object_of)
        except CodecError as error:
            raise self.channel.gone(str(error)) from None

    def _object_of(self, data: Any) -> Any:
        if not isinstance(data, dict):
            raise CodecError("not a value")
        if "exception" in data:
            return _known_exception(data["exception"])
        if "callback" in data:
            return self._callbacks[int(data["callback"])]
        return Remote(self, int(data["object"]))

    def _encode(self, value: Any) -> Any:
        return encode(value, self._handle_of)

    def _handle_of(self, value: Any) -> dict[str, Any]:
        if isinstance(value, Remote):
            return {"object": object.__getattribute__(value, "_number")}
        name = getattr(value, "__name__", None)
        if isinstance(name, str) and getattr(builtins, name, None) is value:
            return {"builtin": name}
        if not callable(value):
            raise TypeError(f"a {type(value).__name__} of the test cannot be handed to the program")
        self._callbacks.append(value)
        return {"callback": len(self._callbacks) - 1}


class Remote:
    """An object of the program, seen from the test."""

    __slots__ = ("_number", "_side")

    def __init__(self, side: JudgeSide, number: int):
        object.__setattr__(self, "_side", side)
        object.__setattr__(self, "_number", number)

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        return self._side.call(self._number, arguments, keywords)

    def __getattr__(self, name: str) -> Any:
        return self._side.perform("getattr", self._number, name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._side.perform("setattr", self._number, name, value)

    def __getitem__(self, key: Any) -> Any:
        return self._side.perform("getitem", self._number, key)

    def __setitem__(self, key: Any, value: Any) -> None:
        self._side.perform("setitem", self._number, key, value)

    def __len__(self) -> int:
        return self._side.perform("len", self._number)

    def __bool__(self) -> bool:
        return bool(self._side.perform("bool", self._number))

    def __str__(self) -> str:
        return self._side.perform("str", self._number)

    def __repr__(self) -> str:
        return self._side.perform("repr", self._number)

    def __iter__(self) -> Iterator[Any]:
        iterator = self._side.perform("iter", self._number)
        if not isinstance(iterator, Remote):
            raise TypeError("not an iterator")
        return iterator

    def __next__(self) -> Any:
        return self._side.perform("next", self._number)

    def __instancecheck__(self, value: Any) -> bool:
        return isinstance(value, Remote) and self._side.perform("isinstance", self._number, value) is True

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Remote) and self._side.perform("same", self._number, other) is True

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = object.__hash__


def describe_exception(error: BaseException) -> dict[str, str]:
    """An exception as plain data: its name, the built-in class it is nearest to, its text."""
    try:
        text = str(error)[:500]
    except BaseException:
        text = ""
    return {**_exception_class(type(error)), "text": text}


def _exception_class(kind: type[BaseException]) -> dict[str, str]:
    base = next(c for c in kind.__mro__ if getattr(builtins, c.__name__, None) is c)
    return {"name": kind.__name__, "base": base.__name__}


_exceptions: dict[tuple[str, str], type[Exception]] = {}


def _known_exception(data: Any) -> type[Exception]:
    """The exception class that `_exception_class` described, made up where the program defined it."""
    name, base_name = str(data["name"])[:100], str(data["base"])
    base = getattr(builtins, base_name, None)
    if not isinstance(base, type) or not issubclass(base, Exception):
        raise ProgramGone(f"the program raised {name}")
    if name == base_name:
        return base
    return _exceptions.setdefault((name, base_name), type(name, (base,), {}))


def make_exception(data: Any) -> Exception:
    """The exception that `describe_exception` described.

    Raises:
        ProgramGone: it is one that ends a program (SystemExit and the like), or no exception at all.
    """
    if not isinstance(data, dict) or not {"name", "base"} <= set(data):
        raise ProgramGone("malformed exception")
    kind = _known_exception(data)
    try:
        return kind(str(data.get("text", "")))
    except TypeError:  # UnicodeDecodeError and the like take more
        return Exception(str(data.get("text", "")))


def _assign(target: Any, now: Any) -> None:
    """Give a list, dict, set or bytearray the contents of another of its kind."""
    if isinstance(target, (list, bytearray)) and isinstance(now, (list, bytearray)):
        target[:] = now
    elif isinstance(target, (dict, set)) and isinstance(now, (dict, set)) and target != now:
        target.clear()
        target.update(now)
