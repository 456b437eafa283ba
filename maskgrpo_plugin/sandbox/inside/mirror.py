"""Values that cross between the judge and the program, and containers that both sides have.

A list, dict, set, bytearray, deque or numpy array that crosses exists on both sides from then on, under one number.
With each message goes what has changed in them since the last one, so that `values.append(1)` on one side is seen on
the other, and a list that comes back is the list that went: `f(a) is a` holds where it holds in one process.

Plain values are sent as codec has them; containers as {"t": "ref", "v": number}; what is neither is up to each side.
"""

from __future__ import annotations

import operator
import sys

from .codec import MAX_DEPTH, MISSING, CodecError, int_to_data, plain_from_data, scalar_from_data, scalar_to_data

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

MOST_CONTAINERS = 200_000
_CONSTANTS = {"Ellipsis": Ellipsis, "NotImplemented": NotImplemented}
PLAIN = (int, float, complex, str, bytes, tuple, frozenset)


class _Shared:
    """A container that both sides have: its kind, and its parts when they were last told or heard."""

    __slots__ = ("container", "kind", "parts")

    def __init__(self, container: Any, kind: str):
        self.container, self.kind = container, kind
        self.parts: list[Any] | None = None


class Mirror:
    """One side's values as data, and data as values.

    Args:
        parity: 0 or 1, of the numbers that this side gives to containers.
        to_data: the data of a value that is neither plain nor a container.
        from_data: the value of such data of the other side.
        make: an empty container of a kind that stands for an object of a class of the other side's own.
        evicts: whether this side forgets containers that nothing else on it refers to, and tells the other side.
    """

    def __init__(
        self,
        parity: int,
        to_data: Callable[[Any], dict[str, Any]],
        from_data: Callable[[dict[str, Any]], Any],
        make: Callable[[str, Any], Any],
        *,
        evicts: bool,
    ):
        self._to_data, self._from_data, self._make, self._evicts = to_data, from_data, make, evicts
        self._next = parity
        self._shared: dict[int, _Shared] = {}
        self._numbers: dict[int, int] = {}
        self._fresh: list[int] = []
        self._decoding = 0

    def encode(self, value: Any, depth: int = 0) -> Any:
        """The data of a value; `changes` is to be called before they are sent.

        Raises:
            CodecError: nested too deeply, too many containers, or what `to_data` refuses.
        """
        if depth > MAX_DEPTH:
            raise CodecError("the value is nested too deeply")
        kind = type(value)
        if value is None or kind in (bool, str, float):
            return value
        if kind is int:
            return int_to_data(value)
        if kind in (tuple, frozenset):
            return {"t": kind.__name__, "v": [self.encode(item, depth + 1) for item in value]}
        if kind is slice:
            return {"t": "slice", "v": [self.encode(item, depth + 1) for item in (value.start, value.stop, value.step)]}
        if (name := kind_of(value)) is not None:
            return {"t": "ref", "v": self._number(value, name)}
        if kind.__module__ == "numpy" and hasattr(value, "tolist"):
            return self.encode(value.tolist(), depth + 1)
        if value is Ellipsis or value is NotImplemented:
            return {"t": "constant", "v": repr(value)}
        if not isinstance(value, PLAIN) and (scalar := scalar_to_data(value)) is not MISSING:
            return scalar
        if kind in PLAIN:
            return scalar_to_data(value)
        return {"t": "object", "v": self._to_data(value)}

    def plain(self, value: Any) -> Any:
        """The data of a value of a subclass of a plain class, as one of the class itself."""
        if isinstance(value, tuple):
            return {"t": "tuple", "v": [self.encode(item, 1) for item in tuple.__iter__(value)]}
        if isinstance(value, frozenset):
            return {"t": "frozenset", "v": [self.encode(item, 1) for item in frozenset.__iter__(value)]}
        return scalar_to_data(value)

    def decode(self, data: Any) -> Any:
        """The value of data whose `changes` were applied.

        Raises:
            CodecError: the data are malformed.
        """
        self._decoding += 1
        try:
            return self._decode(data, 0)
        except (TypeError, ValueError, LookupError, ArithmeticError, RecursionError) as error:
            raise error if isinstance(error, CodecError) else CodecError(f"not a value: {error}") from None
        finally:
            self._decoding -= 1

    def changes(self) -> dict[str, Any]:
        """What the other side is to know before it reads what was encoded: contents of containers, and drops."""
        try:
            told = self._tell()
        except BaseException:
            for number in [number for number, shared in self._shared.items() if shared.parts is None]:
                self._forget(number)
            self._fresh = []
            raise
        dropped = self._drop_unused({number for number, *_ in told}) if self._evicts and not self._decoding else []
        return {key: value for key, value in (("told", told), ("dropped", dropped)) if value}

    def _tell(self) -> list[list[Any]]:
        """Number, kind, contents and class of each container that is new or has changed."""
        told = []
        pending = [number for number, shared in self._shared.items() if shared.parts is not None]
        while pending or self._fresh:
            for number in pending:
                shared = self._shared[number]
                parts = _READ[shared.kind](shared.container)
                if shared.parts is not None and _same(shared.kind, shared.parts, parts):
                    continue
                of_class = None
                if shared.parts is None and type(shared.container).__name__ not in (shared.kind, "ndarray"):
                    of_class = self._to_data(shared.container)
                contents = [self.encode(part, 1) for part in parts]
                shared.parts = parts
                told.append([number, shared.kind, contents, of_class])
            pending, self._fresh = self._fresh, []
        return told

    def apply(self, changes: dict[str, Any]) -> None:
        """Take in what the other side's `changes` said.

        Raises:
            CodecError: it is malformed.
        """
        self._decoding += 1
        try:
            told = changes.get("told", ())
            for number, kind, _, of_class in told:
                if kind not in _READ or not isinstance(number, int):
                    raise CodecError("not a container")
                if number not in self._shared:
                    made = self._make(kind, of_class) if of_class is not None else empty(kind)
                    self._add(number, made, kind)
            for number, kind, parts, _ in told:
                shared = self._shared[number]
                if shared.kind != kind:
                    raise CodecError("not the same container")
                _fill(shared, [self._decode(part, 1) for part in parts])
                shared.parts = _READ[kind](shared.container)
            for number in changes.get("dropped", ()):
                self._forget(number)
        except (TypeError, ValueError, LookupError, ArithmeticError, RecursionError, AttributeError) as error:
            raise error if isinstance(error, CodecError) else CodecError(f"not a container: {error}") from None
        finally:
            self._decoding -= 1

    def _number(self, container: Any, kind: str) -> int:
        number = self._numbers.get(id(container))
        if number is None:
            number, self._next = self._next, self._next + 2
            self._add(number, container, kind)
            self._fresh.append(number)
        return number

    def _add(self, number: int, container: Any, kind: str) -> None:
        if len(self._shared) >= MOST_CONTAINERS:
            raise CodecError("too many containers")
        self._shared[number] = _Shared(container, kind)
        self._numbers[id(container)] = number

    def _forget(self, number: int) -> None:
        shared = self._shared.pop(number, None)
        if shared is not None:
            self._numbers.pop(id(shared.container), None)

    def _drop_unused(self, told: set[int]) -> list[int]:
        """Forget what only this table refers to: no one here can tell it from another of the same contents."""
        unused = [
            number
            for number, shared in self._shared.items()
            if sys.getrefcount(shared.container) <= 2 and number not in told
        ]
        for number in unused:
            self._forget(number)
        return unused

    def _decode(self, data: Any, depth: int) -> Any:
        if not isinstance(data, dict):
            return plain_from_data(data)
        if depth > MAX_DEPTH:
            raise CodecError("the value is nested too deeply")
        kind, content = data["t"], data["v"]
        if kind == "ref":
            return self._shared[content].container
        if kind == "object":
            return self._from_data(content)
        if kind == "constant":
            return _CONSTANTS[content]
        if kind in ("tuple", "frozenset", "slice") and isinstance(content, list):
            items = [self._decode(item, depth + 1) for item in content]
            return slice(*items) if kind == "slice" else (tuple if kind == "tuple" else frozenset)(items)
        value = scalar_from_data(data)
        if value is MISSING:
            raise CodecError("not a value")
        return value


