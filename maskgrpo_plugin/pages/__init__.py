"""HTML pages that hold their data and load nothing: templates, data that cannot break out, the look of tokens."""

import json
import re
from collections.abc import Mapping
from importlib.resources import files
from typing import Any


def part(package: str, name: str) -> str:
    """The text of a file beside the modules of a package."""
    return files(package).joinpath(name).read_text(encoding="utf-8")


def embedded(data: Any) -> str:
    """Data as JSON for a script element, in ASCII, in which nothing can end the element.

    Raises:
        ValueError: a number that is not finite, which JSON does not have.
    """
    text = json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def filled(template: str, parts: Mapping[str, str]) -> str:
    """A template with its marks replaced, all at once: a part may hold the mark of another.

    Args:
        template: a text.
        parts: by mark, such as `@DATA@`, what takes its place.
    """
    return re.sub("|".join(map(re.escape, parts)), lambda found: parts[found[0]], template)
