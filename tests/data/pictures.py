"""Small pictures of noise, as pixels and as files."""

import io

import numpy as np
from PIL import Image


def picture(seed, height=8, width=8):
    """Pixels (height, width, 3) uint8."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def stored(image, format="PNG", **options):
    """The content of an image file."""
    file = io.BytesIO()
    image.save(file, format=format, **options)
    return file.getvalue()


def png(pixels):
    """The content of a PNG file of pixels."""
    return stored(Image.fromarray(pixels))
