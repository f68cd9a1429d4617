import pytest
import torch

from pixelspace.noise.process import EDM, VPV, X0, VPEps
from pixelspace.noise.weighting import SNR, EDMWeight, MinSNR, SoftMinSNR, Unit

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
