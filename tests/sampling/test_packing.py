"""A pyramid as one row: what solvers, guidance and thresholds do to it they do to each level."""

import math
from functools import partial

import pytest
import torch

from pixelspace.noise.levels import Karras, grid
from pixelspace.noise.process import VPV, Process
from pixelspace.noise.pyramid import Pyramid
from pixelspace.sampling.denoiser import guided_by
from pixelspace.sampling.generate import Sampling, generate
from pixelspace.sampling.pyramid import Packing
from pixelspace.sampling.solvers import SOLVERS

PROCESS = Process(VPV())
PYRAMIDS = [Pyramid((1, 4)), Pyramid((1, 2, 4), power=2.0), Pyramid((1, 2), power=2.0, divided=True)]
SHAPE = (1, 8, 8)


def says_gaussian(pyramid, sd=0.5):
    """The best network for levels whose every pixel is N(0.3 label, sd^2), each pixel by itself."""

    def network(xs, c_noise, cond):
        outs = []
        for x, k, seen in zip(xs if isinstance(xs, list) else [xs], pyramid.k, pyramid.seen, strict=True):
            sigma = (4 * c_noise).exp().reshape(-1, 1, 1, 1) * seen
            mean, var = (0.3 * cond["label"].reshape(-1, 1, 1, 1)) * seen / k, (sd * seen / k) ** 2
            x = x / PROCESS.precond(sigma).c_in
            outs.append(PROCESS.target(mean + (x - mean) * var / (var + sigma**2), x, sigma))
        return outs if isinstance(xs, list) else outs[0]

    return network


@pytest.mark.parametrize("pyramid", PYRAMIDS, ids=repr)
def test_unpacking_undoes_packing(pyramid):
    packing, images = Packing(pyramid, (3, 8, 8)), pyramid.pool(torch.randn(2, 3, 8, 8, dtype=torch.float64))
    y = packing.pack(images)
    assert y.shape == (2, packing.length)
    for found, image in zip(packing.unpack(y), images, strict=True):
        torch.testing.assert_close(found, image)


@pytest.mark.parametrize("name", [name for name in SOLVERS if name != "dpm_adaptive"])  # whose steps the error decides
@pytest.mark.parametrize("pyramid", PYRAMIDS[1:], ids=repr)
def test_a_solver_on_the_row_is_itself_on_each_level(name, pyramid):
    packing, sigmas, label = Packing(pyramid, SHAPE), grid(Karras(0.02, 20.0), 8), torch.tensor([0.0, 1.0])
    y = packing.start(torch.randn(2, packing.length, dtype=torch.float64), 20.0)
    noises, solve = {}, SOLVERS[name].function

    def noise(sigma, sigma_next):
        return noises.setdefault((sigma, sigma_next), torch.randn_like(y))

    found = solve(packing.denoiser(says_gaussian(pyramid), PROCESS, {"label": label}), y, sigmas, noise=noise)
    for r, k in enumerate(pyramid.k):
        drawn = {(sigma * k, sigma_next * k): pyramid.split(z, SHAPE)[r] for (sigma, sigma_next), z in noises.items()}

        def again(sigma, sigma_next, drawn=drawn):
            return next(z for (a, b), z in drawn.items() if math.isclose(a, sigma) and math.isclose(b, sigma_next))

        def alone(x, sigma):
            mean = 0.3 * label.reshape(-1, 1, 1, 1)
            return mean + (x - mean) * 0.25 / (0.25 + sigma**2)

        x = solve(alone, packing.unpack(y)[r], sigmas * k, noise=again)
        torch.testing.assert_close(packing.unpack(found)[r], x)


@pytest.mark.parametrize("pyramid", PYRAMIDS, ids=repr)
def test_a_network_is_first_shown_pure_noise_at_every_level(pyramid):
    packing, shown = Packing(pyramid, SHAPE), []
    noise = torch.randn(2, packing.length)

    def network(xs, c_noise, cond):
        shown.extend(xs)
        return xs

    packing.denoiser(network, PROCESS, {})(packing.start(noise, 3.0), torch.full((2, 1), 3.0))
    for found, level in zip(shown, pyramid.split(noise, SHAPE), strict=True):
        torch.testing.assert_close(found, level)


def test_guidance_extrapolates_at_every_level_in_one_batch():
    pyramid = PYRAMIDS[1]
    packing, calls = Packing(pyramid, SHAPE), []

    def network(xs, c_noise, cond):
        calls.append((len(xs[0]), cond["scale"].tolist()))
        return says_gaussian(pyramid)(xs, c_noise, cond)

    under = partial(packing.denoiser, network, PROCESS)
    size = {"scale": torch.tensor([64.0, 32.0])}
    cond, null = ({"label": torch.full((2,), float(k))} for k in (1, 0))
    y, sigma = torch.randn(2, packing.length), torch.tensor([[2.0], [0.5]])
    found = guided_by(under, {**cond, **size}, null, 3.0)(y, sigma)
    assert calls == [(4, [64.0, 32.0, 64.0, 32.0])]
    on, off = (under({**c, **size})(y, sigma) for c in (cond, null))
    torch.testing.assert_close(found, off + 3 * (on - off))


