"""Files and folders that are there whole or not at all, and temporary ones that are the user's alone."""

import contextlib
import hashlib
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from maskgrpo_plugin.errors import OptionError


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path` for a file or a folder, which takes the place of `path` after the block.

    Where the block raises, `path` stays as it was and what was written is removed.
    """
    unfinished = path.with_name(path.name + ".tmp")
    _remove(unfinished)
    try:
        yield unfinished
        if unfinished.is_dir():
            _remove(path)
        unfinished.replace(path)
    except BaseException:
        _remove(unfinished)
        raise


def file_digest(path: Path) -> str:
    """The first 12 digits of a file's SHA-256."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()[:12]


def stat_digest(entries: Iterable[tuple[str, Path | None]]) -> str:
    """The first 12 digits of a SHA-256 over names, each with size and time of its file where it has one that is there.

    Args:
        entries: pairs of a name and a file, or None for a name alone.
    """
    total = hashlib.sha256()
    for name, path in entries:
        found = path.stat() if path is not None and path.exists() else None
        values = [name] if found is None else [name, found.st_size, found.st_mtime_ns]
        total.update((json.dumps(values) + "\n").encode())
    return total.hexdigest()[:12]


def private_temporary_folder() -> Path:
    """A folder in the temporary folder that only this user can write to, the same one in every call.

    Its name can be guessed, so another user may have made it: what is there is used only where it is this user's own
    folder, no link, and closed to others.

    Raises:
        OptionError: something else has its place.
    """
    folder = Path(tempfile.gettempdir()) / f"maskgrpo_{os.getuid()}"
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or stat.S_IMODE(found.st_mode) & 0o077:
        raise OptionError("TMPDIR", str(folder.parent), f"{folder} is no folder that is this user's alone (mode 700)")
    return folder


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
