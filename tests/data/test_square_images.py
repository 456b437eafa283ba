"""Images on their way to an image tokenizer: orientation, colours, the square that is cut out, and refused files."""

import warnings

import numpy as np
import pytest
from pictures import picture, stored
from PIL import Image

from maskgrpo_plugin.data import square_images
from maskgrpo_plugin.data.records import BadRecord
from maskgrpo_plugin.data.square_images import square_image


def test_an_image_of_the_right_size_stays_as_it_is(tmp_path):
    pixels = picture(0, 8, 8)
    assert np.array_equal(square_image(stored(Image.fromarray(pixels)), 8), pixels)
    (tmp_path / "a.png").write_bytes(stored(Image.fromarray(pixels)))
    assert np.array_equal(square_image(tmp_path / "a.png", 8), pixels)


@pytest.mark.parametrize(("height", "width"), [(8, 21), (21, 8), (8, 9)])
def test_the_middle_is_cut_out(height, width):
    pixels = picture(0, height, width)
    top, left = round((height - 8) / 2), round((width - 8) / 2)
    expected = pixels[top : top + 8, left : left + 8]
    assert np.array_equal(square_image(stored(Image.fromarray(pixels)), 8), expected)


@pytest.mark.parametrize(("height", "width"), [(32, 16), (16, 45), (5, 7), (33, 33)])
def test_the_shorter_side_is_resized_bicubically(height, width):
    pixels = picture(0, height, width)
    short = min(height, width)
    resized = Image.fromarray(pixels).resize((int(8 * width / short), int(8 * height / short)), Image.BICUBIC)
    top, left = round((resized.height - 8) / 2), round((resized.width - 8) / 2)
    expected = np.asarray(resized)[top : top + 8, left : left + 8]
    assert np.array_equal(square_image(stored(Image.fromarray(pixels)), 8), expected)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exifs_orientation_is_honoured(orientation):
    pixels = picture(0, 8, 8)
    turned = {
        1: pixels,
        2: pixels[:, ::-1],
        3: pixels[::-1, ::-1],
        4: pixels[::-1],
        5: pixels.transpose(1, 0, 2),
        6: np.rot90(pixels, -1),
        7: np.rot90(pixels, 2).transpose(1, 0, 2),
        8: np.rot90(pixels, 1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    for format, options in (("PNG", {}), ("WEBP", {"lossless": True})):
        content = stored(Image.fromarray(pixels), format, exif=exif.tobytes(), **options)
        assert np.array_equal(square_image(content, 8), turned)


def test_what_is_transparent_becomes_white():
    red = np.zeros((2, 2, 4), np.uint8)
    red[..., 0], red[..., 3] = 200, [[0, 255], [255, 0]]
    expected = np.full((2, 2, 3), 255)
    expected[[0, 1], [1, 0]] = (200, 0, 0)
    for format, options in (("PNG", {}), ("WEBP", {"lossless": True})):
        assert np.array_equal(square_image(stored(Image.fromarray(red), format, **options), 2), expected)
    grey = Image.fromarray(red[..., [0, 3]], "LA")
    assert np.array_equal(square_image(stored(grey), 2)[..., 0], expected[..., 0])
    half = Image.new("RGBA", (2, 2), (0, 0, 0, 51))
    assert np.array_equal(square_image(stored(half), 2), np.full((2, 2, 3), 204))
    palette = Image.fromarray(np.array([[0, 1], [1, 0]], np.uint8), "P")
    palette.putpalette([10, 20, 30, 40, 50, 60])
    square = square_image(stored(palette, transparency=1), 2)
    assert square[0, 0].tolist() == [10, 20, 30] and square[0, 1].tolist() == [255, 255, 255]


def test_other_modes_become_rgb_of_8_bits():
    grey = np.arange(4, dtype=np.uint8).reshape(2, 2) * 60
    for image in (Image.fromarray(grey), Image.fromarray(grey.astype(np.uint16) * 257)):
        assert np.array_equal(square_image(stored(image), 2), np.stack([grey] * 3, -1))
    black = Image.new("1", (2, 2), 1)
    assert (square_image(stored(black), 2) == 255).all()
    cmyk = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    assert abs(square_image(stored(cmyk, "JPEG", quality=100), 8).astype(int) - [255, 0, 0]).max() <= 3


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "cannot be read"),
        (b"text", "cannot be read"),
        (stored(Image.fromarray(picture(0, 64, 64)))[:900], "cannot be read"),
        (stored(Image.fromarray(picture(0, 64, 64)), "JPEG")[:700], "cannot be read"),
        (stored(Image.fromarray(picture(0, 8, 8)), "BMP"), "cannot be read"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n", "cannot be read"),
    ],
)
def test_what_is_no_image_is_refused(content, reason):
    with pytest.raises(BadRecord, match=reason):
        square_image(content, 8)


def test_a_file_that_is_not_there_is_named(tmp_path):
    for name in ("none.png", "."):
        with pytest.raises(BadRecord, match="does not exist"):
            square_image(tmp_path / name, 8)


def test_too_large_an_image_is_refused(monkeypatch):
    content = stored(Image.new("1", (100, 60)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        for most, message in ((5999, "100 × 60 pixels"), (2000, "pixels")):  # Pillow itself raises at twice its limit
            monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", most)
            with pytest.raises(BadRecord, match=f"too large.*{message}"):
                square_image(content, 8)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 6000)
    assert square_image(content, 8).shape == (8, 8, 3)
    with pytest.raises(BadRecord, match=r"too large.*48000 × 8 pixels"):
        square_image(stored(Image.new("1", (6000, 1))), 8)
    monkeypatch.setattr(square_images, "MOST_BYTES", len(content) - 1)
    with pytest.raises(BadRecord, match=r"too large.*bytes"):
        square_image(content, 8)
