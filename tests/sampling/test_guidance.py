"""Guidance as functions from denoisers to denoisers."""

import pytest
import torch
from torch import Tensor

from pixelspace.errors import UserError
from pixelspace.noise.levels import Karras, grid
from pixelspace.sampling.guidance import autoguided, guidance_interval, scaled
from pixelspace.sampling.solvers import SOLVERS, settings_of


class Counted:
    """A denoiser that counts its evaluations."""

    def __init__(self, factor: float) -> None:
        self.factor, self.calls = factor, 0

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        self.calls += 1
        return x * self.factor / (1 + sigma**2)


X = torch.arange(1.0, 7.0, dtype=torch.float64).reshape(3, 2)


def column(*levels: float) -> Tensor:
    return torch.tensor(levels, dtype=torch.float64).reshape(-1, 1)


@pytest.mark.parametrize(("sigma", "inside"), [(0.3, False), (0.31, True), (5.0, True), (5.1, False)])
def test_the_interval_is_open_below_and_closed_above_and_costs_one_evaluation(sigma, inside):
    guided, plain = Counted(3.0), Counted(1.0)
    found = guidance_interval(guided, plain, 0.3, 5.0)(X, column(sigma, sigma, sigma))
    torch.testing.assert_close(found, Counted(3.0 if inside else 1.0)(X, column(sigma)))
    assert (guided.calls, plain.calls) == (int(inside), int(not inside))


def test_images_on_both_sides_of_the_interval_get_each_its_own():
    sigma = column(0.1, 1.0, 9.0)
    found = guidance_interval(Counted(3.0), Counted(1.0), 0.3, 5.0)(X, sigma)
    torch.testing.assert_close(found, Counted(1.0)(X, sigma) * column(1.0, 3.0, 1.0))


@pytest.mark.parametrize(("low", "high"), [(-1.0, 1.0), (1.0, 1.0), (float("nan"), 1.0)])
def test_an_interval_that_cannot_be_meant_is_an_error(low, high):
    with pytest.raises(UserError, match="needs 0 <= low < high"):
        guidance_interval(Counted(1.0), Counted(1.0), low, high)


def test_autoguidance_at_scale_1_is_the_good_model_and_never_runs_the_bad_one():
    good, bad = Counted(2.0), Counted(1.0)
    assert torch.equal(autoguided(good, bad, 1.0)(X, column(1.0)), good(X, column(1.0)))
    assert bad.calls == 0


@pytest.mark.parametrize("scale", [0.0, 0.5, 2.5])
def test_autoguidance_extrapolates_from_the_bad_model(scale):
    good, bad = Counted(2.0), Counted(1.0)
    found = autoguided(good, bad, scale)(X, column(1.0))
    b, g = bad(X, column(1.0)), good(X, column(1.0))
    torch.testing.assert_close(found, b + scale * (g - b))


@pytest.mark.parametrize("name", SOLVERS)
def test_a_scaled_denoiser_solves_the_scaled_state(name, gaussian):
    """With x = k y, sampling y on sigmas / k is sampling x on sigmas."""
    k, sigmas = 4.0, grid(Karras(0.02, 20.0), 10)
    x = torch.randn(2, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 20
    settings = {"eta": 0.0} if "eta" in settings_of(name) else {}
    small = {"atol": 0.0078 / k} if name == "dpm_adaptive" else {}
    whole = SOLVERS[name].function(gaussian, x, sigmas, **settings)
    packed = SOLVERS[name].function(scaled(gaussian, k), x / k, sigmas / k, **settings, **small)
    torch.testing.assert_close(packed * k, whole)


def test_a_pyramid_packed_with_a_scale_a_level_is_each_level_by_itself(gaussian):
    k = torch.tensor([1.0, 1.0, 1.0, 4.0, 4.0], dtype=torch.float64)
    y = torch.randn(2, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    sigmas = grid(Karras(0.02, 20.0), 10)
    heun = SOLVERS["heun"].function
    packed = heun(scaled(gaussian, k), y, sigmas)
    torch.testing.assert_close(packed[:, :3], heun(gaussian, y[:, :3], sigmas))
    torch.testing.assert_close(packed[:, 3:] * 4, heun(gaussian, y[:, 3:] * 4, sigmas * 4))
