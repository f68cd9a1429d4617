"""The original's samplers are ancestral Euler steps on a packed pyramid; a plain network is a pyramid of one level."""

from functools import partial

import pytest
import torch

from pixelspace.noise.clock import TableIndex
from pixelspace.noise.levels import grid
from pixelspace.noise.process import VPV, Process
from pixelspace.noise.pyramid import Pyramid, join
from pixelspace.noise.tables import SquaredCosine, shifted
from pixelspace.sampling.denoiser import denoiser, guided_by
from pixelspace.sampling.pyramid import Packing
from pixelspace.sampling.solvers import euler_ancestral
from pixelspace.sampling.threshold import THRESHOLDS, thresholded

PYRAMIDS = {
    "plain": Pyramid((1,)),
    "nested2_pow1": Pyramid((1, 4), power=1.0),
    "nested2_rescale": Pyramid((1, 4), power=2.0, divided=True),
    "nested3_pow2": Pyramid((1, 2, 4), power=2.0),
}
FUNCTIONS = {"NONE": "none", "CLIP": "clip", "DYNAMIC": "dynamic", "DYNAMIC_IF": "deepfloyd"}
RUNS = [
    *(f"plain.eta{eta}.{threshold}" for eta in ("None", "0.0", "0.5", "1.0") for threshold in ("CLIP", "NONE")),
    "plain.full8.etaNone",
    *(f"plain.cfg3.eta0.{threshold}" for threshold in ("CLIP", "DYNAMIC", "DYNAMIC_IF")),
    *(f"{name}.{run}" for name in PYRAMIDS if name != "plain" for run in ("etaNone", "eta0.0", "eta1.0", "cfg3.eta0")),
]


class Recorded:
    """The noises of a run, step by step; ones that were not drawn are multiplied by 0."""

    def __init__(self, stored, name, pyramid, like):
        self.stored, self.name, self.levels, self.like = stored, name, range(len(pyramid.factors)), like
        self.step = -1

    def __call__(self, sigma, sigma_next):
        self.step += 1
        names = [f"{self.name}.noise.step{self.step}.scale{r}" for r in self.levels]
        assert all(name in self.stored for name in names)
        return join([self.stored[name] for name in names])


