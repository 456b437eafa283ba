"""The one error of a setting that cannot work, importable without verl or torch."""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

__all__ = [
    "OptionError",
    "check_choice",
    "check_keys",
    "check_number",
    "first_line",
    "last_line",
    "nearest",
]


class OptionError(ValueError):
    """A setting that cannot work; the message names its key, its value and what is allowed.

    Attributes:
        key: of the setting, as far as the code that raises knows it: `steps`, or `rollout.sampler.options.steps`.
        value: what was given.
        allowed: what would work, a phrase.
    """

    def __init__(self, key: str, value: Any, allowed: str):
        super().__init__(f"{key}={value!r} is not usable; {allowed}")
        self.key, self.value, self.allowed = key, value, allowed

    def under(self, prefix: str) -> "OptionError":
        """The same error with `prefix` and a dot before its key, such as `reward.image`."""
        return type(self)(f"{prefix}.{self.key}", self.value, self.allowed)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.key, self.value, self.allowed)


def check_choice(key: str, value: Any, choices: Sequence[str]) -> None:
    """Raise OptionError unless `value` is one of `choices`."""
    if value not in choices:
        raise OptionError(key, value, f"allowed: {', '.join(choices)}")


def check_number(key: str, value: Any, low: float, high: float = float("inf"), *, whole: bool = False) -> None:
    """Raise OptionError unless `value` is a finite (whole) number from `low` to `high`."""
    kinds = int if whole else (int, float)
    if isinstance(value, bool) or not isinstance(value, kinds) or not low <= value <= high or value == float("inf"):
        upper = "" if high == float("inf") else f" to {high}"
        raise OptionError(key, value, f"allowed: {'whole numbers' if whole else 'numbers'} from {low}{upper}")


def check_keys(values: Mapping[str, Any], known: Sequence[str]) -> None:
    """Raise OptionError for the first key of `values` that is not among `known`."""
    for key in values:
        if key not in known:
            raise OptionError(key, values[key], f"no such key; there are {', '.join(known)}")


def first_line(error: BaseException) -> str:
    """The first line of what an error says; its type where it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def last_line(error: BaseException) -> str:
    """An error's type and the last line of what it says: Ray puts the stack of the other process before it."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[-1].strip() if lines else ''}"


def nearest(key: str, known: Iterable[str]) -> str | None:
    """The known key that is most like `key`, or None where none is."""
    return next(iter(difflib.get_close_matches(key, list(known), n=1, cutoff=0.75)), None)
