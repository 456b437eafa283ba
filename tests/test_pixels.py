"""Contact sheets: values, places, captions, and refused shapes."""

import numpy as np
import pytest
import torch
from PIL import Image

from maskgrpo_plugin.pixels import contact_sheet, to_bytes, to_images, to_pixels, write_contact_sheet


def test_values_are_clipped_and_rounded():
    assert to_bytes(torch.tensor([-2.0, -1.0, 0.0, 1.0, 3.0])).tolist() == [0, 0, 128, 255, 255]


def test_images_lie_in_rows_from_the_top_left():
    pixels = torch.stack([torch.full((3, 4, 6), value) for value in (-1.0, 0.0, 1.0)])
    sheet = np.asarray(contact_sheet(pixels, columns=2, gap=1, scale=2))
    assert sheet.shape == (2 * (8 + 1) + 1, 2 * (12 + 1) + 1, 3)
    assert (sheet[1:9, 1:13] == 0).all()
    assert (sheet[1:9, 14:26] == 128).all()
    assert (sheet[10:18, 1:13] == 255).all()
    assert (sheet[10:18, 14:26] == 255).all()  # no fourth image: the ground
    assert (sheet[0] == 255).all()


def test_grey_images_and_small_ones_are_scaled():
    assert contact_sheet(torch.zeros(1, 1, 8, 8), gap=0).size == (64, 64)
    assert contact_sheet(torch.zeros(1, 3, 100, 100), gap=0).size == (100, 100)


def test_captions_stand_under_their_images(tmp_path):
    pixels = torch.full((2, 3, 8, 8), 1.0)
    plain = contact_sheet(pixels)
    write_contact_sheet(pixels, tmp_path / "new" / "sheet.png", ["seven", "a very long caption that is cut"])
    with Image.open(tmp_path / "new" / "sheet.png") as written:
        assert written.format == "PNG" and written.size[1] > plain.size[1]
        ink = np.asarray(written) < 128
    assert ink[68:].any() and not ink[:66].any()
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["sheet.png"]


@pytest.mark.parametrize("shape", [(3, 8, 8), (0, 3, 8, 8), (1, 2, 8, 8)])
def test_other_shapes_are_refused(shape):
    with pytest.raises(ValueError, match="pixels must be"):
        contact_sheet(torch.zeros(shape))


def test_other_numbers_are_refused():
    pixels = torch.zeros(2, 3, 8, 8)
    with pytest.raises(ValueError, match="1 captions for 2 images"):
        contact_sheet(pixels, ["one"])
    with pytest.raises(ValueError, match="columns=0"):
        contact_sheet(pixels, columns=0)


def test_images_become_pixels_and_come_back():
    images = np.random.default_rng(0).integers(0, 256, (3, 4, 5, 3), dtype=np.uint8)
    pixels = to_pixels(list(images))
    assert pixels.shape == (3, 3, 4, 5) and pixels.min() >= -1 and pixels.max() <= 1
    assert np.array_equal(to_images(pixels).numpy(), images)
