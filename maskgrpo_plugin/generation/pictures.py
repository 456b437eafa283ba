"""Pictures that are asked about: from a file to the square of pixels, and the codes, that a checkpoint takes."""

import logging
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

from maskgrpo_plugin.errors import OptionError, first_line
from maskgrpo_plugin.models.families import ImageFamily
from maskgrpo_plugin.pixels import to_pixels
from maskgrpo_plugin.workers.rollout.images import ImageDecoder

logger = logging.getLogger(__name__)


def picture_side(family: ImageFamily, tokenizer: ImageDecoder, size: tuple[int, int] | None) -> int:
    """Height and width in pixels of the pictures that a checkpoint reads.

    Args:
        family: the checkpoint's.
        tokenizer: its image tokenizer.
        size: height and width that `--image-size` asks for; None: the checkpoint's square of image tokens.

    Raises:
        OptionError: no square, or one that the image tokenizer does not divide.
    """
    config = tokenizer.model.config
    if size is None:
        return family.default_grid()[0] * config.downsampling
    if size[0] != size[1]:
        raise OptionError("--image-size", list(size), "pictures that are asked about are squares")
    try:
        family.image_grid(config, *size)
    except ValueError as error:
        raise OptionError("--image-size", list(size), str(error)) from error
    return size[0]


def read_picture(file: Path, side: int) -> np.ndarray:
    """A picture upright, in RGB on white, its shorter side resized to `side` (bicubic), its middle cut out.

    A picture of 40 × 20 pixels at side 10 is resized to 20 × 10, of which columns 5 to 14 stay.

    Returns:
        (side, side, 3) uint8.

    Raises:
        OptionError: a file that is no picture that Pillow reads, or one of too many pixels.
    """
    try:
        with Image.open(file) as opened:
            most = Image.MAX_IMAGE_PIXELS
            if most is not None and opened.width * opened.height > most:
                raise OptionError("--image", str(file), f"it has more than {most} pixels")
            return _middle(_on_white(ImageOps.exif_transpose(opened)), file, side)
    except OptionError:
        raise
    except Exception as error:  # Pillow and its codecs raise errors of many kinds
        raise OptionError("--image", str(file), f"not a picture that can be read: {first_line(error)}") from error


def picture_codes(image: np.ndarray, tokenizer: ImageDecoder, device: torch.device) -> list[int]:
    """Codes of a picture (H, W, 3) uint8, row by row."""
    return tokenizer.model.get_code(to_pixels([image]).to(device))[0].tolist()


def _on_white(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _middle(image: Image.Image, file: Path, side: int) -> np.ndarray:
    shorter = min(image.size)
    width, height = (side * length // shorter for length in image.size)
    left, top = round((width - side) / 2), round((height - side) / 2)
    if max(width, height) > side:
        shape = f"{image.width} × {image.height}"
        logger.warning("%s: of its %s pixels the square in the middle is seen, %d × %d", file, shape, side, side)
    resized = image.resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(resized.crop((left, top, left + side, top + side)))
