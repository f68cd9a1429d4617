import pytest
import torch

from pixelspace.noise.process import EDM, VPV, X0, Process, RectifiedFlow, VPEps

PRECONDS = [EDM(0.5), EDM(1.0), VPEps(), VPV(), X0(), RectifiedFlow()]
SIGMA = torch.logspace(-2, 2, 9, dtype=torch.float64)


@pytest.fixture
def images():
    return torch.randn(2, 9, 3, 4, 4, dtype=torch.float64)


@pytest.mark.parametrize("precond", PRECONDS, ids=repr)
def test_target_inverts_denoised(precond, images):
    process, (x0, noise) = Process(precond), images
    x = process.corrupt(x0, noise, SIGMA)
    torch.testing.assert_close(process.denoised(process.target(x0, x, SIGMA), x, SIGMA), x0)


def test_each_target_is_its_textbook_quantity(images):
    x0, noise = images
    s = SIGMA[:, None, None, None]
    alpha, sigma_vp, t = (1 + s**2).rsqrt(), s * (1 + s**2).rsqrt(), s / (1 + s)
    textbook = {
        VPEps(): noise,
        VPV(): alpha * noise - sigma_vp * x0,
        X0(): x0,
        RectifiedFlow(): noise - x0,
    }
    scaled = {VPEps(): alpha * x0 + sigma_vp * noise, RectifiedFlow(): (1 - t) * x0 + t * noise}
    for precond, expected in textbook.items():
        process = Process(precond)
        x = process.corrupt(x0, noise, SIGMA)
        torch.testing.assert_close(process.target(x0, x, SIGMA), expected)
        if precond in scaled:
            torch.testing.assert_close(process.inputs(x, SIGMA)[0], scaled[precond])


def test_edm_input_and_target_have_unit_variance():
    x0, noise = 0.5 * torch.randn(40000, dtype=torch.float64), torch.randn(40000, dtype=torch.float64)
    process = Process(EDM(0.5))
    for sigma in torch.logspace(-2, 2, 5, dtype=torch.float64):
        x = process.corrupt(x0, noise, sigma)
        assert process.inputs(x, sigma)[0].std() == pytest.approx(1, abs=0.02)
        assert process.target(x0, x, sigma).std() == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("sigma_data", ["0.5", "0.6162", "1.0"])
def test_edm_coefficients_meet_the_golden(golden, sigma_data):
    misc = golden("hdit/misc")
    c = EDM(float(sigma_data))(misc["sigma"])
    for name in ("c_skip", "c_out", "c_in"):
        torch.testing.assert_close(getattr(c, name), misc[f"sd{sigma_data}/{name}"], rtol=1e-12, atol=0)


def test_shift_asks_the_network_about_the_unshifted_level(images):
    x = images[0]
    plain, shifted = Process(VPV()), Process(VPV(), shift=4.0)
    torch.testing.assert_close(shifted.inputs(x, 4 * SIGMA)[1], plain.inputs(x, SIGMA)[1])


@pytest.mark.parametrize("make", [lambda: EDM(0.0), lambda: Process(VPV(), shift=-1.0)])
def test_a_senseless_process_is_refused(make):
    with pytest.raises(ValueError, match="must be positive"):
        make()
