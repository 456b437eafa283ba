"""The contact sheets of a run by step, as data URIs of a size that a page can hold."""

import base64
import io
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

from maskgrpo_plugin.run_report.samples import evenly_chosen

WIDEST = 1600
LARGEST_PNG = 400_000  # bytes; a larger sheet is written anew as JPEG
QUALITY = 85


@dataclass
class Sheets:
    """The contact sheets of one run.

    Attributes:
        sheets: dictionaries `step`, `uri`, `width` and `height`.
        notes: what was left out.
    """

    sheets: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def read_sheets(folder: Path, most: int, started: float = 0.0) -> Sheets:
    """The sheets `step_<n>.png` of a folder.

    Args:
        folder: of the sheets.
        most: sheets that are read, of evenly chosen steps.
        started: files last written before it, in seconds since 1970, are of another run and left out.
    """
    found, files, older = Sheets(), [], 0
    for path in folder.glob("step_*.png"):
        step = re.fullmatch(r"step_(\d+)", path.stem)
        if step is None:
            continue
        if path.stat().st_mtime < started:
            older += 1
        else:
            files.append((int(step[1]), path))
    if older:
        found.notes.append(f"{older} files in {folder.name} are older than the run and were left out")
    files.sort()
    chosen = evenly_chosen(files, [1] * len(files), most)
    if len(chosen) < len(files):
        found.notes.append(f"contact sheets of {len(chosen)} of {len(files)} steps are shown")
    for number, path in chosen:
        try:
            found.sheets.append({"step": number, **_embedded(path)})
        except (OSError, UnidentifiedImageError, ValueError, Image.DecompressionBombError):
            found.notes.append(f"{folder.name}/{path.name} is no image that can be read; it was left out")
    return found


def _embedded(path: Path) -> dict[str, Any]:
    content = path.read_bytes()
    with Image.open(io.BytesIO(content)) as image:
        image.load()
        if image.format == "PNG" and image.width <= WIDEST and len(content) <= LARGEST_PNG:
            return _told(content, "png", image)
        small = image.convert("RGB")
    if small.width > WIDEST:
        height = max(1, round(small.height * WIDEST / small.width))
        small = small.resize((WIDEST, height), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    small.save(file, format="JPEG", quality=QUALITY)
    return _told(file.getvalue(), "jpeg", small)


def _told(content: bytes, kind: str, image: Image.Image) -> dict[str, Any]:
    uri = f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
    return {"uri": uri, "width": image.width, "height": image.height}
