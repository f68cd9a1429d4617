import math

import pytest
import torch

from pixelspace.noise.levels import (
    VP,
    Cosine,
    CosineInterpolated,
    Karras,
    LogLogistic,
    LogNormal,
    LogUniform,
    SplitLogNormal,
    grid,
)

LEVELS = [
    Karras(),
    LogUniform(),
    LogUniform(rho=2.0),
    VP(),
    LogNormal(),
    SplitLogNormal(-1.0, 0.5, 1.5),
    LogLogistic(-0.7),
    LogLogistic(-1.0, 0.7, 0.01, 20.0),
    Cosine(),
    Cosine(shift=4.0),
    CosineInterpolated(256.0, 32.0, 256.0),
]
HALF = math.log(0.5)
ROUNDED = float(torch.tensor(1.2))  # the stored density kept its parameters in float32
DENSITIES = {
    "lognormal": LogNormal(-ROUNDED, ROUNDED),
    "loglogistic_default": LogLogistic(HALF),
    "loglogistic_trunc": LogLogistic(-1.0, 0.7, 0.01, 20.0),
    "loguniform_default": LogUniform(0.01, 80.0),
    "loguniform": LogUniform(0.002, 200.0),
    "v-diffusion_default": Cosine(0.5),
    "v-diffusion_trunc": Cosine(1.0, 0.01, 50.0),
    **{
        f"cosine-interpolated_{d}": CosineInterpolated(float(d), 32.0, float(d))
        for d in (28, 32, 64, 128, 256, 512, 1024)
    },
    "cosine-interpolated_custom": CosineInterpolated(256.0, 64.0, 128.0, 1.0, 1e-4, 1e4),
}


@pytest.mark.parametrize("levels", LEVELS, ids=repr)
def test_levels_increase_and_are_finite(levels):
    u = torch.linspace(1e-6, 1 - 1e-6, 1001, dtype=torch.float64)
    sigma = levels(u)
    assert sigma.dtype == torch.float64 and sigma.isfinite().all()
    assert (sigma.diff() > 0).all()
    assert levels(u.float()).dtype == torch.float32


@pytest.mark.parametrize("name", DENSITIES)
def test_densities_meet_the_golden(golden, name):
    stored = golden("hdit/densities")
    u, expected = stored["u"], stored[f"{name}/f64"]
    inside = (u > 0) & (u < 1)
    u = 1 - u if name.startswith("cosine-interpolated") else u  # stored as decreasing in u
    torch.testing.assert_close(DENSITIES[name](u)[inside], expected[inside], rtol=1e-9, atol=0)


def test_split_lognormal_is_the_stored_two_sided_draw(golden, golden_json):
    stored = golden("hdit/densities")
    n, u, expected = (stored[f"split-lognormal/{k}"] for k in ("n", "u", "f64"))
    case = next(c for c in golden_json("hdit/densities")["cases"] if c["name"] == "split-lognormal")
    k = case["resolved_kwargs"]
    levels = SplitLogNormal(k["loc"], k["scale_1"], k["scale_2"])
    share = k["scale_1"] / (k["scale_1"] + k["scale_2"])
    low = u < share
    tail = torch.special.ndtr(-n.abs())  # of the half-normal that was drawn on either side
    quantile = torch.where(low, 2 * share * tail, 1 - 2 * (1 - share) * tail)
    torch.testing.assert_close(levels(quantile), expected, rtol=1e-4, atol=0)  # the tails are kept 1e-7 from 0 and 1


def test_schedules_meet_the_golden(golden, golden_json):
    stored = golden("hdit/schedules")
    for case in golden_json("hdit/schedules")["cases"]:
        k = dict(case["kwargs"])
        n = k.pop("n")
        levels = {
            "get_sigmas_karras": lambda k: Karras(**k),
            "get_sigmas_exponential": lambda k: LogUniform(**k),
            "get_sigmas_polyexponential": lambda k: LogUniform(**k),
            "get_sigmas_vp": lambda k: VP(**{{"eps_s": "eps"}.get(a, a): b for a, b in k.items()}),
        }[case["function"]](k)
        torch.testing.assert_close(grid(levels, n), stored[f"{case['name']}/f64"], rtol=1e-11, atol=0)
        torch.testing.assert_close(
            grid(levels, n).float(), stored[f"{case['name']}/f32"], rtol=5e-4, atol=0
        )  # their float32


@pytest.mark.parametrize(
    ("size", "median"), [(32, 0.50), (64, 0.71), (128, 1.0), (256, 1.41), (512, 1.99), (1024, 2.81)]
)
def test_the_interpolated_median_grows_with_the_root_of_the_size(size, median):
    levels = CosineInterpolated(float(size), 32.0, float(size))
    assert float(levels(torch.tensor(0.5, dtype=torch.float64))) == pytest.approx(median, abs=0.02)


def test_a_shifted_cosine_is_the_cosine_times_the_shift():
    u = torch.linspace(0.01, 0.99, 50, dtype=torch.float64)
    plain, shifted = Cosine(sigma_max=1e9, sigma_min=1e-9), Cosine(sigma_max=4e9, sigma_min=4e-9, shift=4.0)
    torch.testing.assert_close(shifted(u), 4 * plain(u))


def test_a_grid_of_no_steps_is_refused():
    with pytest.raises(ValueError, match="at least 1"):
        grid(Karras(), 0)


@pytest.mark.parametrize(
    "make", [lambda: Karras(1.0, 0.5), lambda: LogNormal(0.0, 0.0), lambda: LogLogistic(0.0, 0.5, 2.0, 1.0)]
)
def test_senseless_levels_are_refused(make):
    with pytest.raises(ValueError):
        make()
