"""Plain values as JSON and back: the only thing that ever leaves a sandbox.

A value of a plain type comes back as exactly that type, an instance of a subclass of one as the plain type itself, so
that no method of the program under test (`__eq__` above all) survives the way. Everything else is opaque: what becomes
of it is up to the caller.
"""

from __future__ import annotations

import json
import re
import struct
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

INPUT_LIMIT = 64 << 20  # bytes of one frame of programs and tests
MAX_DEPTH = 100
MAX_NODES = 200_000
_JSON_INT_BITS = 53
MISSING: Any = object()
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
        if type(value) is int:
            return int_to_data(value)
        for kind, to_data in _CONTAINERS:
            if isinstance(value, kind):
                return to_data(self, value, depth + 1)
        if (scalar := scalar_to_data(value)) is not MISSING:
            return scalar
        deque = getattr(sys.modules.get("collections"), "deque", None)
        if deque is not None and isinstance(value, deque):
            return {"t": "deque", "v": self.items(deque.__iter__(value), depth + 1)}
        if type(value).__module__ == "numpy" and hasattr(value, "tolist"):
            return self.encode(value.tolist(), depth + 1)
        return {"t": "opaque", "v": self.opaque(value)}

    def items(self, values: Any, depth: int) -> list[Any]:
        """The data for values, in a list."""
        return [self.encode(value, depth) for value in values]


def int_to_data(value: int) -> Any:
    """The data for an int or an instance of a subclass."""
    plain = int.__add__(value, 0)
    return plain if plain.bit_length() <= _JSON_INT_BITS else {"t": "int", "v": hex(plain)}


# Immutable values that hold no values of others, by their class.
SCALARS: tuple[tuple[type, Callable[[Any], Any]], ...] = (
    (int, int_to_data),
    (str, lambda v: str.__str__(v)),
    (float, lambda v: float.__add__(v, 0.0)),
    (bytes, lambda v: {"t": "bytes", "v": bytes.hex(v)}),
    (complex, lambda v: {"t": "complex", "v": [complex.__pos__(v).real, complex.__pos__(v).imag]}),
    (range, lambda v: {"t": "range", "v": [int_to_data(n) for n in (v.start, v.stop, v.step)]}),
)
_CONTAINERS: tuple[tuple[type, Callable[[_Encoder, Any, int], Any]], ...] = (
    (list, lambda e, v, d: e.items(list.__iter__(v), d)),
    (tuple, lambda e, v, d: {"t": "tuple", "v": e.items(tuple.__iter__(v), d)}),
    (dict, lambda e, v, d: {"t": "dict", "v": [e.items(pair, d) for pair in dict.items(v)]}),
    (set, lambda e, v, d: {"t": "set", "v": e.items(set.__iter__(v), d)}),
    (frozenset, lambda e, v, d: {"t": "frozenset", "v": e.items(frozenset.__iter__(v), d)}),
    (bytearray, lambda e, v, d: {"t": "bytearray", "v": bytearray.hex(v)}),
)
# Classes of modules that a program imports first if it has a value of them.
_SCALARS_IF_IMPORTED: tuple[tuple[str, str, Callable[[Any], Any]], ...] = (
    ("decimal", "Decimal", lambda v: {"t": "decimal", "v": str(v)}),
    ("fractions", "Fraction", lambda v: {"t": "fraction", "v": [int_to_data(n) for n in (v.numerator, v.denominator)]}),
    ("datetime", "datetime", lambda v: {"t": "datetime", "v": v.isoformat()}),
    ("datetime", "date", lambda v: {"t": "date", "v": v.isoformat()}),
    ("datetime", "time", lambda v: {"t": "time", "v": v.isoformat()}),
    ("datetime", "timedelta", lambda v: {"t": "timedelta", "v": [v.days, v.seconds, v.microseconds]}),
)


def scalar_to_data(value: Any) -> Any:
    """The data for an immutable value that holds no others, MISSING for any other value."""
    if value is None or type(value) in (bool, str, float):
        return value
    for kind, to_data in SCALARS:
        if isinstance(value, kind):
            return to_data(value)
    for module, name, to_data in _SCALARS_IF_IMPORTED:
        rarer = getattr(sys.modules.get(module), name, None)
        if isinstance(rarer, type) and isinstance(value, rarer):
            return to_data(value)
    return MISSING


