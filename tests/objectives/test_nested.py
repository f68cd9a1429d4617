import json
from dataclasses import replace

import pytest
import torch

from pixelspace.backbones.hdit import Global, HDiTConfig, Level
from pixelspace.config import from_data, to_data
from pixelspace.errors import UserError
from pixelspace.noise.clock import TableIndex
from pixelspace.noise.levels import LogNormal
from pixelspace.noise.process import VPV, Process, VPEps
from pixelspace.noise.pyramid import Pyramid, join
from pixelspace.noise.tables import LinearBeta, SquaredCosine
from pixelspace.noise.weighting import SNR, VDM, SoftMinSNR, Unit
from pixelspace.objectives.denoising import Denoising
from pixelspace.objectives.nested import NestedDenoising
from pixelspace.random import Rng
from pixelspace.recipes.values import VALUES
from pixelspace.types import Batch, Draw

PROCESS = Process(VPV())
PYRAMID = Pyramid((1, 2, 4), power=2.0)
OBJECTIVE = NestedDenoising(PROCESS, LogNormal(), SNR(), PYRAMID)
PLAIN = HDiTConfig((Level(32, 1, Global(16)),))


def batch_of(n, start=0, dtype=torch.float32):
    pos = torch.arange(start, start + n)
    return Batch(torch.randn(n, 3, 8, 8, dtype=dtype), {"label": pos % 5}, pos)


def part_of(batch, rows):
    return Batch(batch.x[rows], {name: c[rows] for name, c in batch.cond.items()}, batch.pos[rows])


def network(xs, c_noise, cond):
    """Any function of each sample by itself."""
    outs = []
    for x in xs:
        time, label = (t[: len(x)].reshape(-1, 1, 1, 1).to(x.dtype) for t in (c_noise, cond["label"]))
        outs.append(torch.sin(3 * x + time) + 0.1 * label)
    return outs


def test_a_perfect_network_has_no_loss():
    batch = batch_of(5, dtype=torch.float64)
    noise = [torch.randn_like(x) for x in PYRAMID.pool(batch.x)]
    draw = Draw(torch.logspace(-1, 1, 5, dtype=torch.float64), join(noise))
    sigmas, x0s = PYRAMID.sigmas(draw.sigma), PYRAMID.pool(batch.x)
    right = [PROCESS.target(x0, PROCESS.corrupt(x0, z, s), s) for x0, z, s in zip(x0s, noise, sigmas, strict=True)]
    loss = OBJECTIVE.loss(lambda *_: right, batch, draw)
    torch.testing.assert_close(loss, torch.zeros(5, dtype=torch.float64))


@pytest.mark.parametrize("weighting", [Unit(), SNR(), SoftMinSNR()], ids=repr)
@pytest.mark.parametrize("weights", [(), (16.0, 4.0, 1.0), (1.0, 0.0, 0.0)])
def test_the_loss_is_the_weighted_sum_of_the_levels_own_losses(weighting, weights):
    batch = batch_of(6, dtype=torch.float64)
    objective = replace(OBJECTIVE, weighting=weighting, weights=weights)
    draw = objective.draw(batch, 6, 0.0, Rng(0))
    found, expected = objective.loss(network, batch, draw), 0.0
    _, c_noise = PROCESS.inputs(batch.x, draw.sigma)  # all levels are told that of the coarsest
    noises = PYRAMID.split(draw.noise.double(), (3, 8, 8))
    each = zip(weights or (1, 1, 1), PYRAMID.pool(batch.x), noises, (4, 2, 1), strict=True)
    for weight, x, noise, scale in each:
        alone = Denoising(PROCESS, LogNormal(), weighting)

        def level(x, own, cond):
            return network([x], c_noise, cond)[0]

        level_draw = Draw(draw.sigma * scale, noise)  # power 2: the noise grows with the side
        expected = expected + weight * alone.loss(level, Batch(x, batch.cond, batch.pos), level_draw)
    torch.testing.assert_close(found, expected)


def test_one_level_is_plain_denoising_bit_for_bit():
    batch, plain = batch_of(4), Denoising(PROCESS, LogNormal(), SNR(), drop_rate=0.5)
    one = NestedDenoising(PROCESS, LogNormal(), SNR(), Pyramid((1,)), drop_rate=0.5)

    def ask(x, c_noise, cond):
        return network([x], c_noise, cond)[0]

    draw = plain.draw(batch, 4, 0.0, Rng(0))
    assert torch.equal(one.draw(batch, 4, 0.0, Rng(0)).sigma, draw.sigma)
    packed = replace(draw, noise=draw.noise.flatten(1))
    assert torch.equal(one.loss(ask, batch, packed), plain.loss(ask, batch, draw))


