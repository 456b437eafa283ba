"""Read pickled messages of reward servers and their clients without running anything that they name.

The published reward protocol (Flow-GRPO's reward servers) sends pickles. A pickle is a program: it names functions and
has them called. Here no named thing is ever imported: the few names that numpy's arrays and the standard containers
need stand for functions of this module, which check their arguments; any other name ends the reading with an error.
A list of admitted names whose real functions are called would be shorter, but numpy's own are no safe ground: they
make arrays of objects, dtypes of records and views of any size, as the pickle asks. Nor is Python's own unpickler,
whose memory and time a pickle can choose: the opcodes are run by `pickle_machine`.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from maskgrpo_plugin.rewards.images.pickle_machine import (
    Budget,
    PickleMachine,
    StandIn,
    UnsafePickleError,
    check_key,
)

NUMBER_KINDS = "biuf"
TEXT_KINDS = "US"
MAX_DEPTH = 64
MAX_DIMENSIONS = 32
_LONGEST_CODE = 12
_LONGEST_EMPTY_AXIS = 2**16
_LONGEST_CAUSE = 200

__all__ = ["UnsafePickleError", "loads"]


def loads(data: bytes, *, text_arrays: bool = False) -> Any:
    """Read a pickle of plain data.

    Time and memory are bounded: at most `pickle_machine.MAX_OPCODES` opcodes, and all objects together at most
    FREE_BYTES + BYTES_PER_BYTE · len(data) bytes.

    Args:
        data: the pickle, of any protocol.
        text_arrays: also admit numpy arrays of strings (clients of the published protocol send prompts so).

    Returns:
        None, booleans, numbers, strings, bytes, and lists, tuples, sets, dicts and numpy arrays of numbers of them;
        keys and members of sets are text, bytes, integers below 2^61, booleans or None. An OrderedDict or a defaultdict
        comes as a dict, a numpy scalar as a Python number. What the pickle shares is shared: a few hundred bytes can
        describe a list of lists that takes for ever to walk or print.

    Raises:
        UnsafePickleError: anything else; nothing was imported or called for it.
    """
    budget = Budget(len(data))
    try:
        names = _names(NUMBER_KINDS + TEXT_KINDS * text_arrays, budget)
        return _Plain(budget).convert(PickleMachine(names, budget).run(data))
    except UnsafePickleError:
        raise
    except Exception as error:  # a damaged pickle raises errors of almost any type
        cause = f"{type(error).__name__}: {error}"[:_LONGEST_CAUSE]
        raise UnsafePickleError(f"not a readable pickle: {cause}") from None


class _Dtype(StandIn):
    """A numpy dtype of numbers or text, built from the arguments in the pickle."""

    __slots__ = ("byte_order", "code", "kinds")

    def __init__(self, kinds: str, code: Any):
        digits = code[1:] if type(code) is str and len(code) <= _LONGEST_CODE else ""
        if not (digits.isascii() and digits.isdigit()) or code[0] not in kinds:
            found = repr(code) if type(code) is str and len(code) <= _LONGEST_CODE else type(code).__name__
            raise UnsafePickleError(f"a numpy array of type {found}; admitted are numbers")
        self.kinds, self.code, self.byte_order = kinds, code, "="

    def set_state(self, state: Any) -> None:
        """Take over the byte order."""
        if type(state) is not tuple or len(state) < 5 or type(state[1]) is not str or state[1] not in set("<>|="):
            raise UnsafePickleError("a damaged numpy dtype")
        if any(part is not None for part in state[2:5]):
            raise UnsafePickleError("a numpy array of records; admitted are numbers")
        self.byte_order = state[1]

    def dtype(self) -> np.dtype:
        """The dtype; its kind is checked again after numpy has read the code."""
        found = np.dtype(self.byte_order + self.code)
        if found.kind not in self.kinds or found.hasobject:
            raise UnsafePickleError(f"a numpy array of type {found}; admitted are numbers")
        return found


class _Array(StandIn):
    """A numpy array to be; what the pickle says of it is checked when `array` builds it."""

    __slots__ = ("dtype", "order", "raw", "shape")

    def __init__(self, shape: Any = None, dtype: Any = None, order: Any = "C", raw: Any = None):
        self.shape, self.dtype, self.order, self.raw = shape, dtype, order, raw

    def set_state(self, state: Any) -> None:
        """Take over shape, dtype, order and bytes."""
        if type(state) is not tuple or len(state) not in (4, 5):
            raise UnsafePickleError("a damaged numpy array")
        self.shape, self.dtype, is_fortran, self.raw = state[-4:]
        self.order = "F" if is_fortran else "C"

    def array(self, budget: Budget) -> np.ndarray:
        """The array, a copy of its own memory."""
        if type(self.raw) not in (bytes, bytearray) or type(self.dtype) is not _Dtype:
            raise UnsafePickleError("a numpy array of objects; admitted are numbers")
        shape, dtype = _check_shape(self.shape), self.dtype.dtype()
        if math.prod(shape) * dtype.itemsize != len(self.raw):
            raise UnsafePickleError(f"a numpy array of shape {shape} and type {dtype} in {len(self.raw)} bytes")
        budget.spend(len(self.raw))
        flat = np.frombuffer(self.raw, dtype=dtype)
        order = "F" if type(self.order) is str and self.order == "F" else "C"
        return flat.reshape(shape, order=order).copy()  # type: ignore[call-overload]


def _check_shape(shape: Any) -> tuple[int, ...]:
    """A shape as it is, where its axes can be those of an array in a message."""
    if type(shape) is not tuple or len(shape) > MAX_DIMENSIONS:
        raise UnsafePickleError("a numpy array with a damaged shape")
    if not all(type(n) is int and 0 <= n < 2**40 for n in shape):
        raise UnsafePickleError("a numpy array with a damaged shape")
    if 0 in shape and max(shape) > _LONGEST_EMPTY_AXIS:
        raise UnsafePickleError("an empty numpy array that is very long")
    return shape


def _names(kinds: str, budget: Budget) -> dict[str, Callable[..., Any]]:
    """What stands for each admitted name; what is called is checked and counted."""

    def to_bytearray(value: Any = b"") -> bytearray:
        budget.spend(len(_of_type(value, bytes)))
        return bytearray(value)

    def encode(text: Any, encoding: Any) -> bytes:
        if type(encoding) is not str or encoding != "latin1":
            raise UnsafePickleError("the pickle asks for another encoding than latin1")
        budget.spend(len(_of_type(text, str)))
        return text.encode("latin1")

    def members(values: Any = None) -> list[Any]:
        found = [] if values is None else _of_type(values, list)
        budget.spend(128 * len(found))
        return [check_key(value) for value in found]

    names: dict[str, Callable[..., Any]] = {
        "numpy.dtype": lambda code, *_: _Dtype(kinds, code),
        "builtins.bytes": lambda: b"",
        "builtins.bytearray": to_bytearray,
        "builtins.set": lambda *values: set(members(*values)),
        "builtins.frozenset": lambda *values: frozenset(members(*values)),
        "collections.OrderedDict": lambda items=(): _empty(items),
        "collections.defaultdict": lambda factory=None: {},
        "_codecs.encode": encode,
        **dict.fromkeys(("numpy.ndarray", *(f"builtins.{n}" for n in ("list", "dict", "int", "float"))), _never_called),
    }
    for core in ("numpy.core", "numpy._core"):
        names[f"{core}.multiarray._reconstruct"] = lambda *_: _Array()
        names[f"{core}.multiarray.scalar"] = lambda dtype, raw=None: _Array((), dtype, "C", raw)
        names[f"{core}.numeric._frombuffer"] = lambda raw, dtype, shape, order: _Array(shape, dtype, order, raw)
    return names


def _never_called(*args: Any) -> Any:
    raise UnsafePickleError("the pickle calls a type; only plain data and numpy numbers are read")


def _empty(items: Any) -> dict:
    """An OrderedDict's beginning; protocols 0 and 1 of old Pythons give its items here, as a list of pairs."""
    pairs = [] if type(items) is tuple and not items else _of_type(items, list)
    if not all(type(pair) in (list, tuple) and len(pair) == 2 for pair in pairs):
        raise UnsafePickleError("a damaged OrderedDict")
    return {check_key(key): value for key, value in pairs}


