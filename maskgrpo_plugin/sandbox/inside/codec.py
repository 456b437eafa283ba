"""Plain values as JSON and back: the only thing that ever leaves a sandbox.

A value of a plain type comes back as exactly that type, an instance of a subclass of one as the plain type itself, so
that no method of the program under test (`__eq__` above all) survives the way. Everything else is opaque: what becomes
of it is up to the caller.
"""

from __future__ import annotations

import json
import struct
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

INPUT_LIMIT = 64 << 20  # bytes of one frame of programs and tests
MAX_DEPTH = 100
MAX_NODES = 200_000
_JSON_INT_BITS = 53
_LENGTH = struct.Struct(">I")


class CodecError(ValueError):
    """A value is nested too deeply or too large to be sent, or what arrived is no value."""


def to_frame(message: Any, limit: int) -> bytes:
    """A JSON message preceded by its length (4 bytes).

    Args:
        limit: longest message in bytes.

    Raises:
        CodecError: the message is longer.
    """
    body = json.dumps(message).encode()
    if len(body) > limit:
        raise CodecError(f"a message of {len(body)} bytes is over the limit of {limit}")
    return _LENGTH.pack(len(body)) + body


def from_frame(data: bytes | bytearray, limit: int) -> tuple[Any, int] | None:
    """The first message of `data` and the number of bytes it takes, or None while it is incomplete.

    Raises:
        CodecError: it is no message, or longer than `limit` bytes.
    """
    if len(data) < _LENGTH.size:
        return None
    (length,) = _LENGTH.unpack_from(data)
    end = _LENGTH.size + length
    if length > limit:
        raise CodecError(f"a message of {length} bytes is over the limit of {limit}")
    if len(data) < end:
        return None
    try:
        return json.loads(bytes(data[_LENGTH.size : end])), end
    except (ValueError, RecursionError) as error:
        raise CodecError(f"not a message: {error}") from None


def encode(value: Any, opaque: Callable[[Any], Any]) -> Any:
    """`value` as something that JSON can hold.

    Args:
        value: anything.
        opaque: called with each value that is of no plain type; what it returns takes the value's place.

    Raises:
        CodecError: nested deeper than `MAX_DEPTH` or of more than `MAX_NODES` parts.
    """
    return _Encoder(opaque).encode(value, 0)


def decode(data: Any, opaque: Callable[[Any], Any]) -> Any:
    """The value that `encode` was given.

    Args:
        data: from JSON, possibly forged.
        opaque: called with what took the place of a value of no plain type.

    Raises:
        CodecError: `data` is no encoded value.
    """
    try:
        return _decode(data, opaque, 0)
    except CodecError:
        raise
    except (TypeError, ValueError, LookupError, ArithmeticError, RecursionError) as error:
        raise CodecError(f"not a value: {type(error).__name__}") from None


class _Encoder:
    def __init__(self, opaque: Callable[[Any], Any]):
        self.opaque = opaque
        self.nodes = 0

    def encode(self, value: Any, depth: int) -> Any:
        """The data for a value at this depth."""
        self.nodes += 1
        if depth > MAX_DEPTH or self.nodes > MAX_NODES:
            raise CodecError("the value is nested too deeply or too large")
        if value is None or type(value) in (bool, str, float):
            return value
        for kind, to_data in _TO_DATA:
            if isinstance(value, kind):
                return to_data(self, value, depth + 1)
        for kind, to_data in _rarer_kinds():
            if isinstance(value, kind):
                return to_data(self, value, depth + 1)
        if type(value).__module__ == "numpy" and hasattr(value, "tolist"):
            return self.encode(value.tolist(), depth + 1)
        return {"t": "opaque", "v": self.opaque(value)}

    def items(self, values: Any, depth: int) -> list[Any]:
        """The data for values, in a list."""
        return [self.encode(value, depth) for value in values]


def _int_to_data(encoder: _Encoder, value: int, depth: int) -> Any:
    plain = int.__add__(value, 0)
    return plain if plain.bit_length() <= _JSON_INT_BITS else {"t": "int", "v": hex(plain)}


