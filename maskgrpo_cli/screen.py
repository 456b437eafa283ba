"""The screen of `maskgrpo train`: a few lasting lines, and one live line of the step; plain lines where it is piped."""

import re
import time
from collections.abc import Mapping
from typing import TextIO

from rich.console import Console
from rich.live import Live
from rich.text import Text

MOST_LINES = 60  # from start to end; errors come on top
KEPT_FOR_THE_END = 8
PIPED_SECONDS = 5.0  # between two lines of steps where nobody watches
CONTROL = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]|[\x00-\x08\x0b-\x1f\x7f]")


class Screen:
    """Writes lines for people: at most `MOST_LINES`, beside a live line, or beside a line of a step now and then.

    Args:
        stream: where it writes; a terminal gets the live line and colours.
        live: whether there is a live line; None: where `stream` is a terminal.
    """

    def __init__(self, stream: TextIO, live: bool | None = None):
        self.is_live = stream.isatty() if live is None else live
        self._stream = stream
        self._lines = 0
        self._seen: set[str] = set()
        self._last_step = -PIPED_SECONDS
        self._console = Console(file=stream, force_terminal=True) if self.is_live else None
        self._live: Live | None = None

    def line(self, text: str, style: str = "", *, last: bool = False) -> None:
        """A line that stays.

        Args:
            text: of untrusted content, so control characters are taken out.
            style: rich's, for a terminal.
            last: of the end of the run, for which there is always room.
        """
        self._lines += 1
        room = MOST_LINES if last else MOST_LINES - KEPT_FOR_THE_END
        if self._lines < room or last:
            self._write(text, style)
        elif self._lines == room:
            self._write("further lines are in the log alone", "dim")

    def warning(self, text: str) -> None:
        """A warning, once: those that differ in numbers alone are the same."""
        key = re.sub(r"\d+", "0", text)
        if key not in self._seen:
            self._seen.add(key)
            self.line(f"warning: {text}", "yellow")

    def error(self, text: str) -> None:
        """An error, whole however long it is."""
        self._write(text, "red")

    def step(self, title: str, parts: Mapping[str, str], *, last: bool = False) -> None:
        """The state of the run: in the live line, or as a line of its own every `PIPED_SECONDS`.

        Args:
            title: such as `step 3/64`.
            parts: values by label.
            last: a step that is shown however soon it comes.
        """
        text = "  ".join([title, *(f"{label} {value}" for label, value in parts.items())])
        if self._console is not None:
            self._show(Text(CONTROL.sub("", text), overflow="fold"))
        elif last or time.monotonic() - self._last_step >= PIPED_SECONDS:
            self._last_step = time.monotonic()
            self._write(text, "")

    def phase(self, text: str) -> None:
        """What the run does just now: in the live line alone."""
        if self._console is not None:
            self._show(Text(CONTROL.sub("", f"{text} …"), style="dim"))

    def close(self) -> None:
        """Leave the last live line where it is."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _show(self, text: Text) -> None:
        if self._live is None:
            self._live = Live(text, console=self._console, refresh_per_second=4, redirect_stdout=False)
            self._live.start()
        else:
            self._live.update(text)

    def _write(self, text: str, style: str) -> None:
        text = CONTROL.sub("", text)
        if self._console is not None:
            self._console.print(Text(text, style=style))
        else:
            self._stream.write(text + "\n")
            self._stream.flush()
