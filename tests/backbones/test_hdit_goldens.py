"""HDiT against outputs, losses and gradients of the original implementation, by its own weights."""

import math

import pytest
import torch
from safetensors.torch import load_file

from pixelspace.interop.k_diffusion import read_config
from pixelspace.noise.levels import LogUniform
from pixelspace.noise.process import EDM, Process
from pixelspace.noise.weighting import SNR, SoftMinSNR, Unit
from pixelspace.objectives.denoising import Denoising
from pixelspace.types import Batch, Draw
from tests.conftest import GOLDENS

CASES = {
    "nbhd_class_2lvl": ["16x16", "16x24", "28x12"],
    "global_2lvl": ["16x16", "24x16"],
    "shifted_window_odd_depth": ["32x32", "32x48"],
    "aug_mapcond_class_noattn": ["24x24", "16x32"],
}
EACH = [(case, size) for case, sizes in CASES.items() for size in sizes]
WEIGHTINGS = {"karras": Unit(), "snr": SNR(), "simple": SNR(), "soft-min-snr": SoftMinSNR(4.0)}


@pytest.fixture(scope="module")
def network(golden_json):
    def build(case: str, dtype: torch.dtype):
        net = read_config(golden_json(f"hdit/{case}")["config"]).backbone.build()
        net.load_state_dict(load_file(GOLDENS / f"hdit/{case}.weights.safetensors"))
        return net.eval().to(dtype)

    return build


def _inputs(stored: dict, size: str, dtype: torch.dtype):
    given = {k.split("/")[-1]: v for k, v in stored.items() if k.startswith(f"{size}/in/")}
    given = {k: v.to(dtype) if v.is_floating_point() else v for k, v in given.items()}
    names = {"class_cond": "label", "aug_cond": "aug", "mapping_cond": "mapping"}
    return given, {names[k]: given[k] for k in names if k in given}


@pytest.mark.parametrize(("case", "size"), EACH)
@pytest.mark.parametrize(("dtype", "tag", "atol"), [(torch.float64, "out64", 1e-10), (torch.float32, "out32", 2e-4)])
def test_outputs_meet_the_golden(golden, network, case, size, dtype, tag, atol):
    net, stored = network(case, dtype), golden(f"hdit/{case}.io")
    given, cond = _inputs(stored, size, dtype)
    x, sigma = given["x"], given["sigma"]
    process = Process(EDM(0.5))

    with torch.no_grad():
        inner = net(x, sigma.log() / 4, cond)
        denoised = process.denoised(net(*process.inputs(x, sigma), cond), x, sigma)
        torch.testing.assert_close(inner, stored[f"{size}/{tag}/inner_out"], rtol=0, atol=atol)
        torch.testing.assert_close(denoised, stored[f"{size}/{tag}/denoised"], rtol=0, atol=atol)
        if "aug" in cond:
            plain = net(x, sigma.log() / 4, {k: v for k, v in cond.items() if k != "aug"})
            torch.testing.assert_close(plain, stored[f"{size}/{tag}/inner_out_no_aug"], rtol=0, atol=atol)


@pytest.mark.parametrize(("case", "size"), EACH)
def test_losses_meet_the_golden(golden, network, case, size):
    net, stored = network(case, torch.float64), golden(f"hdit/{case}.io")
    given, cond = _inputs(stored, size, torch.float64)
    batch, draw = Batch(given["clean"], cond, torch.arange(len(given["x"]))), Draw(given["sigma"], given["noise"])
    process, levels = Process(EDM(0.5)), LogUniform()
    found = {
        f"loss_{name}": Denoising(process, levels, weighting).loss(net, batch, draw)
        for name, weighting in WEIGHTINGS.items()
    }
    for scales in (0, 2, 4):
        objective = Denoising(process, levels, SoftMinSNR(4.0), scales=float(scales))
        found[f"loss_soft-min-snr_scales{scales}"] = objective.loss(net, batch, draw)
    expected = {k.split("/")[-1]: v for k, v in stored.items() if k.startswith(f"{size}/out64/loss")}
    assert found.keys() == expected.keys()
    for name, loss in found.items():
        torch.testing.assert_close(loss, expected[name], rtol=1e-9, atol=1e-10, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize(("case", "size"), EACH)
def test_gradients_meet_the_golden(golden, network, case, size):
    net, stored = network(case, torch.float64), golden(f"hdit/{case}.io")
    given, cond = _inputs(stored, size, torch.float64)
    batch, draw = Batch(given["clean"], cond, torch.arange(len(given["x"]))), Draw(given["sigma"], given["noise"])
    Denoising(Process(EDM(0.5)), LogUniform(), SoftMinSNR(4.0)).loss(net, batch, draw).mean().backward()
    compared = 0
    for name, parameter in net.named_parameters():
        grad = parameter.grad
        if (stats := stored.get(f"{size}/gradstat64/{name}")) is not None:
            found = torch.stack([grad.norm(), grad.sum(), grad.abs().max(), grad.flatten()[0], grad.flatten()[-1]])
            torch.testing.assert_close(found, stats, rtol=1e-6, atol=1e-9 * float(stats[0]) + 1e-15)
            compared += 1
        if (full := stored.get(f"{size}/grad64as32/{name}")) is not None:
            assert float((grad - full).norm()) <= 1e-6 * float(full.norm()) + 1e-15, name
            compared += 1
    if any(k.startswith(f"{size}/grad") for k in stored):
        assert compared >= len(list(net.parameters()))


@pytest.mark.parametrize("case", CASES)
def test_counts_and_parameter_groups_meet_the_golden(golden_json, case):
    described = golden_json(f"hdit/{case}")
    config = read_config(described["config"]).backbone
    net = config.build()
    assert sum(p.numel() for p in net.parameters()) == described["n_params"]
    assert sum(b.numel() for b in net.buffers()) == described["n_buffers"]
    assert config.macs(*described["sizes"][0]) == described["flop_counter_macs_batch1_first_size"]
    for group in described["param_groups"]:
        (ours,) = [g for g in net.param_groups() if g.names and set(g.names) & set(group["names"])]
        assert set(ours.names) == set(group["names"])
        assert math.isclose(ours.lr_factor, group["lr_mult"], rel_tol=1e-9)
        assert ours.decay == (group["weight_decay_override"] is None)
