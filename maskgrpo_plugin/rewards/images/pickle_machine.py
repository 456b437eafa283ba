"""The stack machine of pickles: follows a pickle's opcodes with plain Python objects, within a budget of memory.

Python's own unpickler cannot be bounded from outside: nine bytes make it reserve two gigabytes, and the hash of a tuple
in a tuple in a tuple takes exponential time or overflows the C stack. Here nothing is hashed but text, bytes, numbers
and None, the memo is a dict, and what an opcode makes is counted before the next one runs.
"""

import pickletools
import sys
from collections.abc import Callable, Mapping
from typing import Any

MAX_OPCODES = 500_000
FREE_BYTES = 64 * 2**20
BYTES_PER_BYTE = 4
_CONTAINER_BYTES = 256
_ENTRY_BYTES = 128
_LARGEST_KEY = 2**61 - 2  # larger integers can have equal hashes


class UnsafePickleError(ValueError):
    """The bytes are no pickle, or one that holds more than plain data."""


class Budget:
    """Bytes that may be built for a message of `size` bytes: BYTES_PER_BYTE times as many, and FREE_BYTES."""

    def __init__(self, size: int):
        self.left = FREE_BYTES + BYTES_PER_BYTE * size

    def spend(self, count: int) -> None:
        """Take `count` bytes from the budget.

        Raises:
            UnsafePickleError: that many are not left.
        """
        self.left -= count
        if self.left < 0:
            raise UnsafePickleError("the data is much larger than the pickle that describes it")


class Named:
    """What a name in a pickle stands for: a function of ours, which a pickle can call and do nothing else with."""

    __slots__ = ("call",)

    def __init__(self, call: Callable[..., Any]):
        self.call = call


class StandIn:
    """A value that a pickle builds in two steps; `set_state` is the second."""

    __slots__ = ()

    def set_state(self, state: Any) -> None:
        """Take over the argument of the opcode BUILD."""
        raise NotImplementedError


class PickleMachine:
    """Runs the opcodes of one pickle.

    Args:
        names: what stands for the names that a pickle may use, by `module.name`.
        budget: what the pickle may build; spent by the machine.
    """

    def __init__(self, names: Mapping[str, Callable[..., Any]], budget: Budget):
        self.names, self.budget = names, budget
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def run(self, data: bytes) -> Any:
        """The value that the pickle leaves; Named and StandIn values in it are not replaced.

        Raises:
            UnsafePickleError: a name, opcode, key or amount that is not admitted.
            Exception: of almost any type, for a damaged pickle.
        """
        count = 0
        for opcode, argument, _ in pickletools.genops(data):
            count += 1
            if count > MAX_OPCODES:
                raise UnsafePickleError(f"the pickle has more than {MAX_OPCODES} opcodes")
            name = opcode.name
            if name == "STOP":
                return self.stack.pop()
            run = _OPCODES.get(name)
            if run is None:
                raise UnsafePickleError(f"the opcode {name} is not read, only plain data and numpy numbers are")
            run(self, argument)
        raise UnsafePickleError("the pickle has no end")

    def push_atom(self, value: Any) -> None:
        """Push a number, text, bytes or None."""
        self.budget.spend(sys.getsizeof(value))
        self.stack.append(value)

    def push_container(self, value: Any, parts: int = 0) -> None:
        """Push a container of `parts` entries."""
        self.budget.spend(_CONTAINER_BYTES + _ENTRY_BYTES * parts)
        self.stack.append(value)

    def pop_to_mark(self) -> list[Any]:
        """Take what lies above the last mark."""
        start = self.marks.pop()
        taken = self.stack[start:]
        del self.stack[start:]
        return taken

    def drop(self) -> None:
        """Take the top of the stack, be it a value or a mark."""
        if self.marks and self.marks[-1] == len(self.stack):
            self.marks.pop()
        else:
            self.stack.pop()

    def top(self, kind: type) -> Any:
        """The top of the stack, which must be a `kind`."""
        value = self.stack[-1]
        if type(value) is not kind:
            raise UnsafePickleError(f"the pickle fills a {type(value).__name__} like a {kind.__name__}")
        return value

    def extend(self, parts: list[Any]) -> None:
        """Append to the list on top."""
        self.budget.spend(_ENTRY_BYTES * len(parts))
        self.top(list).extend(parts)

    def update(self, parts: list[Any]) -> None:
        """Put keys and values, in turn, into the dict on top."""
        self.budget.spend(_ENTRY_BYTES * len(parts))
        target = self.top(dict)
        for key, value in as_pairs(parts):
            target[key] = value

    def add(self, parts: list[Any]) -> None:
        """Put members into the set on top."""
        self.budget.spend(_ENTRY_BYTES * len(parts))
        self.top(set).update(map(check_key, parts))

    def store(self, index: int) -> None:
        """Note the top of the stack in the memo."""
        if index > MAX_OPCODES:
            raise UnsafePickleError(f"the pickle has a memo of {index} entries")
        self.budget.spend(_ENTRY_BYTES)
        self.memo[index] = self.stack[-1]

    def push_name(self, name: str) -> None:
        """Push what stands for `module.name`."""
        call = self.names.get(name)
        if call is None:
            raise UnsafePickleError(f"the pickle names {name[:200]}; only plain data and numpy numbers are read")
        self.stack.append(Named(call))

    def push_name_of_stack(self) -> None:
        """The same with module and name from the stack."""
        name, module = self.stack.pop(), self.stack.pop()
        if type(name) is not str or type(module) is not str:
            raise UnsafePickleError("the pickle names something without text")
        self.push_name(_module(module) + "." + name)

    def call(self) -> None:
        """Call what stands for a name."""
        arguments, function = self.stack.pop(), self.stack.pop()
        if not isinstance(function, Named) or type(arguments) is not tuple:
            raise UnsafePickleError("the pickle calls what is no function")
        self.push_container(function.call(*arguments))

    def build(self) -> None:
        """Give the value on top its state."""
        state = self.stack.pop()
        if not isinstance(self.stack[-1], StandIn):
            raise UnsafePickleError("the pickle tries to change a function or a plain value")
        self.stack[-1].set_state(state)


