"""What is special to DPM-Solver's own steps: budgets, adaptivity image by image, encoding."""

import math

import pytest
import torch
from torch import Tensor

from pixelspace.errors import NumericalError, UserError
from pixelspace.noise.levels import Karras, grid
from pixelspace.random import Rng
from pixelspace.sampling.brownian import brownian, independent
from pixelspace.sampling.dpm_solver import dpm_adaptive, dpm_fast
from pixelspace.sampling.step import Counts, Step

DATA_STD = 0.5
SIGMAS = torch.tensor([20.0, 0.02], dtype=torch.float64)


def exact(x: Tensor, sigma: float, sigma_next: float) -> Tensor:
    return x * math.sqrt((DATA_STD**2 + sigma_next**2) / (DATA_STD**2 + sigma**2))


def last_counts(steps: list[Step]) -> Counts:
    counts = steps[-1].counts
    assert counts is not None
    return counts


@pytest.mark.parametrize("n", range(1, 12))
@pytest.mark.parametrize("zero", [True, False])
def test_dpm_fast_spends_as_many_evaluations_as_the_schedule_has_steps(n, zero, gaussian):
    seen = []

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        seen.append(float(sigma[0, 0]))
        return gaussian(x, sigma)

    sigmas = grid(Karras(0.02, 20.0), n) if zero else torch.linspace(20.0, 0.02, n + 1, dtype=torch.float64)
    dpm_fast(denoise, torch.ones(2, 3, dtype=torch.float64), sigmas)
    assert len(seen) == n
    assert seen[0] == pytest.approx(20.0) and (n == 1 or not zero or seen[-1] == pytest.approx(0.02))


@pytest.mark.parametrize("order", [2, 3])
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_one_image_is_solved_alike_with_and_without_per_image_control(order, eta, mixture):
    x = torch.randn(1, 2, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 20
    ends, counts = [], []
    for per_image in (True, False):
        noise, steps = brownian(Rng(1), torch.tensor([5]), (2, 4, 4), 0.02, 20.0), []
        settings = {"order": order, "eta": eta, "per_image": per_image}
        ends.append(dpm_adaptive(mixture, x, SIGMAS, noise=noise, callback=steps.append, **settings))
        counts.append([total.tolist() for total in last_counts(steps)])
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-9, atol=1e-9)
    assert counts[0] == counts[1]


@pytest.mark.parametrize("make", [brownian, independent])
def test_an_image_does_not_depend_on_its_batch(make, mixture):
    x = torch.randn(3, 2, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x = x * 20 * torch.tensor([0.2, 1.0, 3.0], dtype=torch.float64).reshape(3, 1, 1, 1)  # so that steps differ

    def solve(rows: slice) -> tuple[Tensor, Counts]:
        images, steps = torch.arange(3)[rows], []
        ends = (0.02, 20.0) if make is brownian else ()
        noise = make(Rng(1), images, (2, 4, 4), *ends)
        end = dpm_adaptive(mixture, x[rows], SIGMAS, noise=noise, eta=1.0, callback=steps.append)
        return end, last_counts(steps)

    together, counts = solve(slice(None))
    assert len(set(counts.steps.tolist())) > 1
    assert (counts.steps == counts.n_accept + counts.n_reject).all() and (counts.nfe == 3 * counts.steps).all()
    for row in range(3):
        alone, own = solve(slice(row, row + 1))
        torch.testing.assert_close(alone[0], together[row], rtol=1e-9, atol=1e-9)
        assert [int(total[0]) for total in own] == [int(total[row]) for total in counts]


def test_the_error_of_dpm_adaptive_falls_with_its_tolerance(gaussian):
    x = torch.full((1, 4), 20.0, dtype=torch.float64)
    errors = [
        float((dpm_adaptive(gaussian, x, SIGMAS, rtol=tol, atol=tol) - exact(x, 20.0, 0.02)).abs().max())
        for tol in (1e-2, 1e-4, 1e-6)
    ]
    assert errors[1] < errors[0] / 10 and errors[2] < errors[1] / 10 and errors[2] < 1e-6


def test_a_final_zero_adds_the_step_to_the_denoised_image(gaussian):
    x, steps = torch.full((2, 4), 20.0, dtype=torch.float64), []
    there = dpm_adaptive(gaussian, x, SIGMAS)
    zero = torch.tensor([20.0, 0.02, 0.0], dtype=torch.float64)
    end = dpm_adaptive(gaussian, x, zero, callback=steps.append)
    torch.testing.assert_close(end, gaussian(there, torch.tensor(0.02, dtype=torch.float64)))
    counts = last_counts(steps)
    assert (counts.steps == len(steps)).all() and (counts.nfe == 3 * len(steps) - 2).all()


@pytest.mark.parametrize(
    ("solve", "settings"),
    [
        (dpm_fast, {"n": 299}),
        (dpm_adaptive, {"rtol": 1e-7, "atol": 1e-7}),
        (dpm_adaptive, {"rtol": 1e-7, "atol": 1e-7, "per_image": False, "order": 2}),
    ],
)
def test_encoding_climbs_the_ode_and_decoding_comes_back(solve, settings, gaussian):
    x = torch.randn(2, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * DATA_STD
    code = solve(gaussian, x, SIGMAS.flip(0), **settings)
    torch.testing.assert_close(code, exact(x, 0.02, 20.0), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(solve(gaussian, code, SIGMAS, **settings), x, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("solve", [dpm_fast, dpm_adaptive])
def test_encoding_with_noise_is_an_error(solve, gaussian):
    with pytest.raises(UserError, match="eta must be 0 to encode"):
        solve(gaussian, torch.ones(1, 2), SIGMAS.flip(0), eta=0.5, noise=lambda a, b: torch.ones(1, 2))
    with pytest.raises(UserError, match="sigmas must be positive where they begin"):
        solve(gaussian, torch.ones(1, 2), torch.tensor([0.0, 1.0, 2.0]))


def test_values_that_are_not_finite_end_the_run():
    with pytest.raises(NumericalError, match=r"near sigma .* are not finite"):
        dpm_adaptive(lambda x, sigma: x * float("nan"), torch.ones(2, 2), SIGMAS)


def test_tolerances_that_no_step_meets_end_the_run():
    g = torch.Generator().manual_seed(0)

    def restless(x: Tensor, sigma: Tensor) -> Tensor:
        return torch.randn(x.shape, generator=g, dtype=x.dtype) * 1e6

    with pytest.raises(NumericalError, match="no step meets"):
        dpm_adaptive(restless, torch.ones(1, 2, dtype=torch.float64), SIGMAS, rtol=0.0, atol=1e-30)
