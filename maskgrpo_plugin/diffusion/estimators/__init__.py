"""Estimators of policy ratios by name, one file per family; `base.py` is their contract."""

from maskgrpo_plugin.diffusion.estimators import coupled, diffu_grpo, maskgrpo, trajectory, unigrpo  # noqa: F401
from maskgrpo_plugin.diffusion.estimators.base import (
    CANVASES,
    ESTIMATORS,
    Estimator,
    Pass,
    Rows,
    build_estimator,
    make_pass,
    register_estimator,
)

__all__ = [
    "CANVASES",
    "ESTIMATORS",
    "Estimator",
    "Pass",
    "Rows",
    "build_estimator",
    "make_pass",
    "register_estimator",
]