def gaussian(table, pyramid, sd):
    """The best network for data whose every pixel is N(mu, sd^2), mu being the mean of the sample's text; it says v."""
    scales = [pyramid.factors[-1] // factor for factor in pyramid.factors]

    def level(x, t, mu, scale):
        g = table.gammas if pyramid.divided else shifted(table.gammas, scale**pyramid.power)
        g, unit = g[t.long() + 1].reshape(-1, 1, 1, 1), scale if pyramid.divided else 1
        mu, spread, a = mu / unit, sd / unit, g.sqrt()
        x0 = mu + spread**2 * a / (spread**2 * g + 1 - g) * (x - a * mu)
        return (a * x - x0) / (1 - g).sqrt()

    def network(xs, t, cond):
        assert torch.equal(t, t.round())
        mu = cond["text"].mean((1, 2)).reshape(-1, 1, 1, 1)
        if len(scales) == 1:
            return level(xs, t, mu, 1)
        return [level(x, t, mu, scale) for x, scale in zip(xs, scales, strict=True)]

    return network


@pytest.mark.parametrize("run", RUNS)
def test_ddpm_and_ddim_meet_the_golden(golden, golden_json, run):
    stored, entry = golden("mdm/sampling_analytic"), golden_json("mdm/sampling_analytic")["entries"][run]
    config, options = entry["sampler_config"], entry["kwargs"]
    table, pyramid = SquaredCosine(config["num_diffusion_steps"]), PYRAMIDS[run.split(".")[0]]
    start = [stored[f"{run}.xT{r}"] for r in range(len(pyramid.factors))]
    packing = Packing(pyramid, tuple(start[0].shape[1:]))
    network = gaussian(table, pyramid, 0.8 if "cfg3" in run else 0.3)
    under = partial(packing.denoiser, network, Process(VPV(), clock=TableIndex(table)))
    if "guidance_scale" in options:
        null, text = stored["lm_cfg"].chunk(2)
        denoise = guided_by(under, {"text": text}, {"text": null}, options["guidance_scale"])
    else:
        denoise = under({"text": stored["lm"]})
    denoise = thresholded(denoise, packing.each(THRESHOLDS[FUNCTIONS[config["threshold_function"]]]))

    assert table.entries(entry["steps"]).tolist() == entry["timesteps"]
    sigmas, eta = grid(table, entry["steps"]), options["ddim_eta"]
    seen = []
    y = euler_ancestral(
        *(denoise, packing.start(join(start), float(sigmas[0])), sigmas),
        noise=Recorded(stored, run, pyramid, start) if eta != 0 else None,
        callback=seen.append,
        eta=1.0 if eta is None else eta,
    )
    close = partial(torch.testing.assert_close, atol=2e-5, rtol=1e-4)
    image = packing.unpack(y)[0]
    close(image.clamp(-1, 1), stored[f"{run}.final"])
    close(image, stored[f"{run}.final_x0"])
    after = stored[f"{run}.traj_mean_std"][: len(seen) - 1]  # of each step; the last one's is `final`
    for step, (mean, deviation) in zip(seen[1:], after, strict=True):
        z = packing.unpack(step.x)[0] / (1 + (pyramid.seen[0] * step.sigma) ** 2) ** 0.5
        close(z.mean(), mean)
        close(z.std(correction=0), deviation)


@pytest.mark.parametrize("threshold", FUNCTIONS)
@pytest.mark.parametrize("eta", ["None", "0.0", "0.3", "1.0"])
def test_one_step_meets_the_golden(golden, eta, threshold):
    stored, table, process = golden("mdm/process"), SquaredCosine(), Process(VPV())
    stem = f"step.eta{eta}.{threshold}"
    for i, (t, t_last) in enumerate(zip(stored["step.t"].tolist(), stored["step.t_last"].tolist(), strict=True)):
        row, sigmas = slice(i, i + 1), table.sigmas[[t, t_last]]
        said = 1.5 * stored["pred"][row]

        def network(inputs, c_noise, cond, said=said):
            return said

        def recorded(sigma, sigma_next, row=row):
            return stored["noise"][row]

        seen = []
        denoise = thresholded(denoiser(network, process, {}), THRESHOLDS[FUNCTIONS[threshold]])
        x = stored["xt"][row] * (1 + sigmas[0] ** 2).sqrt().float()
        eta_used = 1.0 if eta == "None" else float(eta)
        x = euler_ancestral(denoise, x, sigmas, noise=recorded, callback=seen.append, eta=eta_used)
        close = partial(torch.testing.assert_close, atol=2e-5, rtol=1e-4)
        close(seen[0].denoised, stored[f"{stem}.x0"][row])
        close(x / (1 + sigmas[1] ** 2).sqrt().float(), stored[f"{stem}.x_last"][row])


@pytest.mark.parametrize("scale", [1, 4])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_thresholds_meet_the_golden(golden, name, scale):
    stored, pyramid = (
        golden("mdm/process"),
        Pyramid((1, scale), power=2.0, divided=True) if scale > 1 else Pyramid((1,)),
    )
    x0 = stored["thresh.in"]
    packing = Packing(pyramid, tuple(x0.shape[1:]))
    coarse = [torch.zeros(shape).expand(len(x0), *shape) for shape in pyramid.shapes(packing.shape)[1:]]
    packed = join([x0, *coarse])
    found = pyramid.split(packing.each(THRESHOLDS[FUNCTIONS[name]])(packed), packing.shape)[0]
    torch.testing.assert_close(found, stored[f"thresh.{name}" + (f".scale{scale}" if scale > 1 else "")])
