"""Checks of a config by table: ranges of numbers, choices, and settings that have no effect."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf

from maskgrpo_plugin.errors import OptionError, check_number

INFINITY = float("inf")


class Range(NamedTuple):
    """Numbers that a setting may have.

    Attributes:
        low, high: smallest and largest.
        whole: whether only whole numbers.
        null: whether null as well.
        above: whether `low` itself is too small.
        also: further numbers, such as -1 for "never".
    """

    low: float
    high: float = INFINITY
    whole: bool = True
    null: bool = False
    above: bool = False
    also: tuple[float, ...] = ()


class Ignored(NamedTuple):
    """A setting that has no effect here.

    Attributes:
        neutral: values that ask for nothing, the first of which the message names.
        reason: why it has no effect, and what to use instead.
    """

    neutral: tuple[Any, ...]
    reason: str


COUNT = Range(1)
COUNT_OR_NULL = Range(1, null=True)
SHARE = Range(0, 1, whole=False)
POSITIVE = Range(0, whole=False, above=True)
NOT_NEGATIVE = Range(0, whole=False)


def check_ranges(config: DictConfig, section: str, table: Mapping[str, Range]) -> None:
    """Check the numbers of a section; keys that it does not have are passed over.

    Raises:
        OptionError: the first number outside its range.
    """
    for name, allowed in table.items():
        key = f"{section}.{name}"
        value = OmegaConf.select(config, key, default=_ABSENT)
        if value is _ABSENT or (value is None and allowed.null) or value in allowed.also:
            continue
        try:
            check_number(key, value, allowed.low, allowed.high, whole=allowed.whole)
            if allowed.above and value == allowed.low:
                raise OptionError(key, value, "")
        except OptionError:
            raise OptionError(key, value, f"allowed: {_phrase(allowed)}") from None


def check_choices(config: DictConfig, section: str, table: Mapping[str, Sequence[Any]]) -> None:
    """Check the settings of a section that have few values.

    Raises:
        OptionError: the first that has another one.
    """
    for name, choices in table.items():
        key = f"{section}.{name}"
        value = OmegaConf.select(config, key, default=_ABSENT)
        if value is not _ABSENT and value not in choices:
            shown = ", ".join("null" if choice is None else str(choice) for choice in choices)
            raise OptionError(key, value, f"allowed: {shown}")


def check_ignored(config: DictConfig, section: str, table: Mapping[str, Ignored]) -> None:
    """Check that no setting of a section asks for what nothing here honours.

    Raises:
        OptionError: the first that does.
    """
    for name, ignored in table.items():
        key = f"{section}.{name}"
        value = OmegaConf.select(config, key, default=None)
        plain = OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
        if plain is not None and not any(_same(plain, neutral) for neutral in ignored.neutral):
            raise OptionError(key, plain, f"use {_shown(ignored.neutral[0])}: {ignored.reason}")


class _Absent:
    pass


_ABSENT = _Absent()


def _same(value: Any, neutral: Any) -> bool:
    return value == neutral and isinstance(value, bool) == isinstance(neutral, bool)


def _shown(value: Any) -> str:
    return {None: "null", True: "true", False: "false"}.get(value, str(value)) if _hashable(value) else str(value)


def _hashable(value: Any) -> bool:
    return isinstance(value, bool | str | None)


def _phrase(allowed: Range) -> str:
    kind = "whole numbers" if allowed.whole else "numbers"
    start = f"more than {allowed.low:g}" if allowed.above else f"from {allowed.low:g}"
    end = "" if allowed.high == INFINITY else f" to {allowed.high:g}"
    further = [f"{number:g}" for number in allowed.also] + (["null"] if allowed.null else [])
    return f"{kind} {start}{end}" + (f", or {' or '.join(further)}" if further else "")
