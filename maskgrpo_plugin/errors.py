"""The error of a config value that cannot work, importable without verl."""

from typing import Any


class ConfigError(ValueError):
    """A value of the run's config that cannot work; the message names key, value and what is allowed."""

    def __init__(self, key: str, value: Any, allowed: str):
        super().__init__(f"{key}={value!r} is not usable; {allowed}")
        self.key = key


def check_choice(key: str, value: Any, choices: tuple[str, ...]) -> None:
    """Raise ConfigError unless `value` is one of `choices`."""
    if value not in choices:
        raise ConfigError(key, value, f"allowed: {', '.join(choices)}")
