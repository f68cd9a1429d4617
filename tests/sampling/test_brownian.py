"""Noise as increments of a path that depends on the seed and the image alone."""

import math
from itertools import pairwise

import pytest
import torch

from pixelspace.errors import UserError
from pixelspace.noise.levels import Karras, grid
from pixelspace.random import Rng
from pixelspace.sampling.brownian import _Path, brownian, independent
from pixelspace.sampling.solvers import SOLVERS

IMAGES = torch.tensor([3, 40, 500, 6])
SHAPE = (2, 100, 100)
LOW, HIGH = 0.02, 20.0


def path(images=IMAGES, seed=0, shape=SHAPE, low=LOW, high=HIGH):
    return brownian(Rng(seed), images, shape, low, high)


@pytest.mark.parametrize("steps", [1, 7, 50, 1000])
def test_increments_are_standard_normal(steps):
    noise, sigmas = path(), grid(Karras(LOW, HIGH), steps + 1)[:-1].tolist()
    for i in {0, steps // 3, steps - 1}:
        z = noise(sigmas[i], sigmas[i + 1])
        # 80,000 draws: the standard error of the mean is 0.0035, of the variance 0.005, of the kurtosis 0.017
        assert z.dtype == torch.float32 and z.shape == (4, *SHAPE)
        assert abs(float(z.mean())) < 0.015 and abs(float(z.var()) - 1) < 0.02
        assert abs(float((z**4).mean() / z.var() ** 2) - 3) < 0.08


def test_disjoint_increments_and_other_images_and_seeds_are_independent():
    noise = path()
    a, b, c = noise(15.0, 4.0), noise(4.0, 3.99), noise(0.9, 0.02)
    other = path(seed=1)(15.0, 4.0)
    for one, two in ((a, b), (a, c), (b, c), (a, other), (a[:2], a[2:])):
        assert abs(float((one * two).mean())) < 0.018  # five standard errors of the smallest


def test_overlapping_increments_correlate_by_their_overlap():
    noise = path()
    whole, half = noise(8.0, 0.5), noise(8.0, 2.0)  # half in ln sigma
    assert float((whole * half).mean()) == pytest.approx(math.sqrt(0.5), abs=0.018)


@pytest.mark.parametrize("middle", [10.0, 0.7, 0.020001])
def test_increments_add_up(middle):
    noise = path()
    first, second = math.log(HIGH / middle), math.log(middle / LOW)
    parts = noise(HIGH, middle) * math.sqrt(first) + noise(middle, LOW) * math.sqrt(second)
    torch.testing.assert_close(parts / math.sqrt(first + second), noise(HIGH, LOW), rtol=0, atol=1e-5)


def test_the_way_up_is_minus_the_way_down():
    noise = path()
    torch.testing.assert_close(noise(0.3, 5.0), -noise(5.0, 0.3), rtol=0, atol=0)


def test_a_value_does_not_depend_on_what_was_asked_before():
    busy = path()
    for sigma in grid(Karras(LOW, HIGH), 40)[:-1].tolist():
        busy(sigma, LOW * 1.3)
    assert torch.equal(busy(7.0, 0.6), path()(7.0, 0.6))


def test_the_path_does_not_depend_on_the_batch():
    whole = path()(3.0, 0.4)
    for i in range(len(IMAGES)):
        assert torch.equal(path(IMAGES[i : i + 1])(3.0, 0.4)[0], whole[i])


def test_each_image_may_have_its_own_interval():
    here = torch.tensor([3.0, 3.0, 8.0, 1.0], dtype=torch.float64)
    there = torch.tensor([0.4, 3.0, 0.5, 2.0], dtype=torch.float64)
    z = path()(here, there)
    for i in range(4):
        torch.testing.assert_close(z[i], path()(float(here[i]), float(there[i]))[i], rtol=0, atol=0)
    assert z[1].abs().max() == 0  # an empty interval


def test_levels_that_rounding_puts_outside_the_range_are_its_ends():
    noise = path()
    outside = noise(math.nextafter(HIGH, math.inf), math.nextafter(LOW, 0.0))
    torch.testing.assert_close(outside, noise(HIGH, LOW), rtol=0, atol=0)
    noise(float(torch.tensor(HIGH).nextafter(torch.tensor(math.inf))), 1.0)
    for sigma in (HIGH * 1.01, LOW * 0.99, 0.0):
        with pytest.raises(UserError, match="lies outside the path's range"):
            noise(sigma, 1.0)


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (2.0, 1.0), (-1.0, 1.0)])
def test_a_range_that_cannot_be_meant_is_an_error(low, high):
    with pytest.raises(UserError, match="needs 0 < sigma_min <= sigma_max"):
        path(low=low, high=high)


def test_a_range_of_one_level_serves_a_one_step_schedule(gaussian):
    sigmas = torch.tensor([5.0, 0.0])
    x, noise = torch.ones(4, 2, 3), path(shape=(2, 3), low=5.0, high=5.0)
    torch.testing.assert_close(SOLVERS["dpmpp_sde"].function(gaussian, x, sigmas, noise=noise), gaussian(x, sigmas[0]))


def test_what_is_kept_does_not_grow_with_the_queries():
    tree = _Path(Rng(0), IMAGES, (1,), "cpu")
    for u in torch.linspace(1, 0, 300, dtype=torch.float64).tolist():
        tree.increment(u, u / 2)
        assert len(tree.nodes) + len(tree.asked) <= 10


def test_finer_schedules_converge_to_the_same_image(gaussian):
    """Strong convergence: with one path, runs of more steps approach one image; with fresh noise they don't."""
    x = torch.randn(4, *SHAPE, generator=torch.Generator().manual_seed(0)) * HIGH

    def solve(steps: int) -> torch.Tensor:
        sigmas = grid(Karras(LOW, HIGH), steps)
        return SOLVERS["dpmpp_2m_sde"].function(gaussian, x, sigmas, noise=path())

    ends = [solve(steps) for steps in (20, 40, 80)]
    apart = [float((a - b).std()) for a, b in pairwise(ends)]
    assert apart[1] < 0.8 * apart[0] and apart[1] < 0.25 * float(ends[-1].std())


def test_independent_noise_is_fresh_at_each_call_and_keyed_by_the_image():
    noise, again = independent(Rng(0), IMAGES, SHAPE), independent(Rng(0), IMAGES[1:3], SHAPE)
    first, second = noise(2.0, 1.0), noise(2.0, 1.0)
    assert abs(float((first * second).mean())) < 0.018 and abs(float(first.var()) - 1) < 0.02
    assert torch.equal(again(5.0, 4.0), first[1:3]) and torch.equal(again(4.0, 3.0), second[1:3])


def test_independent_noise_counts_the_calls_of_each_image():
    noise, plain = independent(Rng(0), IMAGES, SHAPE), independent(Rng(0), IMAGES, SHAPE)
    first, second = plain(2.0, 1.0), plain(1.0, 0.5)
    here, there = torch.tensor([2.0, 2.0, 2.0, 2.0]), torch.tensor([1.0, 2.0, 1.0, 2.0])
    z = noise(here, there)
    assert torch.equal(z[::2], first[::2]) and z[1::2].abs().max() == 0
    z = noise(here, torch.ones(4))
    assert torch.equal(z[::2], second[::2]) and torch.equal(z[1::2], first[1::2])
