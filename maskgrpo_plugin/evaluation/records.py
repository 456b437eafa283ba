"""An evaluation's folder: the generations as JSON Lines, each written as it is finished, and the settings they had."""

import json
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from maskgrpo_plugin.differences import first_difference, flat
from maskgrpo_plugin.errors import OptionError
from maskgrpo_plugin.files import written_whole

logger = logging.getLogger(__name__)

LENGTHS = "lengths"
Key = tuple[str, int, int]


class Records:
    """The generations in a folder; made anew or taken up again.

    Attributes:
        rows: the generations by (prompt id, length, sample).

    Args:
        folder: is made; `settings.json` and `generations.jsonl` lie in it.
        settings: what decides a generation, as plain data; `lengths` in it holds a section for each length.
        overwrite: begin anew whatever lies in the folder.

    Raises:
        OptionError: the folder's generations were made with other settings; the first that differs is named. Lengths
            that one side lacks are no difference.
        ValueError: a line of the generations, other than the last, cannot be read.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any], *, overwrite: bool = False):
        self.folder = folder
        self.path = folder / "generations.jsonl"
        if overwrite and (folder / "settings.json").is_file():
            self.path.unlink(missing_ok=True)
            (folder / "settings.json").unlink()
            shutil.rmtree(folder / "images", ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
        self._settle(json.loads(json.dumps(settings)))
        self.rows: dict[Key, dict[str, Any]] = {key_of(row): row for row in self._read()}
        self._file = self.path.open("a", encoding="utf-8")

    def add(self, row: dict[str, Any]) -> None:
        """Append a generation; it is in the file when this returns."""
        self._file.write(json.dumps(row, ensure_ascii=False) + "\n")
        self._file.flush()
        self.rows[key_of(row)] = row

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _settle(self, settings: dict[str, Any]) -> None:
        path = self.folder / "settings.json"
        if path.is_file():
            earlier = json.loads(path.read_text())
            difference = first_difference(_comparable(earlier, settings), _comparable(settings, earlier))
            if difference:
                name, before, now = difference
                raise OptionError(
                    f"--output-dir {self.folder}: {name}",
                    now,
                    f"its generations were made with {before!r}; give that, another folder, or --overwrite",
                )
            settings[LENGTHS] = earlier[LENGTHS] | settings[LENGTHS]
        with written_whole(path) as file:
            file.write_text(json.dumps(settings, indent=2))

    def _read(self) -> list[dict[str, Any]]:
        """The rows of the file; a torn last line is cut off."""
        content = self.path.read_bytes() if self.path.is_file() else b""
        whole = content[: content.rfind(b"\n") + 1]
        if whole != content:
            logger.warning("%s: the last line is torn and its generation is made again", self.path)
            with self.path.open("r+b") as file:
                file.truncate(len(whole))
        rows = []
        for number, line in enumerate(whole.splitlines(), start=1):
            try:
                rows.append(json.loads(line))
            except ValueError as error:
                raise ValueError(f"{self.path}, line {number}: not a generation") from error
        return rows


def key_of(row: Mapping[str, Any]) -> Key:
    """What names a generation: prompt id, length and sample."""
    return row["id"], row["length"], row["sample"]


def _comparable(settings: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """`settings` by dotted names, without the lengths that `other` lacks."""
    lengths = {name: value for name, value in settings[LENGTHS].items() if name in other[LENGTHS]}
    return flat({**settings, LENGTHS: lengths})
