"""Files and folders that are there whole or not at all."""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path


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


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
