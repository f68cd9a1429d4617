import math

import pytest
import torch

from pixelspace.noise.levels import LogNormal
from pixelspace.noise.process import EDM, VPV, Process
from pixelspace.noise.weighting import SNR, EDMWeight, Unit
from pixelspace.objectives.denoising import Denoising, dct2, frequency_weight
from pixelspace.random import Rng
from pixelspace.types import Batch, Draw

OBJECTIVE = Denoising(Process(EDM(0.5)), LogNormal(), Unit(), drop_rate=0.25)


def batch_of(n, start=0, dtype=torch.float32):
    pos = torch.arange(start, start + n)
    return Batch(torch.randn(n, 3, 8, 8, dtype=dtype), {"label": pos % 5}, pos)


def test_draws_do_not_depend_on_how_the_global_batch_is_split():
    whole = batch_of(16, 32)
    draw = OBJECTIVE.draw(whole, 16, 0.0, Rng(3))
    for start in range(0, 16, 4):
        rows = slice(start, start + 4)
        part = Batch(whole.x[rows], {"label": whole.cond["label"][rows]}, whole.pos[rows])
        found = OBJECTIVE.draw(part, 16, 0.0, Rng(3))
        assert torch.equal(found.sigma, draw.sigma[rows]) and torch.equal(found.noise, draw.noise[rows])
        assert torch.equal(found.drop, draw.drop[rows])


def test_a_perfect_network_has_no_loss():
    batch = batch_of(6, dtype=torch.float64)
    draw = Draw(torch.logspace(-2, 2, 6, dtype=torch.float64), torch.randn_like(batch.x))
    for process in (Process(EDM(0.5)), Process(VPV())):
        objective = Denoising(process, LogNormal(), Unit())

        def perfect(inputs, c_noise, cond, process=process):
            x = process.corrupt(batch.x, draw.noise, draw.sigma)
            return process.target(batch.x, x, draw.sigma)

        torch.testing.assert_close(objective.loss(perfect, batch, draw), torch.zeros(6, dtype=torch.float64))


def test_a_network_that_says_nothing_loses_the_variance_of_the_target():
    batch = Batch(0.5 * torch.randn(64, 3, 16, 16, dtype=torch.float64), {}, torch.arange(64))
    draw = OBJECTIVE.draw(batch, 64, 0.0, Rng(0))
    loss = OBJECTIVE.loss(lambda x, c, cond: torch.zeros_like(x), batch, draw)
    torch.testing.assert_close(loss, torch.ones_like(loss), rtol=0.2, atol=0)


def test_the_share_of_dropped_labels_is_the_rate_and_they_become_none():
    batch = batch_of(4000)
    drop = OBJECTIVE.draw(batch, 4000, 0.0, Rng(1)).drop
    assert float(drop.float().mean()) == pytest.approx(0.25, abs=4 * math.sqrt(0.25 * 0.75 / 4000))
    seen = {}

    def network(x, c_noise, cond):
        seen.update(cond)
        return torch.zeros_like(x)

    few = batch_of(8)
    dropped = torch.tensor([True, False] * 4)
    OBJECTIVE.loss(network, few, Draw(torch.ones(8), torch.randn_like(few.x), dropped))
    assert torch.equal(seen["label"], torch.where(dropped, -1, few.cond["label"]))


def test_the_cosine_transform_meets_the_golden_and_keeps_energy(golden):
    misc = golden("hdit/misc")
    torch.testing.assert_close(dct2(misc["dct2/in"]), misc["dct2/out"], rtol=0, atol=1e-12)
    x = torch.randn(2, 3, 8, 12, dtype=torch.float64)
    torch.testing.assert_close(dct2(x).square().sum((-1, -2)), x.square().sum((-1, -2)))


def test_frequency_weights_meet_the_golden(golden):
    misc = golden("hdit/misc")
    torch.testing.assert_close(frequency_weight(8, 12, 2.0), misc["freq_weight_nd/8x12_s2"], rtol=1e-6, atol=1e-7)
    for name in ("n12_s2.5", "n16_s3", "n8_s0", "n8_s1", "n8_s2"):
        n, scales = int(name[1:].split("_")[0]), float(name.split("_s")[1])
        row = frequency_weight(n, n, scales).diagonal()
        torch.testing.assert_close(row, misc[f"freq_weight_1d/{name}"], rtol=1e-6, atol=1e-7)


def test_the_edm_and_the_noise_loss_are_weights_of_one_error():
    batch = batch_of(5, dtype=torch.float64)
    draw = Draw(torch.logspace(-1, 1, 5, dtype=torch.float64), torch.randn_like(batch.x))
    process = Process(EDM(0.5))
    x = process.corrupt(batch.x, draw.noise, draw.sigma)
    out = torch.randn_like(x)
    denoised = process.denoised(out, x, draw.sigma)
    sigma = draw.sigma[:, None, None, None]
    noise_error = ((x - denoised) / sigma - draw.noise).square().flatten(1).mean(1)
    loss = Denoising(process, LogNormal(), SNR()).loss(lambda *_: out, batch, draw)
    torch.testing.assert_close(loss, noise_error)
    unit, edm = (Denoising(process, LogNormal(), w).loss(lambda *_: out, batch, draw) for w in (Unit(), EDMWeight(0.5)))
    torch.testing.assert_close(unit, edm)


@pytest.mark.parametrize("bad", [{"drop_rate": 1.5}, {"scales": -1.0}])
def test_senseless_settings_are_refused(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        Denoising(Process(EDM(0.5)), LogNormal(), Unit(), **bad)
