from functools import partial

import pytest
import torch
import torch.nn.functional as F

from pixelspace.noise.process import EDM, VPV, X0, Process, RectifiedFlow, VPEps
from pixelspace.noise.tables import SquaredCosine
from pixelspace.recipes.greedy import objective_at

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


@pytest.mark.parametrize(("precond", "name"), [(VPEps(), "DDPM"), (VPV(), "V_PREDICTION")], ids=repr)
def test_variance_preserving_algebra_meets_the_golden(golden, precond, name):
    stored, process, table = golden("mdm/process"), Process(precond), SquaredCosine()
    for i, t in enumerate(stored["t"].tolist()):
        sigma = table.sigmas[t : t + 1].float()
        x0, eps, pred, xt = (stored[key][i : i + 1] for key in ("x0", "eps", "pred", "xt"))
        keys = ("target", "x0_from_pred", "eps_from_pred", "pred_from_x0_xt")
        target, back, noise, again = (stored[f"{key}.{name}"][i : i + 1] for key in keys)
        x = process.corrupt(x0, eps, sigma)
        # What float32 keeps of x0 at high noise, or of the noise at low, is less: the more so, the more it is scaled.
        close = partial(torch.testing.assert_close, rtol=1e-4)
        close(process.inputs(x, sigma)[0], xt, atol=1e-6)
        close(process.target(x0, x, sigma), target, atol=2e-5)
        x = xt * (1 + sigma**2).sqrt()
        denoised = process.denoised(pred, x, sigma)
        close(denoised, back, atol=2e-6 * max(1, float(sigma)))
        close((x - denoised) / sigma, noise, atol=2e-6 * max(1, 1 / float(sigma)))
        close(process.target(x0, x, sigma), again, atol=2e-6 * max(1, 1 / float(sigma)))


def test_shift_asks_the_network_about_the_unshifted_level(images):
    x = images[0]
    plain, shifted = Process(VPV()), Process(VPV(), shift=4.0)
    torch.testing.assert_close(shifted.inputs(x, 4 * SIGMA)[1], plain.inputs(x, SIGMA)[1])


@pytest.mark.parametrize("make", [lambda: EDM(0.0), lambda: Process(VPV(), shift=-1.0)])
def test_a_senseless_process_is_refused(make):
    with pytest.raises(ValueError, match="must be positive"):
        make()


@pytest.mark.parametrize("size", [128, 256, 512, 1024])
def test_a_noisy_image_made_smaller_is_as_noisy_as_the_core_is_told(size):
    """The pool test: 64 px averages of what a grown network sees at `size` have the SNR of 64 px at the same u."""
    ratio, u = size // 64, torch.linspace(0, 1, 41, dtype=torch.float64)
    at_64, grown = objective_at(64), objective_at(size)
    small, large = at_64.levels(u), grown.levels(u)
    torch.testing.assert_close(large / ratio, small, rtol=1e-6, atol=0)  # white noise: the mean of ratio^2 pixels

    # Noise that is white to the last bit: over its ratio^2 samples, the pixels of a block are exactly uncorrelated.
    basis = torch.linalg.qr(torch.randn(ratio**2, ratio**2, dtype=torch.float64)).Q
    noise = ratio * basis.reshape(ratio**2, 1, ratio, ratio)
    image = torch.randn(ratio**2, 1, 1, 1, dtype=torch.float64).expand(-1, 1, ratio, ratio)

    def power(process, x0, noise, sigma):
        z, c_noise = process.inputs(process.corrupt(x0, noise, sigma), sigma)
        return F.adaptive_avg_pool2d(z, 1).square().mean(), c_noise

    for low, high in zip(small, large, strict=True):
        signal, _ = power(grown.process, image, torch.zeros_like(noise), high)
        disturbance, told = power(grown.process, torch.zeros_like(image), noise, high)
        _, wanted = power(at_64.process, image, noise, low)
        snr = signal / disturbance / image[:, 0, 0, 0].square().mean()
        torch.testing.assert_close(snr, low**-2, rtol=1e-6, atol=0)
        torch.testing.assert_close(told, wanted, rtol=0, atol=1e-6)