def test_a_divided_pyramid_learns_the_divided_images():
    batch = batch_of(4, dtype=torch.float64)
    pyramid = Pyramid((1, 4), power=2.0, divided=True)
    objective = NestedDenoising(PROCESS, LogNormal(), Unit(), pyramid, weights=(1.0, 0.0))
    draw = objective.draw(batch, 4, 0.0, Rng(0))
    noise = pyramid.split(draw.noise.double(), (3, 8, 8))[0]
    small = Batch(batch.x / 4, batch.cond, batch.pos)

    def level(x, c_noise, cond):
        return network([x], c_noise, cond)[0]

    expected = Denoising(PROCESS, LogNormal(), Unit()).loss(level, small, Draw(draw.sigma, noise))
    torch.testing.assert_close(objective.loss(network, batch, draw), expected)


def test_noises_are_independent_between_levels_or_pooled_and_always_of_variance_one():
    batch = Batch(torch.zeros(64, 3, 8, 8), {}, torch.arange(64))
    for kind in ("independent", "pooled"):
        draw = replace(OBJECTIVE, pyramid=replace(PYRAMID, noise=kind)).draw(batch, 64, 0.0, Rng(0))
        levels = PYRAMID.split(draw.noise, (3, 8, 8))
        for level, factor in zip(levels, (1, 2, 4), strict=True):
            assert float(level.var()) == pytest.approx(1, abs=0.1)
            pooled = Pyramid((1, factor)).pool(levels[0])[1] * factor if factor > 1 else level
            same = float((pooled * level).mean())
            assert same == pytest.approx(1 if kind == "pooled" or factor == 1 else 0, abs=0.1)


@pytest.mark.parametrize("noise", ["independent", "pooled"])
@pytest.mark.parametrize("mixed", [(), (2, 1, 1)])
def test_draws_and_losses_do_not_depend_on_how_the_global_batch_is_split(mixed, noise):
    objective = replace(OBJECTIVE, mixed=mixed, pyramid=replace(PYRAMID, noise=noise), drop_rate=0.25)
    whole = batch_of(12, 24)
    draw = objective.draw(whole, 12, 0.0, Rng(3))
    losses = objective.loss(network, whole, draw)
    for micro in (1, 3, 4):
        for start in range(0, 12, micro):
            rows = slice(start, start + micro)
            part = part_of(whole, rows)
            found = objective.draw(part, 12, 0.0, Rng(3))
            assert torch.equal(found.sigma, draw.sigma[rows]) and torch.equal(found.noise, draw.noise[rows])
            torch.testing.assert_close(objective.loss(network, part, found), losses[rows])


def test_a_mixed_batch_runs_a_level_on_its_share_and_divides_by_it():
    batch, objective = batch_of(12, dtype=torch.float64), replace(OBJECTIVE, mixed=(1, 1, 2))
    seen = []

    def watched(xs, c_noise, cond):
        seen.extend(len(x) for x in xs)
        return network(xs, c_noise, cond)

    draw = objective.draw(batch, 12, 0.0, Rng(0))
    assert draw.rows == (3, 6, 12)
    found = objective.loss(watched, batch, draw)
    assert seen == [3, 6, 12]
    one_by_one = []
    for weights in ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)):
        one_by_one.append(replace(OBJECTIVE, weights=weights).loss(network, batch, replace(draw, rows=None)))
    place, (fine, middle, coarse) = torch.arange(12), one_by_one
    torch.testing.assert_close(found, 4 * fine * (place < 3) + 2 * middle * (place < 6) + coarse)


def test_some_sample_of_a_mixed_batch_runs_at_every_level_however_small_it_is():
    batch = batch_of(1)
    draw = replace(OBJECTIVE, mixed=(1, 1, 8)).draw(batch, 1, 0.0, Rng(0))
    assert draw.rows == (1, 1, 1)


def test_importance_weighs_a_sample_by_the_sigma_of_the_coarsest_level():
    table, batch = SquaredCosine(), batch_of(4, dtype=torch.float64)
    objective = replace(OBJECTIVE, levels=table, importance=VDM(table))
    draw = objective.draw(batch, 4, 0.0, Rng(0))
    weight = VDM(table)(draw.sigma, PROCESS.precond(draw.sigma))
    plain = replace(objective, importance=Unit()).loss(network, batch, draw)
    torch.testing.assert_close(objective.loss(network, batch, draw), weight * plain)


