"""Image scorers: preprocessing against arithmetic and Pillow, and settings of the kinds that checkpoints have."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from maskgrpo_plugin.models.image_scorers import PREPROCESSOR, Preprocessing


def test_values_are_normalised_by_channel():
    preprocessing = Preprocessing(2, 2, False, (0.5, 0.0, 0.25), (0.5, 1.0, 0.25))
    pixels = torch.tensor([-1.0, 0.0, 1.0])[None, :, None, None].expand(1, 3, 2, 2)
    assert preprocessing(pixels)[0, :, 0, 0].tolist() == [-1.0, 0.5, 3.0]


def test_resizing_equals_pillows_bicubic():
    values = torch.randint(0, 256, (12, 20, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    expected = np.asarray(Image.fromarray(values.numpy()).resize((10, 6), Image.Resampling.BICUBIC)) / 255
    pixels = values.permute(2, 0, 1)[None] / 127.5 - 1
    ours = Preprocessing(6, 10, False, (0.0,) * 3, (1.0,) * 3)(pixels)[0].permute(1, 2, 0)
    assert np.abs(ours.numpy() - expected).max() < 1.5 / 255


def test_the_centre_is_cropped():
    preprocessing = Preprocessing(4, 4, True, (0.0,) * 3, (1.0,) * 3)
    pixels = torch.linspace(-1, 1, 8)[None, None, None, :].expand(1, 3, 4, 8)
    torch.testing.assert_close(preprocessing(pixels), (pixels[..., 2:6] + 1) / 2)


@pytest.mark.parametrize(
    "settings",
    [
        {"size": 8, "crop_size": 4, "do_center_crop": True},
        {"size": {"shortest_edge": 8}, "crop_size": {"height": 4, "width": 4}, "do_center_crop": True},
        {"size": {"height": 4, "width": 4}},
        {"size": 4},
    ],
)
def test_sizes_as_checkpoints_write_them(tmp_path, settings):
    values = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
    (tmp_path / PREPROCESSOR).write_text(json.dumps(settings | values))
    preprocessing = Preprocessing.from_folder(tmp_path)
    assert preprocessing(torch.zeros(1, 3, 16, 16)).shape == (1, 3, 4, 4)


def test_settings_survive_saving(tmp_path):
    for keep_ratio in (False, True):
        preprocessing = Preprocessing(6, 6, keep_ratio, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
        preprocessing.save(tmp_path, "CLIPImageProcessor")
        assert Preprocessing.from_folder(tmp_path) == preprocessing


def test_a_folder_that_names_no_size_is_refused(tmp_path):
    (tmp_path / PREPROCESSOR).write_text("{}")
    with pytest.raises(ValueError, match="names no size"):
        Preprocessing.from_folder(tmp_path)
