"""Pixels as 8-bit values and as floats in [-1, 1], and contact sheets: many images as one PNG, with captions."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from maskgrpo_plugin.files import written_whole

__all__ = ["contact_sheet", "to_bytes", "to_images", "to_pixels", "write_contact_sheet"]

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw

_CAPTION_HEIGHT = 12
_SMALLEST_TILE = 64


def to_bytes(pixels: Tensor) -> Tensor:
    """8-bit values of pixels in [-1, 1]; what lies outside is clipped; any shape."""
    return ((pixels.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def to_images(pixels: Tensor) -> Tensor:
    """Pixels (B, 3, H, W) in [-1, 1] as images (B, H, W, 3) uint8; values outside are clipped."""
    return to_bytes(pixels).permute(0, 2, 3, 1).contiguous()


def to_pixels(images: Sequence[np.ndarray]) -> Tensor:
    """Pixels (B, 3, H, W) float32 in [-1, 1] of B images (H, W, 3) uint8 of one size."""
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 127.5 - 1


def contact_sheet(
    pixels: Tensor, captions: Sequence[str] | None = None, *, columns: int = 8, gap: int = 2, scale: int | None = None
) -> "Image":
    """Lay images out in rows, from the top left.

    Args:
        pixels: (B, C, H, W), C being 1 or 3, values in [-1, 1].
        captions: one per image, written under it and cut at its width; None for none.
        columns: images per row, at least 1.
        gap: pixels between images.
        scale: how often a pixel is repeated; None: as often as makes an image 64 pixels wide, at least once.

    Returns:
        An RGB image.

    Raises:
        ValueError: shapes or numbers that do not fit.
    """
    if pixels.dim() != 4 or pixels.shape[0] == 0 or pixels.shape[1] not in (1, 3):
        raise ValueError(f"pixels must be (B, 1 or 3, H, W) with B at least 1, got {tuple(pixels.shape)}")
    if captions is not None and len(captions) != pixels.shape[0]:
        raise ValueError(f"{len(captions)} captions for {pixels.shape[0]} images")
    for name, value, low in (("columns", columns, 1), ("gap", gap, 0), ("scale", 1 if scale is None else scale, 1)):
        if value < low:
            raise ValueError(f"{name}={value}: allowed are {low} or more")
    from PIL import Image, ImageDraw  # only where a sheet is drawn

    factor = scale or max(1, -(-_SMALLEST_TILE // pixels.shape[3]))
    tiles = F.interpolate(pixels.detach().cpu().float(), scale_factor=float(factor), mode="nearest")
    tiles = to_images(tiles.expand(-1, 3, -1, -1))
    count, height, width = tiles.shape[:3]
    step_x, step_y = width + gap, height + gap + (_CAPTION_HEIGHT if captions is not None else 0)
    rows, columns = -(-count // columns), min(columns, count)
    sheet = Image.new("RGB", (columns * step_x + gap, rows * step_y + gap), "white")
    draw = ImageDraw.Draw(sheet)
    for i, tile in enumerate(tiles):
        x, y = gap + i % columns * step_x, gap + i // columns * step_y
        sheet.paste(Image.fromarray(tile.contiguous().numpy()), (x, y))
        if captions is not None:
            draw.text((x, y + height), _fit(captions[i], width, draw), fill="black")
    return sheet


def write_contact_sheet(pixels: Tensor, path: Path, captions: Sequence[str] | None = None, *, columns: int = 8) -> None:
    """Write `contact_sheet` as a PNG, whole or not at all; the folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as file:
        contact_sheet(pixels, captions, columns=columns).save(file, format="PNG")


def _fit(text: str, width: int, draw: "ImageDraw") -> str:
    """The longest start of `text` that is at most `width` pixels wide."""
    while text and draw.textlength(text) > width:
        text = text[:-1]
    return text
