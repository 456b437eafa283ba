"""Command lines: types of arguments, and a parser that refuses in one line."""

import argparse
import math
import re
from typing import Any, NoReturn

from maskgrpo_plugin.errors import nearest


class CommandParser(argparse.ArgumentParser):
    """A parser whose errors are one line without the usage, with exit status 2; options are not abbreviated."""

    def __init__(self, **settings: Any):
        super().__init__(allow_abbrev=False, **settings)

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse; an unknown option is refused with the nearest that there is."""
        options, unknown = self.parse_known_args(args, namespace)
        if unknown:
            self.error(self._unknown(unknown[0]))
        return options

    def error(self, message: str) -> NoReturn:
        """Write the message as one line and exit."""
        self.exit(2, f"error: {' '.join(message.split())}\n")

    def _unknown(self, given: str) -> str:
        if not given.startswith("-"):
            return f"{given!r} belongs to no option"
        given = given.split("=")[0]
        similar = nearest(given.replace("_", "-"), re.findall(r"--[\w-]+", self.format_usage()))
        return f"there is no option {given}" + (f"; {similar} is the nearest" if similar else "; see --help")


def positive(text: str) -> int:
    """A whole number from 1.

    Raises:
        ArgumentTypeError, ValueError: it is something else; argparse names the argument.
    """
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, got {value}")
    return value


def not_negative(text: str) -> float:
    """A number from 0.

    Raises:
        ArgumentTypeError, ValueError: it is something else; argparse names the argument.
    """
    value = float(text)
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"must be 0 or more, got {value}")
    return value