def kind_of(value: Any) -> str | None:
    """The kind of a container that changes in place, None for anything else."""
    if isinstance(value, (list, dict, set, bytearray)):
        return next(kind.__name__ for kind in (list, dict, set, bytearray) if isinstance(value, kind))
    deque = getattr(sys.modules.get("collections"), "deque", None)
    if deque is not None and isinstance(value, deque):
        return "deque"
    array: Any = getattr(sys.modules.get("numpy"), "ndarray", None)
    if isinstance(array, type) and issubclass(type(value), array) and value.dtype.kind in "biufc":
        return "ndarray"
    return None


def empty(kind: str) -> Any:
    """An empty container of a kind; an array gets its shape when it is filled."""
    if kind == "deque":
        return __import__("collections").deque()
    if kind == "ndarray":
        return __import__("numpy").empty(0)
    return {"list": list, "dict": dict, "set": set, "bytearray": bytearray}[kind]()


def _dict_parts(value: Any) -> list[Any]:
    ordered = getattr(sys.modules.get("collections"), "OrderedDict", dict)
    items = ordered.items if isinstance(value, ordered) else dict.items
    return [part for pair in items(value) for part in pair]


_READ: dict[str, Callable[[Any], list[Any]]] = {
    "list": lambda value: list(list.__iter__(value)),
    "dict": _dict_parts,
    "set": lambda value: list(set.__iter__(value)),
    "bytearray": lambda value: [bytes(value)],
    "deque": lambda value: [value.maxlen, *type(value).__iter__(value)],
    "ndarray": lambda value: [value.dtype.str, tuple(value.shape), value.tobytes()],
}


