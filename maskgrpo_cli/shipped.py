"""Where the shipped configs are: in the folder of a checkout, or in the installed package."""

from importlib.resources import files
from pathlib import Path

PACKAGE = "maskgrpo_configs"  # what the folder configs/ is called where it is installed
CHECKOUT = Path(__file__).parents[1] / "configs"


def in_checkout() -> bool:
    """Whether the command runs from a checkout, an editable install among them."""
    return (CHECKOUT / "maskgrpo_base.yaml").is_file()


def config_source() -> str:
    """The configs' place in Hydra's form."""
    return f"file://{CHECKOUT}" if in_checkout() else f"pkg://{PACKAGE}"


def config_folder() -> Path:
    """The folder of the configs."""
    return CHECKOUT if in_checkout() else Path(str(files(PACKAGE)))
