"""Read pickled messages of reward servers and their clients without running anything that they name.

The published reward protocol (Flow-GRPO's reward servers) sends pickles. A pickle is a program: it names functions and
has them called. Here no named thing is ever imported: the few names that numpy's arrays and the standard containers
need stand for functions of this module, which check their arguments; any other name ends the reading with an error.
A list of admitted names whose real functions are called would be shorter, but numpy's own are no safe ground: they
make arrays of objects, dtypes of records and views of any size, as the pickle asks.
"""

import io
import math
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np

NUMBER_KINDS = "biuf"
TEXT_KINDS = "US"
MAX_DEPTH = 64


class UnsafePickleError(ValueError):
    """The bytes are no pickle, or one that holds more than plain data."""


def loads(data: bytes, *, text_arrays: bool = False) -> Any:
    """Read a pickle of plain data.

    Args:
        data: the pickle, of any protocol.
        text_arrays: also admit numpy arrays of strings (clients of the published protocol send prompts so).

    Returns:
        None, booleans, numbers, strings, bytes, and lists, tuples, sets, dicts and numpy arrays of numbers of them.
        An OrderedDict or a defaultdict comes as a dict, a numpy scalar as a Python number.

    Raises:
        UnsafePickleError: anything else; nothing was imported or called for it.
    """
    try:
        value = _Unpickler(io.BytesIO(data), NUMBER_KINDS + TEXT_KINDS * text_arrays).load()
        return _Plain().convert(value)
    except UnsafePickleError:
        raise
    except Exception as error:  # a damaged pickle raises errors of almost any type
        raise UnsafePickleError(f"not a readable pickle: {type(error).__name__}: {error}") from error


class _Name:
    """What a name in a pickle stands for: calls a function of ours, and cannot be changed by the pickle."""

    __slots__ = ("_build",)
    _build: Callable[..., Any]

    def __init__(self, build: Callable[..., Any]):
        object.__setattr__(self, "_build", build)

    def __call__(self, *args: Any) -> Any:
        return self._build(*args)

    def __setattr__(self, name: str, value: Any) -> None:
        raise UnsafePickleError("the pickle tries to change a function")

    def __setstate__(self, state: Any) -> None:
        raise UnsafePickleError("the pickle tries to change a function")


class _Dtype:
    """A numpy dtype of numbers or text, built from the arguments in the pickle."""

    __slots__ = ("byte_order", "code", "kinds")

    def __init__(self, kinds: str, code: Any):
        if not isinstance(code, str) or len(code) < 2 or code[0] not in kinds or not code[1:].isdigit():
            raise UnsafePickleError(f"a numpy array of type {code!r}; admitted are numbers")
        self.kinds, self.code, self.byte_order = kinds, code, "="

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) < 5 or state[1] not in ("<", ">", "|", "="):
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


class _Array:
    """A numpy array to be; what the pickle says of it is checked when `array` builds it."""

    __slots__ = ("dtype", "order", "raw", "shape")

    def __init__(self, shape: Any = None, dtype: Any = None, order: Any = "C", raw: Any = None):
        self.shape, self.dtype, self.order, self.raw = shape, dtype, order, raw

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) not in (4, 5):
            raise UnsafePickleError("a damaged numpy array")
        self.shape, self.dtype, is_fortran, self.raw = state[-4:]
        self.order = "F" if is_fortran else "C"

    def array(self) -> np.ndarray:
        """The array, a copy of its own memory."""
        if not isinstance(self.raw, bytes | bytearray) or not isinstance(self.dtype, _Dtype):
            raise UnsafePickleError("a numpy array of objects; admitted are numbers")
        if not isinstance(self.shape, tuple) or not all(type(n) is int and n >= 0 for n in self.shape):
            raise UnsafePickleError("a numpy array with a damaged shape")
        dtype = self.dtype.dtype()
        if math.prod(self.shape) * dtype.itemsize != len(self.raw):
            raise UnsafePickleError(f"a numpy array of shape {self.shape} and type {dtype} in {len(self.raw)} bytes")
        flat = np.frombuffer(bytes(self.raw), dtype=dtype)
        return flat.reshape(self.shape, order="F" if self.order == "F" else "C").copy()


class _Unpickler(pickle.Unpickler):
    """Knows a fixed list of names, none of which is imported."""

    def __init__(self, file: io.BytesIO, kinds: str):
        super().__init__(file)
        self.kinds = kinds
        self.names: dict[str, Callable[..., Any]] = {
            "numpy.dtype": lambda code, *_: _Dtype(kinds, code),
            "numpy.ndarray": _never_called,
            "builtins.bytes": lambda: b"",
            "builtins.bytearray": lambda value=b"": bytearray(_of_type(value, bytes)),
            "builtins.list": _never_called,
            "builtins.dict": _never_called,
            "builtins.int": _never_called,
            "builtins.float": _never_called,
            "builtins.set": lambda values=(): set(_of_type(values, list)),
            "builtins.frozenset": lambda values=(): frozenset(_of_type(values, list)),
            "collections.OrderedDict": lambda items=(): dict(items),
            "collections.defaultdict": lambda factory=None: {},
            "_codecs.encode": lambda text, encoding: _of_type(text, str).encode(_one_of(encoding, "latin1")),
        }
        for core in ("numpy.core", "numpy._core"):
            self.names[f"{core}.multiarray._reconstruct"] = lambda *_: _Array()
            self.names[f"{core}.multiarray.scalar"] = lambda dtype, raw=None: _Array((), dtype, "C", raw)
            self.names[f"{core}.numeric._frombuffer"] = lambda raw, dtype, shape, order: _Array(
                shape, dtype, order, raw
            )

    def find_class(self, module: str, name: str) -> Any:
        """A stand-in for the name, or UnsafePickleError."""
        module = {"__builtin__": "builtins"}.get(module, module)
        build = self.names.get(f"{module}.{name}")
        if build is None:
            raise UnsafePickleError(f"the pickle names {module}.{name}; only plain data and numpy numbers are read")
        return _Name(build)

    def persistent_load(self, pid: Any) -> Any:
        """Never admitted."""
        raise UnsafePickleError("the pickle refers to things outside itself")


def _never_called(*args: Any) -> Any:
    raise UnsafePickleError("the pickle calls a type; only plain data and numpy numbers are read")


def _of_type(value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise UnsafePickleError(f"the pickle holds a {type(value).__name__} where a {kind.__name__} belongs")
    return value


def _one_of(value: Any, *allowed: str) -> str:
    if value not in allowed:
        raise UnsafePickleError(f"the pickle asks for the encoding {value!r}")
    return value


class _Plain:
    """Copies what was read into plain data; shared parts are copied once, cycles and great depth are refused."""

    def __init__(self) -> None:
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
            array = value.array()
            return array.item() if array.ndim == 0 else array
        if isinstance(value, dict):
            return {self.convert(k, depth): self.convert(v, depth) for k, v in value.items()}
        if isinstance(value, list | tuple | set | frozenset):
            return type(value)(self.convert(part, depth) for part in value)
        raise UnsafePickleError(f"the data holds a {type(value).__name__}")
