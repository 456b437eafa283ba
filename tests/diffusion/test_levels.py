"""Schedules meet their end points; mask levels are the paper's."""

import math

import pytest
import torch

from maskgrpo_plugin.diffusion.levels import SCHEDULES, get_schedule, mask_levels


@pytest.mark.parametrize("name", sorted(SCHEDULES))
def test_end_points_are_exact(name):
    assert get_schedule(name)(0.0) == 1.0
    assert get_schedule(name)(1.0) == 0.0


def test_values():
    for x in torch.linspace(0, 1, 21, dtype=torch.float64).tolist():
        assert get_schedule("linear")(x) == pytest.approx(1 - x)
        assert get_schedule("cosine")(x) == pytest.approx(math.cos(math.pi * x / 2))


def test_unknown_schedule_lists_the_available():
    with pytest.raises(ValueError, match="'sigmoid' is not usable; allowed: cosine, linear"):
        get_schedule("sigmoid")


def test_mask_levels():
    assert mask_levels(4, 0.6) == pytest.approx([0.7, 0.8, 0.9, 0.999])
    assert mask_levels(1, 0.8) == [0.999]
    assert mask_levels(2, 0.8, cap=1.0) == pytest.approx([0.9, 1.0])


@pytest.mark.parametrize("gamma", [0.0, 1.0, -0.2, 1.5, math.nan])
def test_mask_levels_names_gamma(gamma):
    with pytest.raises(ValueError, match="gamma"):
        mask_levels(2, gamma)


@pytest.mark.parametrize("mu", [0, -1, 1.5])
def test_levels_name_mu(mu):
    with pytest.raises(ValueError, match="mu"):
        mask_levels(mu, 0.6)


def test_mask_levels_names_cap():
    with pytest.raises(ValueError, match="cap"):
        mask_levels(2, 0.6, cap=0.0)