def test_samples_that_lose_their_condition_are_shown_none():
    batch, seen = batch_of(4), {}
    dropped = torch.tensor([True, False, True, False])

    def watched(xs, c_noise, cond):
        seen.update(cond)
        return xs

    draw = replace(OBJECTIVE.draw(batch, 4, 0.0, Rng(0)), drop=dropped)
    OBJECTIVE.loss(watched, batch, draw)
    assert torch.equal(seen["label"], torch.where(dropped, -1, batch.cond["label"]))


def test_a_network_of_other_levels_is_refused():
    with pytest.raises(UserError, match=r"factors \(1, 2, 4\): the network \(HDiTConfig\) has \(1,\); set it so"):
        OBJECTIVE.check(PLAIN)
    replace(OBJECTIVE, pyramid=Pyramid((1,))).check(PLAIN)


@pytest.mark.parametrize(
    "bad",
    [
        {"weights": (4.0, 1.0)},
        {"weights": (1.0, -1.0, 1.0)},
        {"weights": (0.0, 0.0, 0.0)},
        {"mixed": (2, 1)},
        {"mixed": (2, 0, 1)},
        {"drop_rate": 1.5},
    ],
)
def test_senseless_settings_are_refused(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        replace(OBJECTIVE, **bad)


def test_the_objective_goes_to_json_and_back():
    objective = replace(OBJECTIVE, weights=(16.0, 4.0, 1.0), mixed=(1, 1, 2), importance=VDM(SquaredCosine(100)))
    assert from_data(json.loads(json.dumps(to_data(objective))), VALUES) == objective


TABLES = {"DEEPFLOYD": SquaredCosine, "DDPM": LinearBeta}


@pytest.mark.parametrize("case", ["nested2_shift", "nested2_rescale_singleloss", "nested2_mixed_ratio"])
def test_levels_and_their_noise_are_those_of_the_golden(golden, golden_json, case):
    stored = golden(f"mdm/loss_{case}")
    shifted = golden_json(f"mdm/loss_{case}")["diffusion_config"]["sampler_config"]["schedule_shifted"]
    pyramid = Pyramid((1, 4)) if shifted else Pyramid((1, 4), power=2.0, divided=True)
    sigma = SquaredCosine().sigmas[stored["in.times"] + 1].float()
    objective = NestedDenoising(Process(VPV(), clock=TableIndex(SquaredCosine())), SquaredCosine(), SNR(), pyramid)
    x, noise = stored["in.images"], [stored["in.eps0"], stored["in.eps1"]]
    draw = Draw(sigma, join(noise))
    clean, noisy = objective.noised(Batch(x, {}, torch.arange(len(x))), draw)
    torch.testing.assert_close(clean[1], stored["out.images1"])
    inputs, times = pyramid.inputs(objective.process, noisy, sigma)
    assert torch.equal(times.long(), stored["in.times"])
    for r in (0, 1):
        gamma = stored[f"in.gamma{r}"].reshape(-1, 1, 1, 1)
        torch.testing.assert_close(inputs[r], gamma.sqrt() * clean[r] + (1 - gamma).sqrt() * noise[r])


@pytest.mark.parametrize(("case", "precond"), [("unet_v_eps", VPV()), ("unet_eps_ddpm_tanh", VPEps())])
def test_a_plain_network_s_loss_on_the_noise_meets_the_golden(golden, golden_json, case, precond):
    stored, description = golden(f"mdm/loss_{case}"), golden_json(f"mdm/loss_{case}")
    config = description["diffusion_config"]["sampler_config"]
    table = TABLES[config["schedule_type"]](config["num_diffusion_steps"])
    process, sigma = Process(precond, clock=TableIndex(table)), table.sigmas[stored["in.times"] + 1]
    x, noise = stored["in.images"].double(), stored["in.eps0"].double()
    objective = NestedDenoising(process, table, SNR(), Pyramid((1,)))
    assert torch.equal(stored["out.tgt0"], stored["in.eps0"])

    def says(inputs, c_noise, cond):
        assert torch.equal(c_noise, stored["in.times"].double())
        return stored["out.pred0"]

    losses = objective.loss(says, Batch(x, {}, torch.arange(len(x))), Draw(sigma, noise.flatten(1)))
    torch.testing.assert_close(losses.float(), stored["out.losses"], atol=1e-5, rtol=1e-4)
    weights = torch.ones(len(x), dtype=torch.float64)
    if description["diffusion_config"]["use_vdm_loss_weights"]:
        weights = VDM(table)(sigma, process.precond(sigma))
        torch.testing.assert_close((weights / weights[0]).float(), stored["out.weights"] / stored["out.weights"][0])
    total = (losses * weights).sum() / weights.sum()
    torch.testing.assert_close(total.float(), stored["out.loss"][0], atol=1e-5, rtol=1e-4)
