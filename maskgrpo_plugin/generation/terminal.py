"""Text in a terminal: what is safe to show, how wide it is, and a block of lines that is redrawn in place."""

import os
import shutil
import sys
import time
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TextIO

ESCAPE = "\x1b["
STYLES = {"plain": "", "new": f"{ESCAPE}1;32m", "hidden": f"{ESCAPE}2m", "note": f"{ESCAPE}2m"}
_RESET = f"{ESCAPE}0m"
_TAB = "    "


@dataclass(frozen=True)
class Piece:
    """Some text in one style of `STYLES`."""

    text: str
    style: str = "plain"


def visible(text: str) -> str:
    """Text without what would steer a terminal: control characters but the line feed become `\\x1b` and the like, and
    so do those that turn the direction of writing around; a tab is four spaces.
    """
    return "".join(_visible(character) for character in text.replace("\t", _TAB))


def width(text: str) -> int:
    """Columns that visible text takes on one line; wide East Asian characters take two, combining ones none."""
    return sum(_columns(character) for character in text)


def wrap(pieces: Iterable[Piece], columns: int) -> list[list[Piece]]:
    """Break pieces into lines of at most `columns`, at line feeds and wherever a line is full."""
    lines: list[list[Piece]] = [[]]
    used = 0
    for piece in pieces:
        run = ""
        for character in visible(piece.text):
            wide = _columns(character)
            if character == "\n" or used + wide > columns:
                lines[-1] += [Piece(run, piece.style)] if run else []
                lines.append([])
                run, used = "", 0
            if character != "\n":
                run, used = run + character, used + wide
        lines[-1] += [Piece(run, piece.style)] if run else []
    return lines


class Screen:
    """A block of lines at the end of a terminal, redrawn in place.

    Args:
        stream: the terminal.
        size: of it, in columns and lines.
        interval: seconds that must pass before lines are drawn again.
        clock: seconds.
    """

    def __init__(
        self,
        stream: TextIO,
        size: Callable[[], os.terminal_size],
        *,
        interval: float = 0.05,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.stream, self.size, self.interval, self.clock = stream, size, interval, clock
        self._drawn = 0
        self._due = float("-inf")

    @property
    def columns(self) -> int:
        """Columns that a line may take; the last one stays free, where terminals differ in when they break."""
        return max(1, self.size().columns - 1)

    @property
    def is_due(self) -> bool:
        """Whether the interval has passed since the last drawing."""
        return self.clock() >= self._due

    def draw(self, lines: Sequence[Sequence[Piece]], focus: int | None = None) -> None:
        """Put these lines in the place of those before.

        Args:
            lines: as `wrap` gives them; of more than the terminal has, those around `focus` are drawn.
            focus: number of the line that is to be seen; None: the last.
        """
        shown = self._window(lines, len(lines) - 1 if focus is None else focus)
        text = "".join("".join(map(_styled, line)) + "\n" for line in shown)
        self.stream.write(self._start() + text)
        self.stream.flush()
        self._drawn, self._due = len(shown), self.clock() + self.interval

    def clear(self) -> None:
        """Take the lines away."""
        if self._drawn:
            self.stream.write(self._start())
            self.stream.flush()
        self._drawn, self._due = 0, float("-inf")

    def _start(self) -> str:
        """To the first column of the first line that is drawn, and everything from there on away."""
        return (f"{ESCAPE}{self._drawn}A" if self._drawn else "") + f"\r{ESCAPE}J"

    def _window(self, lines: Sequence[Sequence[Piece]], focus: int) -> list[Sequence[Piece]]:
        room = max(1, self.size().lines - 1)
        if len(lines) <= room:
            return list(lines)
        room = max(1, room - 1)  # one line says how many are not drawn
        first = min(max(0, focus - room + 1), len(lines) - room)
        note = Piece(f"… {len(lines) - room} more lines"[: self.columns], "note")
        return [*lines[first : first + room], [note]]


def terminal_size() -> os.terminal_size:
    """Columns and lines of the terminal, as it is now."""
    return shutil.get_terminal_size()


def is_terminal() -> bool:
    """Whether a person is at both ends."""
    return sys.stdin.isatty() and sys.stdout.isatty()


def _styled(piece: Piece) -> str:
    style = STYLES[piece.style]
    return f"{style}{piece.text}{_RESET}" if style else piece.text


def _columns(character: str) -> int:
    if unicodedata.combining(character) or unicodedata.category(character) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in ("W", "F") else 1


def _visible(character: str) -> str:
    category = unicodedata.category(character)
    if character == "\n" or (category not in ("Cc", "Cs") and unicodedata.bidirectional(character) not in _TURNS):
        return character
    return f"\\x{ord(character):02x}" if ord(character) < 256 else f"\\u{ord(character):04x}"


_TURNS = ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")
