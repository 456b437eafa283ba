"""Types of command-line arguments."""

import argparse


def positive(text: str) -> int:
    """A whole number from 1.

    Raises:
        ArgumentTypeError, ValueError: it is something else; argparse names the argument.
    """
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, got {value}")
    return value