def _same(kind: str, before: list[Any], now: list[Any]) -> bool:
    """Whether the parts are the very same objects, or equal bytes and shapes."""
    if kind in ("bytearray", "ndarray"):
        return before == now
    return len(before) == len(now) and all(map(operator.is_, before, now))


def _fill(shared: _Shared, parts: list[Any]) -> None:
    """Give a container new contents, by the methods of its plain class."""
    container, kind = shared.container, shared.kind
    if kind == "list":
        list.__setitem__(container, slice(None), parts)
    elif kind == "dict":
        ordered = getattr(sys.modules.get("collections"), "OrderedDict", dict)
        methods = ordered if isinstance(container, ordered) else dict
        methods.clear(container)
        methods.update(container, zip(parts[::2], parts[1::2], strict=True))
    elif kind == "set":
        set.clear(container)
        set.update(container, parts)
    elif kind == "bytearray":
        container[:] = parts[0]
    elif kind == "deque":
        if shared.parts is None and parts[0] is not None:
            container.__init__((), parts[0])
        container.clear()
        container.extend(parts[1:])
    else:
        _fill_array(container, *parts)


def _fill_array(array: Any, dtype: str, shape: tuple[int, ...], content: bytes) -> None:
    """Give a numpy array the numbers, and a fresh one the shape, of another."""
    import numpy

    given = numpy.frombuffer(content, numpy.dtype(dtype)).reshape(shape)
    if array.dtype != given.dtype or array.shape != given.shape:
        fresh = numpy.array(given)
        array.resize(0, refcheck=False)
        array.dtype = fresh.dtype
        array.resize(shape, refcheck=False)
    array[...] = given
