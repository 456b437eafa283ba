"""How a sampler declares an option, once: type and default as a dataclass field, with the check of its values."""

import math
from collections.abc import Callable, Sequence
from dataclasses import MISSING, field
from functools import partial
from typing import Any

from maskgrpo_plugin.errors import OptionError, check_choice, check_number

Check = Callable[[str, Any], None]


def option(check: Check, default: Any = MISSING, *, by_run: bool = False) -> Any:
    """An option of a sampler, as a dataclass field.

    Args:
        check: called with the option's name and value; raises `OptionError` where the value cannot work.
        default: value where none is given; without one the option must be given. None as a default is not checked.
        by_run: whether a run sets it elsewhere (length, temperature, the checkpoint's tokens) rather than by
            `rollout.sampler.options`.
    """
    return field(default=default, metadata={"check": check, "by_run": by_run})


def number(low: float, high: float = math.inf, *, whole: bool = False) -> Check:
    """A check of finite (whole) numbers from `low` to `high`."""
    return partial(check_number, low=low, high=high, whole=whole)


def number_above(low: float, high: float = math.inf) -> Check:
    """A check of finite numbers above `low`, up to `high`."""

    def check(key: str, value: Any) -> None:
        if value == low:
            raise OptionError(key, value, f"allowed: above {low}" + ("" if high == math.inf else f", up to {high}"))
        check_number(key, value, low, high)

    return check


def one_of(*choices: str) -> Check:
    """A check of names."""
    return partial(check_choice, choices=choices)


def flag(key: str, value: Any) -> None:
    """Raise OptionError unless `value` is true or false."""
    if not isinstance(value, bool):
        raise OptionError(key, value, "allowed: true, false")


def token_ids(key: str, value: Any) -> None:
    """Raise OptionError unless `value` is a sequence of token ids, whole numbers from 0."""
    whole = isinstance(value, Sequence) and all(
        isinstance(i, int) and not isinstance(i, bool) and i >= 0 for i in value
    )
    if not whole:
        raise OptionError(key, value, "allowed: a tuple of token ids, whole numbers from 0")
