"""Images with what belongs to them, as the readers of captions and of questions give them, and where the images lie."""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from maskgrpo_plugin.data.records import BadRecord, DataError
from maskgrpo_plugin.files import stat_digest

IMAGE_KEYS = ("image", "jpg", "png", "webp", "file_name")
LISTS = (".jsonl", ".json", ".tsv")  # files of records that name image files


@dataclass(frozen=True)
class ImageRecord:
    """An image that is not read yet, or not decoded.

    Attributes:
        image: content of the file, or its path.
        fields: columns of the row beside the codes.
    """

    image: bytes | Path
    fields: Mapping[str, Any]


Placed = tuple[str, ImageRecord | DataError]
Records = Iterator[Placed]  # each with its place: file, and line or member; a DataError stands for a bad one


def image_of(value: Any, folder: Path) -> bytes | Path:
    """The image that a record holds.

    Args:
        value: the file's content, a path relative to `folder`, or both as Hugging Face writes them ({bytes, path}).
        folder: what paths are relative to.

    Raises:
        BadRecord: none of them, or a path that is absolute or leaves the folder.
    """
    if isinstance(value, Mapping):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes) and value:
        return value
    if not isinstance(value, str) or not value.strip():
        raise BadRecord("record without an image")
    path = PurePosixPath(value)
    if path.is_absolute() or ".." in path.parts:
        raise BadRecord("path of an image that is not relative to its folder", value)
    return folder / path


def input_digest(path: Path, read: Callable[[], Records] | None) -> str:
    """Names the state of an input: size and time of a file; of images that are files of their own, theirs and the rows.

    Args:
        path: the file; of no account where `read` is given.
        read: records whose images are files; they are not opened.

    Raises:
        DataError: see `read`.
    """

    def entries() -> Iterator[tuple[str, Path | None]]:
        if read is None:
            yield "", path
            return
        for place, record in read():
            if isinstance(record, ImageRecord):
                file = record.image if isinstance(record.image, Path) else None
                yield json.dumps([place, str(file), record.fields]), file
            else:
                yield json.dumps([place, str(record)]), None

    return stat_digest(entries())
