"""Estimators of policy ratios by name, one file per family; `base.py` is their contract."""

from importlib import import_module
from pkgutil import iter_modules

from maskgrpo_plugin.diffusion.estimators.base import (
    CANVASES,
    ESTIMATORS,
    Estimator,
    Pass,
    Rows,
    build_estimator,
    clean_copy,
    make_pass,
    register_estimator,
)

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")  # each registers its estimators

__all__ = [
    "CANVASES",
    "ESTIMATORS",
    "Estimator",
    "Pass",
    "Rows",
    "build_estimator",
    "clean_copy",
    "make_pass",
    "register_estimator",
]
