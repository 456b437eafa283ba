"""Modules and objects by what a user writes in a config: `package.module`, `path/to/file.py`, and `…:name`."""

import hashlib
import importlib
import importlib.util
import os
import pkgutil
import sys
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

from maskgrpo_plugin.errors import OptionError, first_line


def import_place(place: str) -> ModuleType:
    """The module of a dotted name, or of a Python file.

    A file is imported once per process, whoever asks for it, under its own name where no other module has that name;
    its folder goes to the end of `sys.path`, so that it can import its neighbours.

    Args:
        place: `package.module` or `path/to/file.py`; `~` is the home folder.

    Raises:
        ValueError: there is no such module or file. What the module raises when it is imported is passed on.
    """
    return _import_file(Path(os.path.expanduser(place)).resolve()) if place.endswith(".py") else _import_module(place)


def load_object(path: str) -> Any:
    """What an import path names.

    Args:
        path: `package.module:name` or `path/to/file.py:name`.

    Raises:
        ValueError: the path is of neither form, or there is no such file, module or name in it.
    """
    place, colon, name = path.rpartition(":")
    if not colon or not place or not name.isidentifier():
        raise ValueError(f"{path!r} is no import path; write package.module:name or path/to/file.py:name")
    module = import_place(place)
    if not hasattr(module, name):
        raise ValueError(f"{place} has no {name!r}")
    return getattr(module, name)


def check_class(key: str, name: Any) -> None:
    """Check that a setting names a class that can be imported, `package.module.Class`; null is no class.

    Raises:
        OptionError: it cannot be imported.
    """
    if name is None:
        return
    module, _, attribute = str(name).rpartition(".")
    try:
        if not hasattr(importlib.import_module(module), attribute):
            raise ImportError(f"{module} has no {attribute}")
    except Exception as error:
        raise OptionError(key, name, f"allowed: package.module.Class; {first_line(error)}") from None


def import_modules_of(package: str, path: Iterable[str]) -> None:
    """Import every module of a package, in the order of their names, for what they register.

    Args:
        package: the package's `__name__`.
        path: its `__path__`.
    """
    for module in sorted(pkgutil.iter_modules(path), key=lambda module: module.name):
        importlib.import_module(f"{package}.{module.name}")


def _import_module(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(error.name + ".")):
            raise ValueError(f"there is no module {name!r}") from error
        raise


def _import_file(file: Path) -> ModuleType:
    if not file.is_file():
        raise ValueError(f"there is no file {str(file)!r}")
    for module in list(sys.modules.values()):
        if getattr(module, "__file__", None) == str(file) and getattr(module, "__name__", "") != "__main__":
            return module
    if str(file.parent) not in sys.path:
        sys.path.append(str(file.parent))
    name = (
        file.stem if _is_free(file.stem, file) else f"{file.stem}_{hashlib.sha256(str(file).encode()).hexdigest()[:12]}"
    )
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _is_free(name: str, file: Path) -> bool:
    """Whether `import name` would find this file and nothing else."""
    if name in sys.modules or not name.isidentifier():
        return False
    spec = importlib.util.find_spec(name)
    return spec is not None and spec.origin is not None and Path(spec.origin).resolve() == file
