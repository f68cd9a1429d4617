import pytest
import torch

from pixelspace.errors import NumericalError
from pixelspace.noise.levels import Karras
from pixelspace.noise.process import EDM, Process
from pixelspace.sampling.denoiser import denoiser, guided
from pixelspace.sampling.generate import Sampling, generate
from pixelspace.sampling.solvers import SOLVERS

PROCESS = Process(EDM(0.5))


def gaussian(x, c_noise, cond):
    """The best network for data that are N(0.3 label, 0.5^2): its denoised is known in closed form."""
    sigma = (4 * c_noise).exp().reshape(-1, 1, 1, 1)
    mean = 0.3 * cond["label"].reshape(-1, 1, 1, 1)
    x = x / PROCESS.precond(sigma).c_in
    denoised = mean + (x - mean) * 0.25 / (0.25 + sigma**2)
    return PROCESS.target(denoised, x, sigma)


def draw(n, sampling, **given):
    label = torch.ones(n, dtype=torch.int64)
    arguments = {"images": torch.arange(n), "shape": (1, 8, 8), "cond": {"label": label}, "null": {"label": 0 * label}}
    return torch.cat(list(generate(gaussian, PROCESS, sampling, **{**arguments, "seed": 0, "batch": n, **given})))


@pytest.mark.parametrize("solver", SOLVERS)
def test_every_solver_draws_the_data_s_distribution(solver):
    images = draw(64, Sampling(solver, steps=40, levels=Karras(0.005, 80.0)))
    assert float(images.mean()) == pytest.approx(0.3, abs=0.05)
    assert float(images.std()) == pytest.approx(0.5, abs=0.07)  # ancestral steps lose a little at 40


def test_guidance_extrapolates_from_the_null_condition():
    cond, null = ({"label": torch.full((3,), k)} for k in (1, 0))
    x, sigma = torch.randn(3, 1, 8, 8), torch.full((3, 1, 1, 1), 2.0)
    with_label, without = (denoiser(gaussian, PROCESS, c)(x, sigma) for c in (cond, null))
    found = guided(gaussian, PROCESS, cond, null, 3.0)(x, sigma)
    torch.testing.assert_close(found, without + 3 * (with_label - without))


def test_guidance_within_an_interval_moves_less():
    plan = Sampling("euler", steps=20, levels=Karras(0.01, 80.0), guidance=4.0)
    full = draw(32, plan).mean()
    part = draw(32, Sampling("euler", 20, Karras(0.01, 80.0), 4.0, guidance_low=0.1, guidance_high=1.0)).mean()
    none = draw(32, Sampling("euler", 20, Karras(0.01, 80.0))).mean()
    assert none < part < full


def test_an_image_that_is_not_finite_is_named():
    def broken(x, c_noise, cond):
        return gaussian(x, c_noise, cond) / (cond["label"] != 2).float().reshape(-1, 1, 1, 1)

    label = torch.tensor([1, 1, 2, 1])
    batches = generate(
        *(broken, PROCESS, Sampling("euler", steps=2)),
        images=torch.arange(4),
        shape=(1, 4, 4),
        cond={"label": label},
        null={"label": label},
        seed=5,
        batch=2,
    )
    next(batches)
    with pytest.raises(NumericalError, match="image 2 of seed 5 is not finite"):
        next(batches)


@pytest.mark.parametrize(
    "bad",
    [
        {"solver": "eular"},
        {"steps": 0},
        {"guidance": -1.0},
        {"settings": (("etaa", 1.0),)},
        {"settings": (("eta", "x"),)},
    ],
)
def test_a_senseless_plan_is_refused(bad):
    with pytest.raises(ValueError):
        Sampling(**{"solver": "dpmpp_2m_sde", **bad})
