"""Pictures that are asked about: from a file to the square of pixels, and the codes, that a checkpoint takes."""

import logging
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from maskgrpo_plugin.data.records import BadRecord
from maskgrpo_plugin.data.square_images import square_image
from maskgrpo_plugin.errors import OptionError
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
    """A picture as `square_image` prepares those of data sets; a warning says what it cuts off.

    Returns:
        (side, side, 3) uint8.

    Raises:
        OptionError: a file that is no picture that is read, or one that is too large.
    """
    try:
        square = square_image(file, side)
    except BadRecord as error:
        raise OptionError("--image", str(file), str(error)) from None
    with Image.open(file) as opened:
        width, height = opened.size
    if width != height:
        shape = f"{width} × {height}"
        logger.warning("%s: of its %s pixels the square in the middle is seen, %d × %d", file, shape, side, side)
    return square


def picture_codes(image: np.ndarray, tokenizer: ImageDecoder, device: torch.device) -> list[int]:
    """Codes of a picture (H, W, 3) uint8, row by row."""
    return tokenizer.model.get_code(to_pixels([image]).to(device))[0].tolist()