def _of_type(value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise UnsafePickleError(f"the pickle holds a {type(value).__name__} where a {kind.__name__} belongs")
    return value


class _Plain:
    """Copies what was read into plain data; shared parts are copied once, cycles and great depth are refused."""

    def __init__(self, budget: Budget) -> None:
        self.budget = budget
        self.done: dict[int, Any] = {}
        self.open: set[int] = set()

    def convert(self, value: Any, depth: int = 0) -> Any:
        """The value with stand-ins replaced."""
        if value is None or isinstance(value, bool | int | float | str | bytes | bytearray):
            return value
        key = id(value)
        if key in self.done:
            return self.done[key]
        if key in self.open or depth > MAX_DEPTH:
            raise UnsafePickleError("the data refers to itself or is too deep")
        self.open.add(key)
        self.done[key] = result = self._container(value, depth + 1)
        self.open.discard(key)
        return result

    def _container(self, value: Any, depth: int) -> Any:
        if isinstance(value, _Array):
            array = value.array(self.budget)
            return array.item() if array.ndim == 0 else array
        if isinstance(value, dict):
            self.budget.spend(128 * len(value))
            return {key: self.convert(part, depth) for key, part in value.items()}
        if isinstance(value, list | tuple | set | frozenset):
            self.budget.spend(128 * len(value))
            return type(value)(self.convert(part, depth) for part in value)
        raise UnsafePickleError(f"the data holds a {type(value).__name__}")
