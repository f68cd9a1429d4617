"""ml-mdm's networks in our process: losses, their gradients, and images drawn, against its own."""

from dataclasses import replace
from functools import partial

import pytest
import torch

from pixelspace.interop.ml_mdm import read_model
from pixelspace.noise.clock import TableIndex
from pixelspace.noise.levels import grid
from pixelspace.noise.process import VPV, Process, VPEps
from pixelspace.noise.pyramid import Pyramid, join
from pixelspace.noise.tables import LinearBeta, SquaredCosine
from pixelspace.noise.weighting import SNR, VDM, EDMWeight
from pixelspace.objectives.nested import NestedDenoising
from pixelspace.sampling.denoiser import guided_by
from pixelspace.sampling.pyramid import Packing
from pixelspace.sampling.solvers import euler_ancestral
from pixelspace.sampling.threshold import clip, thresholded
from pixelspace.types import Batch, Draw

TABLES = {"DEEPFLOYD": SquaredCosine, "DDPM": LinearBeta}
PREDICTIONS = {"V_PREDICTION": VPV(), "DDPM": VPEps()}
LOSSES = {"V_PREDICTION": EDMWeight(1.0), "DDPM": SNR()}  # a unit weight on the error of v, of the noise
CASES = ["unet_v_eps", "unet_eps_ddpm_tanh", "nested2_shift", "nested2_rescale_singleloss", "nested2_mixed_ratio"]
RUNS = ["unet_text.ddim50", "unet_text.ddpm.cfg4", "nested2_text.ddim.cfg3", "nested2_text.ddpm", "nested3_notext.ddim"]


@pytest.fixture
def opened(golden, golden_json):
    """(table, process, pyramid, network) of a forward case with the settings of a sampler's configuration."""

    def opened(case, config, squash=0.0):
        stored, described = golden(f"mdm/{case}"), golden_json(f"mdm/{case}")
        weights = {name.removeprefix("sd."): tensor for name, tensor in stored.items() if name.startswith("sd.")}
        read = read_model(weights, described["config"])
        backbone = replace(read.backbone, squash=squash) if squash else read.backbone
        network = backbone.build().eval()
        network.load_state_dict(read.weights)
        table = TABLES[config["schedule_type"]](config["num_diffusion_steps"])
        process = Process(PREDICTIONS[config["prediction_type"]], clock=TableIndex(table))
        shifted = config["schedule_shifted"] or len(read.backbone.pyramid) == 1
        power = config["schedule_shifted_power"] if shifted else 2.0
        return table, process, Pyramid(read.backbone.pyramid, power=float(power), divided=not shifted), network

    return opened


@pytest.mark.parametrize("case", CASES)
def test_losses_and_gradients_meet_the_golden(golden, golden_json, opened, case):
    stored, described = golden(f"mdm/loss_{case}"), golden_json(f"mdm/loss_{case}")
    config = described["diffusion_config"]
    table, process, pyramid, network = opened(
        described["weights_from"], config["sampler_config"], config["model_output_scale"]
    )
    several = len(pyramid.factors) > 1
    mixed, weights = (
        tuple(int(part) for part in (config.get(name) or "").split(":") if part)
        for name in ("mixed_ratio", "multi_res_weights")
    )
    if several and not config["use_double_loss"]:
        weights = (1.0, 0.0)
    weighting = LOSSES[config["sampler_config"]["loss_target_type"]]
    objective = NestedDenoising(process, table, weighting, pyramid, weights, mixed=mixed)

    images, sigma = stored["in.images"], table.sigmas[stored["in.times"] + 1].float()
    count = len(images)
    cond = {"text": stored["in.lm"], "text_mask": stored["in.mask"]}
    cond |= {"scale": stored["in.scale"]} if "in.scale" in stored else {}
    noise = join([stored[f"in.eps{r}"] for r in range(len(pyramid.factors))])
    rows = tuple(count * part // whole for part, whole in objective.shares) if objective.mixed else None
    losses = objective.loss(network, Batch(images, cond, torch.arange(count)), Draw(sigma, noise, rows=rows))
    torch.testing.assert_close(losses, stored["out.losses"], atol=1e-5, rtol=1e-4)

    share = VDM(table)(sigma, process.precond(sigma)) if config["use_vdm_loss_weights"] else torch.ones(count)
    loss = (losses * share).sum() / share.sum()
    torch.testing.assert_close(loss, stored["out.loss"][0], atol=1e-5, rtol=1e-4)
    loss.backward()
    norms = {name: 0.0 if p.grad is None else float(p.grad.norm()) for name, p in network.named_parameters()}
    expected = {**dict.fromkeys(norms, 0.0), **described["grad_norms"]}
    assert norms == pytest.approx(expected, rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("run", RUNS)
def test_images_meet_the_golden(golden, golden_json, opened, run):
    case, stored = run.split(".")[0], golden("mdm/sampling_models")
    entry = golden_json("mdm/sampling_models")["entries"][run]
    table, process, pyramid, network = opened(case, entry["sampler_config"])
    start = [stored[f"{run}.xT{r}"] for r in range(len(pyramid.factors))]
    packing = Packing(pyramid, tuple(start[0].shape[1:]))
    text = {"text": f"{case}.lm", "text_mask": f"{case}.mask"}
    null, cond = ({name: stored[key][i : i + 1] for name, key in text.items() if key in stored} for i in (0, 1))
    under = partial(packing.denoiser, network, process)
    scale, eta = entry["kwargs"].get("guidance_scale"), entry["kwargs"]["ddim_eta"]
    denoise = thresholded(guided_by(under, cond, null, scale) if scale else under(cond), packing.each(clip))
    steps = iter(range(entry["steps"]))

    def recorded(sigma, sigma_next):
        step = next(steps)
        names = [f"{run}.noise.step{step}.scale{r}" for r in range(len(start))]
        return join([stored[name] for name in names])

    sigmas = grid(table, entry["steps"])
    with torch.no_grad():
        y = euler_ancestral(
            *(denoise, packing.start(join(start), float(sigmas[0])), sigmas),
            noise=recorded if eta is None else None,
            eta=1.0 if eta is None else eta,
        )
    torch.testing.assert_close(packing.unpack(y)[0], stored[f"{run}.final_x0"], atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(packing.unpack(y)[0].clamp(-1, 1), stored[f"{run}.final"], atol=1e-3, rtol=1e-3)