def drawn(n, sampling, network_of, **given):
    label = torch.ones(n)
    arguments = {"images": torch.arange(n), "shape": SHAPE, "cond": {"label": label}, "null": {"label": 0 * label}}
    network = says_gaussian(network_of, given.pop("sd", 0.5))
    return torch.cat(list(generate(network, PROCESS, sampling, **{**arguments, "seed": 0, "batch": n, **given})))


@pytest.mark.parametrize("solver", SOLVERS)
def test_every_solver_draws_every_level_s_distribution(solver):
    pyramid = PYRAMIDS[1]
    # The error of the few coarse numbers counts little in a mean over all, and so has to be smaller.
    settings = (("rtol", 0.01), ("atol", 0.001)) if solver == "dpm_adaptive" else ()
    plan = Sampling(solver, steps=30, levels=Karras(0.005, 80.0), settings=settings)
    rows = drawn(96, plan, pyramid, pyramid=pyramid, every_level=True)
    for images in Packing(pyramid, SHAPE).unpack(rows):
        assert float(images.mean()) == pytest.approx(0.3, abs=0.07)
        assert float(images.std()) == pytest.approx(0.5, abs=0.1)  # ancestral steps lose a little at 30


def test_the_finest_level_is_given_and_does_not_depend_on_the_batch():
    pyramid, plan = PYRAMIDS[0], Sampling("euler_ancestral", steps=6, levels=Karras(0.01, 80.0), guidance=2.0)
    rows = drawn(6, plan, pyramid, pyramid=pyramid, every_level=True)
    finest = drawn(6, plan, pyramid, pyramid=pyramid)
    assert torch.equal(finest, Packing(pyramid, SHAPE).unpack(rows)[0]) and finest.shape == (6, *SHAPE)
    torch.testing.assert_close(drawn(6, plan, pyramid, pyramid=pyramid, batch=4), finest)
    assert not torch.equal(drawn(6, plan, pyramid, pyramid=pyramid, seed=1), finest)


@pytest.mark.parametrize("pyramid", [None, *PYRAMIDS], ids=repr)
def test_a_threshold_keeps_every_level_in_range(pyramid):
    levels = pyramid or Pyramid((1,))
    for threshold in ("none", "clip", "dynamic", "deepfloyd"):
        plan = Sampling("heun", steps=4, levels=Karras(0.01, 80.0), threshold=threshold)
        rows = drawn(4, plan, levels, sd=2.0, pyramid=pyramid, every_level=True)
        images = Packing(pyramid, SHAPE).unpack(rows) if pyramid else [rows]
        for level in images:
            assert (float(level.abs().max()) <= 1 + 1e-6) == (threshold != "none")


def test_a_pyramid_of_one_level_is_drawn_by_a_plain_network():
    pyramid, levels = Pyramid((1,)), Karras(0.01, 20.0)
    plan = Sampling("heun", steps=30, levels=levels)
    packed, plain = drawn(3, plan, pyramid, pyramid=pyramid), drawn(3, plan, pyramid)
    torch.testing.assert_close(packed, plain, rtol=0, atol=0.01)  # the start is larger by sqrt(1 + 1 / sigma^2)


@pytest.mark.parametrize("solver", ["euler_ancestral", "dpmpp_2m_sde"])
def test_pooled_noise_keeps_coarse_levels_the_means_of_the_fine_one(solver):
    """At power 2, where both have the same noise, under estimates that are the means of each other."""
    ends = {}
    for noise in ("pooled", "independent"):
        pyramid = Pyramid((1, 2, 4), power=2.0, noise=noise)

        def halved(xs, c_noise, cond, pyramid=pyramid):
            sigma = (4 * c_noise).exp().reshape(-1, 1, 1, 1)
            levels = [(x, sigma * k) for x, k in zip(xs, pyramid.k, strict=True)]
            plain = [(x / PROCESS.precond(s).c_in, s) for x, s in levels]
            return [PROCESS.target(x / (1 + sigma**2), x, s) for x, s in plain]

        sampling = Sampling(solver, steps=6, levels=Karras(0.02, 5000.0))
        given = {"images": torch.arange(2), "shape": SHAPE, "cond": {}, "null": {}, "seed": 1, "batch": 2}
        (y,) = generate(halved, PROCESS, sampling, **given, pyramid=pyramid, every_level=True)
        ends[noise] = Packing(pyramid, SHAPE).unpack(y)
    fine, *coarse = ends["pooled"]
    for level, means in zip(coarse, pyramid.pool(fine)[1:], strict=True):
        torch.testing.assert_close(level, means, rtol=1e-3, atol=1e-4)
    assert not torch.allclose(ends["independent"][2], pyramid.pool(ends["independent"][0])[2], rtol=0.1)
