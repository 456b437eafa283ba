"""Noise schedules meet their end points and slopes; mask levels are the paper's."""

import math

import pytest
import torch

from maskgrpo_plugin.diffusion.schedules import SCHEDULES, get_schedule, mask_levels, uniform_levels


@pytest.mark.parametrize("name", sorted(SCHEDULES))
def test_end_points_are_exact(name):
    schedule = get_schedule(name)
    assert schedule.mask_ratio(0.0) == 1.0
    assert schedule.mask_ratio(1.0) == 0.0
    for dtype in (torch.float32, torch.float64):
        ends = schedule.mask_ratio(torch.tensor([0.0, 1.0], dtype=dtype))
        assert ends.dtype == dtype
        assert ends.tolist() == [1.0, 0.0]


def test_values():
    x = torch.linspace(0, 1, 21, dtype=torch.float64)
    torch.testing.assert_close(get_schedule("linear").mask_ratio(x), 1 - x)
    torch.testing.assert_close(get_schedule("cosine").mask_ratio(x), torch.cos(math.pi * x / 2))
    assert get_schedule("cosine").mask_ratio(0.3) == pytest.approx(math.cos(math.pi * 0.15))


@pytest.mark.parametrize("name", sorted(SCHEDULES))
def test_derivative_is_the_slope(name):
    schedule = get_schedule(name)
    x = torch.linspace(0, 1, 11, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(schedule.mask_ratio(x).sum(), x)
    torch.testing.assert_close(schedule.derivative(x), slope)
    assert schedule.derivative(0.25) == pytest.approx(schedule.derivative(torch.tensor(0.25)).item())


@pytest.mark.parametrize("x", [-0.1, 1.1, math.nan])
def test_progress_out_of_range(x):
    for value in (x, torch.tensor([0.5, x])):
        with pytest.raises(ValueError, match=r"progress must be in \[0, 1\]"):
            get_schedule("cosine").mask_ratio(value)
        with pytest.raises(ValueError, match=r"progress must be in \[0, 1\]"):
            get_schedule("linear").derivative(value)


def test_unknown_schedule_lists_the_available():
    with pytest.raises(ValueError, match="'sigmoid'; available: cosine, linear"):
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
    with pytest.raises(ValueError, match="mu"):
        uniform_levels(mu, seed=0, step=0)


def test_mask_levels_names_cap():
    with pytest.raises(ValueError, match="cap"):
        mask_levels(2, 0.6, cap=0.0)


def test_uniform_levels_are_a_function_of_seed_step_and_index():
    levels = uniform_levels(8, seed=3, step=5)
    assert uniform_levels(8, seed=3, step=5) == levels
    assert uniform_levels(4, seed=3, step=5) == levels[:4]
    assert len({*levels, *uniform_levels(8, seed=4, step=5), *uniform_levels(8, seed=3, step=6)}) == 24


def test_uniform_levels_are_uniform():
    draws = torch.tensor([uniform_levels(4, seed=0, step=step) for step in range(5000)], dtype=torch.float64)
    assert draws.min() >= 0.001
    assert draws.max() <= 0.999
    assert abs(draws.mean().item() - 0.5) < 4 * 0.998 / math.sqrt(12 * draws.numel())
    assert draws.var().item() == pytest.approx(0.998**2 / 12, rel=0.03)
    assert torch.corrcoef(draws.T).triu(1).abs().max() < 5 / math.sqrt(len(draws))
