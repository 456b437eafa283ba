"""An image tokenizer with the square of pixels that it is given: images in, codes out."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from maskgrpo_plugin.errors import OptionError, first_line
from maskgrpo_plugin.files import file_digest
from maskgrpo_plugin.models.families import ImageFamily, build_family
from maskgrpo_plugin.models.families.base import ImageTokenizerConfig
from maskgrpo_plugin.models.image_tokenizers import image_tokenizer_config, load_image_tokenizer
from maskgrpo_plugin.pixels import to_pixels

DEFAULT_RESOLUTION = 256
DTYPES = ("float32", "bfloat16", "float16")
CONFIG, WEIGHTS = "config.json", (".safetensors", ".bin")


class ImageEncoder:
    """Codes of square images by one image tokenizer, whose weights are loaded with the first batch.

    Args:
        folder: of the image tokenizer.
        model: folder of the checkpoint that the codes are for, to whose codebook and number of image tokens they must
            fit; None: of any.
        resolution: height and width of the images in pixels; None: what the checkpoint's square of image tokens takes,
            without a checkpoint 256.
        device, dtype: what is computed on and in.

    Attributes:
        side: the resolution.
        grid: rows and columns of tokens.
        config: the image tokenizer's.

    Raises:
        OptionError: a folder that holds no image tokenizer or no checkpoint with images, or a resolution that does not
            fit them.
    """

    def __init__(
        self, folder: Path, model: Path | None, resolution: int | None, device: str = "cpu", dtype: str = "float32"
    ):
        self.folder, self.device, self.dtype = folder, device, dtype
        self.config = _config(folder)
        family = _family(model) if model else None
        self.side = resolution or (self._fitting(family) if family else DEFAULT_RESOLUTION)
        try:
            grid = family.image_grid if family else None
            self.grid = grid(self.config, self.side, self.side) if grid else self.config.grid(self.side, self.side)
        except ValueError as error:
            raise OptionError("--resolution", self.side, str(error)) from None

    @cached_property
    def tokenizer(self) -> Any:
        """The image tokenizer.

        Raises:
            OptionError: its weights do not fit its config, or the device cannot be used.
        """
        try:
            tokenizer = load_image_tokenizer(str(self.folder), self.device)
        except (ValueError, OSError, RuntimeError, ImportError) as error:
            raise OptionError("--image-tokenizer", str(self.folder), first_line(error)) from None
        return tokenizer.to(getattr(torch, self.dtype))

    def __call__(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """Codes (B, h·w), row by row from the top left, of B images (S, S, 3) uint8."""
        pixels = to_pixels(images).to(self.device, getattr(torch, self.dtype))
        return self.tokenizer.get_code(pixels).cpu().numpy()

    def settings(self) -> dict[str, Any]:
        """What decides the codes of an image, for a manifest; the tokenizer by its files' digests."""
        files = sorted(path for path in self.folder.iterdir() if path.suffix in WEIGHTS or path.name == CONFIG)
        return {
            "image_tokenizer": {path.name: file_digest(path) for path in files},
            "resolution": self.side,
            "dtype": self.dtype,
            "device": self.device.partition(":")[0],
        }

    def _fitting(self, family: ImageFamily) -> int:
        try:
            rows, _ = family.default_grid()
        except ValueError as error:
            raise OptionError("--resolution", None, str(error)) from None
        return rows * self.config.downsampling


def _config(folder: Path) -> ImageTokenizerConfig:
    if not (folder / CONFIG).is_file():
        raise OptionError("--image-tokenizer", str(folder), "the folder of an image tokenizer, with its config.json")
    try:
        return image_tokenizer_config(str(folder))
    except (ImportError, ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise OptionError("--image-tokenizer", str(folder), f"no image tokenizer: {first_line(error)}") from None


def _family(model: Path) -> ImageFamily:
    from transformers import AutoConfig, AutoTokenizer

    import maskgrpo_plugin  # noqa: F401  (makes transformers know the models)

    if not (model / CONFIG).is_file():
        raise OptionError("--model", str(model), "the folder of a checkpoint, with its config.json")
    try:
        family = build_family(AutoConfig.from_pretrained(model), AutoTokenizer.from_pretrained(model))
    except (ValueError, OSError, KeyError) as error:
        raise OptionError("--model", str(model), first_line(error)) from None
    if not isinstance(family, ImageFamily):
        raise OptionError("--model", str(model), f"models of the family {family.name} have no images")
    return family
