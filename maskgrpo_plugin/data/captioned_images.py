"""Images with captions out of webdataset archives, parquet files, and folders or lists of image files."""

import json
import os
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from maskgrpo_plugin.data.chats import checked_text
from maskgrpo_plugin.data.image_records import IMAGE_KEYS, LISTS, ImageRecord, Placed, Records, image_of
from maskgrpo_plugin.data.records import BadRecord, DataError, as_object, first_key, read_file, shown_keys
from maskgrpo_plugin.data.square_images import MOST_BYTES, SUFFIXES, TOO_LARGE
from maskgrpo_plugin.errors import OptionError, first_line

CAPTION_KEYS = ("caption", "text", "prompt")
CAPTION_FILES = ("captions.jsonl", "metadata.jsonl", "captions.tsv")
ARCHIVES = (".tar", ".tar.gz", ".tgz")
MOST_TEXT = 1 << 20  # bytes of a caption's member
NO_CAPTION, NO_IMAGE = "image without a caption", "caption without an image"


def caption_reader(path: Path, caption_key: str | None = None, image_key: str | None = None) -> Callable[[], Records]:
    """What reads one input, from its beginning at each call.

    Args:
        path: a webdataset archive, a parquet file, a list of image files (.jsonl, .json, .tsv), or a folder with one of
            `CAPTION_FILES`. Images of a folder that the list does not name are bad records, after the others.
        caption_key: where a record or a .json member has its caption; None: the first of `CAPTION_KEYS` that is there,
            of an archive the .txt member before the .json.
        image_key: where a record has its image; None: the first of `IMAGE_KEYS` that is there.

    Raises:
        OptionError: an input of no such kind.
    """
    keys = Keys((caption_key,) if caption_key else CAPTION_KEYS, (image_key,) if image_key else IMAGE_KEYS)
    if path.is_dir():
        found = next((path / name for name in CAPTION_FILES if (path / name).is_file()), None)
        if found is None:
            raise OptionError("--input", str(path), f"the folder has none of {', '.join(CAPTION_FILES)}")
        return lambda: _folder(found, keys)
    if not path.is_file():
        raise OptionError("--input", str(path), "there is no such file or folder")
    if path.name.endswith(ARCHIVES):
        return lambda: _archive(path, caption_key)
    if path.suffix == ".parquet" or path.suffix in LISTS:
        return lambda: _listed(path, keys)
    raise OptionError("--input", str(path), f"allowed: a folder, {', '.join([*ARCHIVES, '.parquet', *LISTS])}")


class Keys(NamedTuple):
    """Names of a record's caption and image, of which the first that is there counts."""

    caption: tuple[str, ...]
    image: tuple[str, ...]


def image_files(folder: Path) -> Iterator[Path]:
    """Image files below a folder, by their suffix, in the order of their names."""
    for parent, folders, names in os.walk(folder):
        folders.sort()
        yield from (Path(parent) / name for name in sorted(names) if name.lower().endswith(SUFFIXES))


def _listed(path: Path, keys: Keys) -> Records:
    """Records of a list or of parquet, whose paths are relative to the file's folder."""
    for place, record in _tab_separated(path) if path.suffix == ".tsv" else read_file(path):
        try:
            yield place, _record(record, keys, path.parent)
        except DataError as error:
            yield place, error


def _folder(listed: Path, keys: Keys) -> Records:
    named = set()
    for place, record in _listed(listed, keys):
        if isinstance(record, ImageRecord):
            named.add(record.image)
        yield place, record
    for image in image_files(listed.parent):
        if image not in named:
            yield str(image), BadRecord(NO_CAPTION)


def _record(record: Any, keys: Keys, folder: Path) -> ImageRecord:
    record = as_object(record)
    caption, image = (first_key(record, names) for names in keys)
    if caption is None:
        raise BadRecord(NO_CAPTION, f"nothing under {', '.join(keys.caption)}; {shown_keys(record)}")
    if image is None:
        raise BadRecord(NO_IMAGE, f"nothing under {', '.join(keys.image)}; {shown_keys(record)}")
    return ImageRecord(image_of(record[image], folder), {"caption": _caption(record[caption])})


def _caption(value: Any) -> str:
    return checked_text(value, "caption").strip()