def scalar_from_data(data: dict[str, Any]) -> Any:
    """The value of tagged data that `scalar_to_data` gave, MISSING for data of another kind.

    Forged data are as good as any: numbers are plain and of bounded length before anything is built of them.

    Raises:
        CodecError: `data` is malformed or a number is too long.
    """
    kind, content = data.get("t"), data.get("v")
    try:
        if kind in _FROM_TEXT:
            pattern, make = _FROM_TEXT[kind]
            if not isinstance(content, str) or not re.fullmatch(pattern, content):
                raise CodecError("not a value")
            return make(content)
        if kind == "complex":
            if not isinstance(content, list) or [type(item) for item in content] != [float, float]:
                raise CodecError("not a value")
            return complex(*content)
        if kind in _FROM_INTS:
            count, bits, make = _FROM_INTS[kind]
            if not isinstance(content, list) or len(content) != count:
                raise CodecError("not a value")
            return make(*(_plain_int(item, bits) for item in content))
    except (ValueError, ArithmeticError) as error:
        raise error if isinstance(error, CodecError) else CodecError(f"not a value: {type(error).__name__}") from None
    return MISSING


def _plain_int(data: Any, bits: int) -> int:
    value = scalar_from_data(data) if isinstance(data, dict) else data
    if type(value) is not int or value.bit_length() > bits:
        raise CodecError("not a whole number, or too long a one")
    return value


def _standard(module: str, name: str) -> Callable[..., Any]:
    """A class of the standard library, or a method of one, imported when it is called."""

    def make(*arguments: Any) -> Any:
        found: Any = __import__(module)
        for part in name.split("."):
            found = getattr(found, part)
        return found(*arguments)

    return make


_DECIMAL = r"[+-]?(?:\d{1,20000}(?:\.\d{0,20000})?|\.\d{1,20000})(?:[eE][+-]?\d{1,6})?|[+-]?(?:Infinity|s?NaN\d{0,99})"
_MOMENT = r"[-+:.\dT]{1,50}"
_FROM_TEXT: dict[Any, tuple[str, Callable[[str], Any]]] = {
    "int": (r"-?0x[0-9a-f]+", lambda text: int(text, 16)),
    "bytes": (r"[0-9a-f]*", bytes.fromhex),
    "decimal": (_DECIMAL, _standard("decimal", "Decimal")),
    "datetime": (_MOMENT, _standard("datetime", "datetime.fromisoformat")),
    "date": (_MOMENT, _standard("datetime", "date.fromisoformat")),
    "time": (_MOMENT, _standard("datetime", "time.fromisoformat")),
}
# How many whole numbers, of how many bits at most: a fraction is shortened, which takes the square of its length.
_FROM_INTS: dict[Any, tuple[int, int, Callable[..., Any]]] = {
    "range": (3, 64, range),
    "fraction": (2, 1 << 14, _standard("fractions", "Fraction")),
    "timedelta": (3, 64, _standard("datetime", "timedelta")),
}
_FROM_ITEMS: dict[str, Callable[[list[Any]], Any]] = {
    "tuple": tuple,
    "set": set,
    "frozenset": frozenset,
    "deque": _standard("collections", "deque"),
}


def _decode(data: Any, opaque: Callable[[Any], Any], depth: int) -> Any:
    if depth > MAX_DEPTH:
        raise CodecError("the value is nested too deeply")
    if isinstance(data, list):
        return [_decode(item, opaque, depth + 1) for item in data]
    if not isinstance(data, dict):
        return plain_from_data(data)
    kind, content = data["t"], data["v"]
    if kind == "opaque":
        return opaque(content)
    if (scalar := scalar_from_data(data)) is not MISSING:
        return scalar
    if kind == "bytearray":
        return bytearray.fromhex(content)
    if not isinstance(content, list):
        raise CodecError("not a value")
    if kind == "dict":
        return {_decode(key, opaque, depth + 1): _decode(item, opaque, depth + 1) for key, item in content}
    return _FROM_ITEMS[kind]([_decode(item, opaque, depth + 1) for item in content])


def plain_from_data(data: Any) -> Any:
    """None, a truth, text, float or short whole number, as JSON has them.

    Raises:
        CodecError: a number that `int_to_data` would not have sent so, or something else.
    """
    if data is None or type(data) in (bool, str, float) or (type(data) is int and data.bit_length() <= _JSON_INT_BITS):
        return data
    raise CodecError("not a value")
