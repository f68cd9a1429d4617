"""EDM's samplers as MaskDiT runs them: float64 state, the denoiser in float32."""

import pytest
import torch
from safetensors.torch import load_file

from pixelspace.backbones.maskdit import Decoder, MaskDiTConfig
from pixelspace.noise.levels import IDDPM, VP, Karras, LogUniform, grid
from pixelspace.noise.process import EDM, Process
from pixelspace.sampling.ablation import LinearTime, VETime, VPTime, in_time
from pixelspace.sampling.denoiser import denoiser, guided
from pixelspace.sampling.solvers import heun
from tests.conftest import GOLDENS

EDM_LEVELS = Karras(0.002, 80.0)
CHURN = {"s_churn": 10.0, "s_tmin": 0.05, "s_tmax": 50.0, "s_noise": 1.003}
HEUN = {
    "gauss_heun_2": (EDM_LEVELS, 2, {}),
    "gauss_heun_5": (EDM_LEVELS, 5, {}),
    "gauss_heun_18": (EDM_LEVELS, 18, {}),
    "gauss_heun_40": (EDM_LEVELS, 40, {}),
    "mix_heun_18": (EDM_LEVELS, 18, {}),
    "gauss_rho3": (Karras(0.01, 20.0, 3.0), 6, {}),
    "gauss_churn": (EDM_LEVELS, 8, CHURN),
}
IN_TIME = {
    "abl_edm_euler": (EDM_LEVELS, {"time": LinearTime(), "solver": "euler"}),
    "abl_edm_heun": (EDM_LEVELS, {"time": LinearTime()}),
    "abl_vp": (VP(19.1, 0.1, 1e-3), {"time": VPTime(), "preserving": True}),
    "abl_ve": (LogUniform(0.02, 100.0), {"time": VETime()}),
    "abl_iddpm": (IDDPM(), {"time": LinearTime()}),
}


@pytest.fixture(scope="module")
def stored():
    return load_file(GOLDENS / "maskdit/sampler.safetensors")


def analytic(stored, name, seen):
    def denoise(x, sigma):
        seen.append(float(sigma.flatten()[0]))
        sigma, x = sigma.float(), x.float()
        if name.startswith("mix"):
            return (0.8 * (0.8 * x / sigma**2).tanh()).double()
        return ((0.25 * x + sigma**2 * stored["mu"]) / (0.25 + sigma**2)).double()

    return denoise


@pytest.mark.parametrize("name", HEUN)
def test_heun_meets_the_golden(stored, golden_json, name):
    (levels, steps, settings), seen, draws = HEUN[name], [], iter(stored.get(f"{name}.draws", []))
    sigmas, run = grid(levels, steps), golden_json("maskdit/sampler")["runs"][name]
    noise = (lambda sigma, sigma_next: next(draws)) if settings else None
    x = stored["latents"].double() * sigmas[0]
    found = heun(analytic(stored, name, seen), x, sigmas, noise=noise, **settings)
    torch.testing.assert_close(found, stored[f"{name}.out"], rtol=1e-5, atol=1e-6)
    assert len(seen) == run["nfe"] or not run["nfe"]
    assert seen[: len(run["sigmas_evaluated"])] == pytest.approx(run["sigmas_evaluated"], rel=1e-9)


@pytest.mark.parametrize("name", IN_TIME)
def test_the_ablation_s_samplers_meet_the_golden(stored, golden_json, name):
    (levels, settings), seen, steps = IN_TIME[name], [], []
    sigmas, run = grid(levels, 8), golden_json("maskdit/sampler")["runs"][name]
    x = stored["latents"].double() * sigmas[0]
    found = in_time(analytic(stored, name, seen), x, sigmas, callback=steps.append, **settings)
    torch.testing.assert_close(found, stored[f"{name}.out"], rtol=1e-5, atol=1e-6)
    assert len(seen) == run["nfe"] and len(steps) == 8
    expected = run["sigmas_evaluated"]
    assert seen[: len(expected)] == pytest.approx(expected, rel=1e-6)  # theirs of iddpm were rounded to float32


@pytest.mark.parametrize("count", [5, 18, 40])
def test_the_schedule_meets_the_golden(stored, count):
    torch.testing.assert_close(grid(EDM_LEVELS, count), stored[f"t_steps_{count}"], rtol=1e-12, atol=0)


@pytest.mark.parametrize(("name", "scale", "rtol"), [("wNone", None, 1e-5), ("w1.5", 1.5, 1e-5), ("w4.0", 4.0, 1e-4)])
def test_a_network_with_guidance_meets_the_golden(stored, golden, name, scale, rtol):
    config = MaskDiTConfig(64, 2, 4, (8, 8), num_classes=10, decoder=Decoder(32, 2, 4))
    network = config.build().eval()
    weights = golden("maskdit/tiny_state_dict")
    network.load_state_dict({key.removeprefix("model."): tensor for key, tensor in weights.items()})
    process, sigmas, label = Process(EDM(0.5)), grid(EDM_LEVELS, 6), stored["net.labels"]
    cond, null = {"label": label}, {"label": torch.zeros_like(label)}
    single = denoiser(network, process, cond) if scale is None else guided(network, process, cond, null, scale)
    with torch.no_grad():
        found = heun(
            lambda x, sigma: single(x.float(), sigma.float()).double(),
            stored["net.latents"].double() * sigmas[0],
            sigmas,
        )
    torch.testing.assert_close(found, stored[f"net_{name}.out"], rtol=rtol, atol=rtol)


@pytest.mark.parametrize("time", [LinearTime(), VETime(), VPTime()], ids=repr)
def test_times_invert_and_differentiate(time):
    for sigma in (0.01, 0.5, 3.0, 60.0):
        t = time.inverse(sigma)
        assert time.sigma(t) == pytest.approx(sigma, rel=1e-9)
        h = 1e-6 * t
        assert (time.sigma(t + h) - time.sigma(t - h)) / (2 * h) == pytest.approx(time.slope(t), rel=1e-6)


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("heun", 2)])
@pytest.mark.parametrize("preserving", [False, True])
@pytest.mark.parametrize("time", [LinearTime(), VETime(), VPTime()], ids=repr)
def test_errors_shrink_with_the_order_in_every_time(time, preserving, solver, order):
    """Of x ~ N(0, 0.25), whose ODE has the solution x sqrt((0.25 + s^2) / (0.25 + sigma^2))."""
    x, errors = torch.tensor([[2.0]], dtype=torch.float64), []
    for steps in (64, 128):
        ends = [time.inverse(sigma) for sigma in (3.0, 0.2)]
        sigmas = [time.sigma(ends[0] + i / steps * (ends[1] - ends[0])) for i in range(steps + 1)]
        sigmas = torch.tensor(sigmas, dtype=torch.float64)
        found = in_time(lambda x, s: x / (1 + 4 * s**2), x, sigmas, time=time, preserving=preserving, solver=solver)
        errors.append(abs(float(found) - 2 * ((0.25 + 0.04) / (0.25 + 9)) ** 0.5))
    assert torch.tensor(errors[0] / errors[1]).log2() == pytest.approx(order, abs=0.1)