def _tab_separated(path: Path) -> Iterator[tuple[str, Any]]:
    """Records of a file with an image's path and its caption per line; a first line `file_name…` names the columns."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {path}: {error}") from error
    names = ["file_name", "caption"]
    for number, line in enumerate(lines, start=1):
        cells = line.rstrip("\r").split("\t")
        if number == 1 and cells[0] == "file_name":
            names = cells
        elif line.strip():
            fits = len(cells) == len(names)
            problem = BadRecord("another number of columns", f"{len(cells)} instead of {len(names)}")
            yield f"{path}:{number}", dict(zip(names, cells, strict=True)) if fits else problem


# ---- webdataset archives: members of one name follow one another


def _archive(path: Path, caption_key: str | None) -> Records:
    """Samples of an archive, which is read once from front to back; no member touches the disk."""
    try:
        with tarfile.open(path, "r:*") as archive:
            name: str | None = None
            members: dict[str, bytes | BadRecord] = {}
            for member in archive:
                stem, suffix = _split(member.name)
                if stem != name and members:
                    yield _sample(f"{path}:{name}", members, caption_key)
                    members = {}
                name = stem
                if member.isfile() and suffix in (*SUFFIXES, ".txt", ".json"):
                    members[suffix] = _content(archive, member, suffix)
            if members:
                yield _sample(f"{path}:{name}", members, caption_key)
            _check_end(archive)
    except (OSError, EOFError, tarfile.TarError, ValueError) as error:
        raise DataError(f"cannot read {path}: {first_line(error)}") from error


def _check_end(archive: tarfile.TarFile) -> None:
    """Raise ReadError where something else than the archive's end follows its last member, which tarfile lets pass."""
    if archive.fileobj is not None:
        archive.fileobj.seek(archive.offset)
        if archive.fileobj.read(tarfile.BLOCKSIZE).strip(b"\0"):
            raise tarfile.ReadError(f"no member and no end of an archive at byte {archive.offset}")


def _split(name: str) -> tuple[str, str]:
    """A member's name without what follows the first dot of its last part, and that: `a/b.c.jpg` -> `a/b`, `.c.jpg`."""
    folder, slash, last = name.rpartition("/")
    stem, dot, suffix = last.partition(".")
    return folder + slash + stem, dot + suffix.lower()


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo, suffix: str) -> bytes | BadRecord:
    most = MOST_BYTES if suffix in SUFFIXES else MOST_TEXT
    if member.size > most:
        reason = TOO_LARGE if suffix in SUFFIXES else "caption that is too large"
        return BadRecord(reason, f"{member.size} bytes of at most {most}")
    file = archive.extractfile(member)
    return file.read() if file is not None else b""


def _sample(place: str, members: dict[str, bytes | BadRecord], caption_key: str | None) -> Placed:
    """One sample's image and caption, or what is wrong with them."""
    try:
        images = [suffix for suffix in SUFFIXES if suffix in members]
        text = ".txt" if ".txt" in members and not caption_key else ".json"
        if text not in members:
            raise BadRecord(NO_CAPTION)
        if not images:
            raise BadRecord(NO_IMAGE)
        if len(images) > 1:
            raise BadRecord("more than one image for a caption", ", ".join(images))
        image, content = _usable(members[images[0]]), _usable(members[text])
        caption = _decoded(content) if text == ".txt" else _json_caption(_decoded(content), caption_key)
        return place + images[0], ImageRecord(image, {"caption": _caption(caption)})
    except DataError as error:
        return place, error


def _usable(content: bytes | BadRecord) -> bytes:
    if isinstance(content, BadRecord):
        raise content
    return content


def _decoded(content: bytes) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadRecord("caption that is no UTF-8", str(error)) from None


def _json_caption(content: str, caption_key: str | None) -> Any:
    try:
        values = as_object(json.loads(content))
    except (ValueError, RecursionError) as error:
        raise BadRecord("not JSON in UTF-8", str(error)) from None
    names = (caption_key,) if caption_key else CAPTION_KEYS
    name = first_key(values, names)
    if name is None:
        raise BadRecord(NO_CAPTION, f"nothing under {', '.join(names)}; {shown_keys(values)}")
    return values[name]
