"""From an image file to the square of pixels that an image tokenizer takes, as the published code prepares images."""

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from maskgrpo_plugin.data.records import BadRecord
from maskgrpo_plugin.errors import first_line

FORMATS = ("JPEG", "PNG", "WEBP")
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
MOST_BYTES = 1 << 26  # of an image file
UNREADABLE = "image that cannot be read"
TOO_LARGE = "image that is too large"


def square_image(image: bytes | Path, side: int) -> np.ndarray:
    """An image upright, in RGB, its shorter side resized to `side` (bicubic), its middle cut out.

    EXIF's orientation is honoured, what is transparent becomes white, 16 bits become 8. An image of 40 × 20 pixels at
    side 10 is resized to 20 × 10, of which columns 5 to 14 stay.

    Args:
        image: a JPEG, PNG or WebP file, or its content; of an animation the first image is taken.
        side: height and width of the square, in pixels.

    Returns:
        (side, side, 3) uint8.

    Raises:
        BadRecord: no file, no image that can be read, or one that is too large: more bytes than `MOST_BYTES`, more
            pixels than Pillow's limit against decompression bombs, or more than that once resized (a very long one).
    """
    try:
        if isinstance(image, Path):
            if not image.is_file():
                raise BadRecord("image that does not exist", image.name)
            size = image.stat().st_size
        else:
            size = len(image)
        if size > MOST_BYTES:
            raise BadRecord(TOO_LARGE, f"{size} bytes of at most {MOST_BYTES}")
        with Image.open(image if isinstance(image, Path) else io.BytesIO(image), formats=FORMATS) as opened:
            _check_pixels(*opened.size)
            upright = ImageOps.exif_transpose(opened)
            return _centre(_rgb(upright), side)
    except BadRecord:
        raise
    except UnidentifiedImageError:  # its message names an object in memory
        raise BadRecord(UNREADABLE, f"none of {', '.join(FORMATS)}") from None
    except Image.DecompressionBombError as error:
        raise BadRecord(TOO_LARGE, first_line(error)) from None
    except Exception as error:  # Pillow and its codecs have errors of many kinds
        raise BadRecord(UNREADABLE, first_line(error)) from None


def _check_pixels(width: int, height: int) -> None:
    most = Image.MAX_IMAGE_PIXELS
    if most is not None and width * height > most:
        raise BadRecord(TOO_LARGE, f"{width} × {height} pixels; at most {most} in all")


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _centre(image: Image.Image, side: int) -> np.ndarray:
    width, height = image.size
    short = min(width, height)
    resized = side * width // short, side * height // short
    _check_pixels(*resized)
    left, top = (round((length - side) / 2) for length in resized)
    return np.asarray(image.resize(resized, Image.Resampling.BICUBIC).crop((left, top, left + side, top + side)))