def check_key(key: Any) -> Any:
    """A dict's key or set's member as it is.

    Raises:
        UnsafePickleError: it is a container, a float, or an integer so large that its hash can be chosen.
    """
    if key is None or type(key) in (str, bytes, bool) or (type(key) is int and abs(key) <= _LARGEST_KEY):
        return key
    raise UnsafePickleError(f"a {type(key).__name__} as a key; admitted are text, bytes and small integers")


def as_pairs(parts: list[Any]) -> list[tuple[Any, Any]]:
    """[key, value, key, value] as pairs, keys checked."""
    return [(check_key(key), value) for key, value in zip(parts[::2], parts[1::2], strict=True)]


def _module(name: str) -> str:
    return "builtins" if name == "__builtin__" else name


def _global(machine: PickleMachine, argument: str) -> None:
    module, _, name = argument.partition(" ")
    machine.push_name(f"{_module(module)}.{name}")


def _take(count: int) -> Callable[[PickleMachine, Any], None]:
    """Opcode that makes a tuple of the last `count` values."""

    def run(machine: PickleMachine, _: Any) -> None:
        start = len(machine.stack) - count
        if start < 0:
            raise UnsafePickleError("the pickle takes more than there is")
        parts = tuple(machine.stack[start:])
        del machine.stack[start:]
        machine.push_container(parts, count)

    return run


def _of_mark(make: Callable[[list[Any]], Any]) -> Callable[[PickleMachine, Any], None]:
    """Opcode that makes a container of what lies above the mark."""

    def run(machine: PickleMachine, _: Any) -> None:
        parts = machine.pop_to_mark()
        machine.push_container(make(parts), len(parts))

    return run


_ATOMS = (
    "INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT STRING BINSTRING SHORT_BINSTRING UNICODE "
    "SHORT_BINUNICODE BINUNICODE BINUNICODE8 BINBYTES SHORT_BINBYTES BINBYTES8 BYTEARRAY8"
).split()
_OPCODES: dict[str, Callable[[PickleMachine, Any], Any]] = {
    **dict.fromkeys(_ATOMS, PickleMachine.push_atom),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), lambda m, index: m.stack.append(m.memo[index])),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), PickleMachine.store),
    "MEMOIZE": lambda m, _: m.store(len(m.memo)),
    "PROTO": lambda m, _: None,
    "FRAME": lambda m, _: None,
    "MARK": lambda m, _: m.marks.append(len(m.stack)),
    "POP": lambda m, _: m.drop(),
    "POP_MARK": lambda m, _: m.pop_to_mark(),
    "DUP": lambda m, _: m.stack.append(m.stack[-1]),
    "NONE": lambda m, _: m.stack.append(None),
    "NEWTRUE": lambda m, _: m.stack.append(True),
    "NEWFALSE": lambda m, _: m.stack.append(False),
    "EMPTY_LIST": lambda m, _: m.push_container([]),
    "EMPTY_TUPLE": lambda m, _: m.stack.append(()),
    "EMPTY_DICT": lambda m, _: m.push_container({}),
    "EMPTY_SET": lambda m, _: m.push_container(set()),
    "TUPLE1": _take(1),
    "TUPLE2": _take(2),
    "TUPLE3": _take(3),
    "TUPLE": _of_mark(tuple),
    "LIST": _of_mark(list),
    "DICT": _of_mark(lambda parts: dict(as_pairs(parts))),
    "FROZENSET": _of_mark(lambda parts: frozenset(map(check_key, parts))),
    "APPEND": lambda m, _: m.extend([m.stack.pop()]),
    "APPENDS": lambda m, _: m.extend(m.pop_to_mark()),
    "SETITEM": lambda m, _: m.update([m.stack.pop(-2), m.stack.pop()]),
    "SETITEMS": lambda m, _: m.update(m.pop_to_mark()),
    "ADDITEMS": lambda m, _: m.add(m.pop_to_mark()),
    "GLOBAL": _global,
    "STACK_GLOBAL": lambda m, _: m.push_name_of_stack(),
    "REDUCE": lambda m, _: m.call(),
    "BUILD": lambda m, _: m.build(),
}
