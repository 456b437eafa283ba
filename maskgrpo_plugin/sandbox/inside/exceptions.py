"""Exceptions as plain data, and exceptions made of such data."""

from __future__ import annotations

import builtins

from .channel import ProgramGone

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_MOST_CLASSES = 20


def describe_exception(error: BaseException) -> dict[str, Any]:
    """An exception as plain data: its classes as `describe_class` gives them, and its text."""
    try:
        text = str(error)[:500]
    except BaseException:
        text = ""
    return {**describe_class(type(error)), "text": text}


def describe_class(kind: type[BaseException]) -> dict[str, Any]:
    """A class of exceptions as plain data: `base`, the built-in class that it is nearest to, and `names`, its own and
    those of the classes between them, the nearest to the base last; `name` is the first of them, or the base.
    """
    base = next(c for c in kind.__mro__ if getattr(builtins, c.__name__, None) is c)
    names = [c.__name__ for c in kind.__mro__[: kind.__mro__.index(base)]][:_MOST_CLASSES]
    return {"name": kind.__name__, "names": names, "base": base.__name__}


class _OfProgram:
    """What exceptions of the program's own classes have besides: the program's attributes, where they are known."""

    remote: Any = None

    def __getattr__(self, name: str) -> Any:
        if self.remote is None or name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.remote, name)


_known: dict[tuple[str, ...], type[Exception]] = {}


def known_class(data: Any) -> type[Exception]:
    """The class that `describe_class` described, made up where the program defined it.

    Raises:
        ProgramGone: it is none that a test may catch.
    """
    base_name, names = str(data["base"]), [str(name)[:100] for name in data.get("names") or []][:_MOST_CLASSES]
    found = getattr(builtins, base_name, None)
    if not isinstance(found, type) or not issubclass(found, Exception):
        raise ProgramGone(f"the program raised {str(data.get('name'))[:100]}")
    key: tuple[str, ...] = (base_name,)
    for name in reversed(names):
        key = (*key, name)
        if key not in _known:
            _known[key] = type(name, (found,) if len(key) > 2 else (_OfProgram, found), {})
        found = _known[key]
    return found


def make_exception(data: Any) -> Exception:
    """The exception that `describe_exception` described.

    Raises:
        ProgramGone: it is one that ends a program (SystemExit and the like), or no exception at all.
    """
    if not isinstance(data, dict) or not {"name", "base"} <= set(data):
        raise ProgramGone("malformed exception")
    kind = known_class(data)
    try:
        return kind(str(data.get("text", "")))
    except TypeError:  # UnicodeDecodeError and the like take more
        return Exception(str(data.get("text", "")))