_TO_DATA: tuple[tuple[type, Callable[[_Encoder, Any, int], Any]], ...] = (
    (int, _int_to_data),
    (str, lambda e, v, d: str.__str__(v)),
    (float, lambda e, v, d: float.__add__(v, 0.0)),
    (list, lambda e, v, d: e.items(list.__iter__(v), d)),
    (tuple, lambda e, v, d: {"t": "tuple", "v": e.items(tuple.__iter__(v), d)}),
    (dict, lambda e, v, d: {"t": "dict", "v": [e.items(pair, d) for pair in dict.items(v)]}),
    (set, lambda e, v, d: {"t": "set", "v": e.items(set.__iter__(v), d)}),
    (frozenset, lambda e, v, d: {"t": "frozenset", "v": e.items(frozenset.__iter__(v), d)}),
    (bytes, lambda e, v, d: {"t": "bytes", "v": bytes.hex(v)}),
    (bytearray, lambda e, v, d: {"t": "bytearray", "v": bytearray.hex(v)}),
    (complex, lambda e, v, d: {"t": "complex", "v": [v.real, v.imag]}),
    (range, lambda e, v, d: {"t": "range", "v": e.items((v.start, v.stop, v.step), d)}),
)
# Classes of modules that a program imports first if it has a value of them.
_TO_DATA_IF_IMPORTED: tuple[tuple[str, str, Callable[[_Encoder, Any, int], Any]], ...] = (
    ("collections", "deque", lambda e, v, d: {"t": "deque", "v": e.items(list(v), d)}),
    ("decimal", "Decimal", lambda e, v, d: {"t": "decimal", "v": str(v)}),
    ("fractions", "Fraction", lambda e, v, d: {"t": "fraction", "v": e.items((v.numerator, v.denominator), d)}),
    ("datetime", "datetime", lambda e, v, d: {"t": "datetime", "v": v.isoformat()}),
    ("datetime", "date", lambda e, v, d: {"t": "date", "v": v.isoformat()}),
    ("datetime", "timedelta", lambda e, v, d: {"t": "timedelta", "v": [v.days, v.seconds, v.microseconds]}),
)


def _rarer_kinds() -> Iterator[tuple[type, Callable[[_Encoder, Any, int], Any]]]:
    for module, name, to_data in _TO_DATA_IF_IMPORTED:
        kind = getattr(sys.modules.get(module), name, None)
        if isinstance(kind, type):
            yield kind, to_data


def _standard(module: str, name: str) -> Callable[..., Any]:
    """A class of the standard library, or a method of one, imported when it is called."""

    def make(*arguments: Any) -> Any:
        found: Any = __import__(module)
        for part in name.split("."):
            found = getattr(found, part)
        return found(*arguments)

    return make


_FROM_TEXT: dict[str, Callable[[str], Any]] = {
    "int": lambda text: int(text, 16),
    "bytes": bytes.fromhex,
    "bytearray": bytearray.fromhex,
    "decimal": _standard("decimal", "Decimal"),
    "datetime": _standard("datetime", "datetime.fromisoformat"),
    "date": _standard("datetime", "date.fromisoformat"),
}
_FROM_ITEMS: dict[str, Callable[[list[Any]], Any]] = {
    "tuple": tuple,
    "set": set,
    "frozenset": frozenset,
    "deque": _standard("collections", "deque"),
    "complex": lambda items: complex(*items),
    "range": lambda items: range(*items),
    "fraction": lambda items: _standard("fractions", "Fraction")(*items),
    "timedelta": lambda items: _standard("datetime", "timedelta")(*items),
}


def _decode(data: Any, opaque: Callable[[Any], Any], depth: int) -> Any:
    if depth > MAX_DEPTH:
        raise CodecError("the value is nested too deeply")
    if isinstance(data, list):
        return [_decode(item, opaque, depth + 1) for item in data]
    if not isinstance(data, dict):
        return data
    kind, content = data["t"], data["v"]
    if kind == "opaque":
        return opaque(content)
    if kind in _FROM_TEXT and isinstance(content, str):
        return _FROM_TEXT[kind](content)
    if not isinstance(content, list):
        raise CodecError("not a value")
    if kind == "dict":
        return {_decode(key, opaque, depth + 1): _decode(item, opaque, depth + 1) for key, item in content}
    return _FROM_ITEMS[kind]([_decode(item, opaque, depth + 1) for item in content])
