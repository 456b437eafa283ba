"""What a program sent against what a test expects, without building anything that the test does not have itself.

The data come from a process under the program's control and may be forged: a number with a huge exponent, a set whose
members all collide. So the expected value leads: lists and sets of another length are unequal before their members are
looked at, and only single numbers, texts and tuples of them are made into Python values.
"""

from typing import Any

from maskgrpo_plugin.sandbox.inside.codec import (
    MAX_DEPTH,
    MISSING,
    CodecError,
    plain_from_data,
    scalar_from_data,
)

_SETS = ("set", "frozenset")
_FILLED = ("list", "tuple", "dict", "set", "frozenset", "deque", "bytearray")


def equals(data: Any, expected: Any, *, loose: bool = False) -> bool:
    """Whether the encoded value `data` (see inside/codec.py) equals `expected`.

    Args:
        data: from JSON, possibly forged.
        expected: of the types that Python literals have.
        loose: whether a tuple equals the list of its items, as where `expected` comes from JSON, which has no tuples.

    Raises:
        CodecError: `data` is no encoded value.
    """
    kind, content = _parts(data)
    if isinstance(expected, list | tuple):
        kinds = ("list", "tuple") if loose else (type(expected).__name__,)
        if kind not in kinds or len(content) != len(expected):
            return False
        return all(equals(*pair, loose=loose) for pair in zip(content, expected, strict=True))
    if isinstance(expected, dict):
        if kind != "dict" or len(content) != len(expected):
            return False
        found = {_atom(key, 0): item for key, item in content}
        return found.keys() == expected.keys() and all(
            equals(found[key], item, loose=loose) for key, item in expected.items()
        )
    if isinstance(expected, set):
        return kind in _SETS and len(content) == len(expected) and {_atom(item, 0) for item in content} == expected
    return bool(_atom(data, 0) == expected)


def is_same(data: Any, expected: Any) -> bool:
    """Whether `data is expected` may hold: the same constant, or for numbers and texts an equal one of the same type.

    Raises:
        CodecError: `data` is no encoded value.
    """
    if isinstance(expected, list | dict | set):
        return False
    value = _atom(data, 0)
    return value is expected or (type(value) is type(expected) and value == expected)


def is_true(data: Any) -> bool:
    """Whether the encoded value is true; of an object of the program's own class what its process said.

    Raises:
        CodecError: `data` is no encoded value.
    """
    kind, content = _parts(data)
    if kind in _FILLED:
        return len(content) > 0
    return content is True if kind == "opaque" else bool(_atom(data, 0))


def _parts(data: Any) -> tuple[str, Any]:
    """The kind of an encoded value, "" for a plain one, and what it holds.

    Raises:
        CodecError: `data` is no encoded value.
    """
    if isinstance(data, list):
        return "list", data
    if not isinstance(data, dict):
        return "", data
    kind, content = data.get("t"), data.get("v")
    if not isinstance(kind, str) or (kind in _FILLED and not isinstance(content, str if kind == "bytearray" else list)):
        raise CodecError("not a value")
    return kind, content


def _atom(data: Any, depth: int) -> Any:
    """A number, text or the like, or a tuple of them; an object equal to nothing in place of anything else."""
    kind, content = _parts(data)
    if depth > MAX_DEPTH:
        raise CodecError("the value is nested too deeply")
    if not kind:
        return plain_from_data(content)
    if kind == "tuple":
        return tuple(_atom(item, depth + 1) for item in content)
    if kind == "bytearray":
        return bytes.fromhex(content)
    if kind == "opaque" or kind in _FILLED:
        return object()
    value = scalar_from_data(data)
    if value is MISSING:
        raise CodecError("not a value")
    return value
