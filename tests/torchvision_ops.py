"""Lets CPU tests import torchvision beside a CPU build of torch that lacks its operators; does nothing elsewhere."""

import importlib.metadata
import sys

import torch

_LIBRARIES: list[torch.library.Library] = []


def define_missing_operators() -> None:
    """Declare `torchvision::nms` and `torchvision::qnms`, without an implementation, where they do not exist.

    PyPI's torchvision registers fake kernels for them at import and fails beside a torch it was not built for. Only
    image transforms are needed by the tests. To be called before anything imports transformers, which imports
    torchvision where it is installed.
    """
    try:
        importlib.metadata.version("torchvision")
    except importlib.metadata.PackageNotFoundError:
        return
    try:
        import torchvision  # noqa: F401
    except RuntimeError as error:
        if "torchvision::nms" not in str(error) or torch.cuda.is_available():
            raise
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _LIBRARIES.append(library)
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
