import pytest
import torch

from pixelspace.noise.process import EDM, VPV, X0, VPEps
from pixelspace.noise.tables import LinearBeta, SquaredCosine
from pixelspace.noise.weighting import SNR, VDM, EDMWeight, MinSNR, SoftMinSNR, Unit

SIGMA = torch.logspace(-2, 2, 9, dtype=torch.float64)


@pytest.mark.parametrize("sigma_data", ["0.5", "0.6162", "1.0"])
def test_weights_meet_the_golden(golden, sigma_data):
    misc, sd = golden("hdit/misc"), float(sigma_data)
    sigma, c = misc["sigma"], EDM(sd)(misc["sigma"])
    for name, weighting in {"karras": Unit(), "snr": SNR(), "soft-min-snr": SoftMinSNR(1 / sd**2)}.items():
        expected = misc[f"sd{sigma_data}/weight_{name}"]
        torch.testing.assert_close(weighting(sigma, c), expected, rtol=1e-10, atol=0)


@pytest.mark.parametrize("precond", [EDM(0.5), VPEps(), VPV(), X0()], ids=repr)
def test_a_weight_on_denoised_does_not_depend_on_the_parametrisation(precond):
    c = precond(SIGMA)
    of_x0 = {SNR(): SIGMA**-2, MinSNR(5.0): (SIGMA**-2).clamp(max=5), SoftMinSNR(4.0): 1 / (SIGMA**2 + 0.25)}
    for weighting, expected in of_x0.items():
        torch.testing.assert_close(weighting(SIGMA, c) / c.c_out**2, expected)


def test_the_edm_weight_is_unit_under_edm():
    torch.testing.assert_close(EDMWeight(0.5)(SIGMA, EDM(0.5)(SIGMA)), torch.ones_like(SIGMA))


@pytest.mark.parametrize("table", [SquaredCosine(), LinearBeta(32)], ids=repr)
def test_the_bound_s_weights_are_those_of_the_entries_and_have_mean_one(table):
    sigma = table.sigmas[1:]
    found = VDM(table)(sigma, VPEps()(sigma))
    snr = sigma**-2
    torch.testing.assert_close(
        found[1:] / found[1], (snr[:-1] / snr[1:] - 1) / (snr[0] / snr[1] - 1), rtol=1e-4, atol=0
    )
    assert found[0] == found[1]
    assert float(found.mean()) == pytest.approx(1)
    on_noise = VDM(table, on=SNR())(sigma, VPV()(sigma))
    torch.testing.assert_close(on_noise, found * SNR()(sigma, VPV()(sigma)))
