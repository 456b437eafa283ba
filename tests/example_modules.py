"""Scripts of examples/ as modules."""

import importlib.util
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def load_example(name: str, folder: str):
    """Import examples/<folder>/<name>.py as a module."""
    path = ROOT / "examples" / folder / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"{folder}_{name}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    sys.path.append(str(path.parent))  # its neighbours, as where it is run
    spec.loader.exec_module(module)
    return module
