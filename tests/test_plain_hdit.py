"""What the benchmarks measure HDiT and its training step against computes the same numbers."""

import copy
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest
import torch

from pixelspace.backbones.hdit import Global, HDiTConfig, Level, Neighborhood
from pixelspace.data.loader import read
from pixelspace.random import Rng
from pixelspace.recipes.hdit import imagenet128_debug
from pixelspace.training.ema import Average
from pixelspace.training.state import State
from pixelspace.training.step import train_step
from tests.backbones.cases import HDIT, conditions
from tests.backbones.test_backbones import awake

LARGER = HDiTConfig((Level(16, 2, Neighborhood(8, kernel=7)), Level(32, 1, Global(16))), mapping_width=16)


@pytest.fixture
def plain(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    return lambda name: import_module(f"plain.{name}")


@pytest.mark.parametrize("way", ["mask", "gather"])
@pytest.mark.parametrize(("config", "size"), [(HDIT, (16, 32)), (LARGER, (72, 80))], ids=["windows", "larger"])
def test_the_plain_network_has_our_output_and_gradients(plain, config, size, way):
    ours = awake(config)
    theirs = plain("hdit").plain(ours, way).eval()
    x, c_noise = torch.randn(3, 3, *size, dtype=torch.float64), torch.randn(3, dtype=torch.float64)
    found = []
    for network in (ours, theirs):
        out = network(x, c_noise, conditions(config, 3, torch.float64))
        found.append([out, *torch.autograd.grad(out.square().sum(), list(network.parameters()))])
    for expected, other in zip(*found, strict=True):
        torch.testing.assert_close(other, expected, rtol=1e-9, atol=1e-9)


def test_the_plain_step_learns_and_averages_as_ours_does(plain):
    (stage,) = imagenet128_debug().stages
    stage = replace(stage, images=800)
    raw = read(stage.data.source.open(), list(range(stage.batch)), stage.size)
    ours, rng = awake(stage.backbone, torch.float32).train(), Rng(0)
    theirs = copy.deepcopy(ours)
    state = State(ours, Average(ours), stage.optimizer.build(ours))
    plainly = plain("training").Training(theirs, theirs, stage, theirs)
    before = copy.deepcopy(state.average.tensors)
    for _ in range(3):
        expected = train_step(state, ours, stage, raw, rng).read().loss
        assert plainly.step(raw, rng) == pytest.approx(expected, rel=1e-5)
    averaged = dict(plainly.average.named_parameters())
    moved = 0.0
    for name, parameter in ours.named_parameters():
        moved = max(moved, (state.average.tensors[name] - before[name]).abs().max().item())
        torch.testing.assert_close(theirs.get_parameter(name), parameter, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(averaged[name], state.average.tensors[name], rtol=1e-4, atol=1e-5)
    assert moved > 1e-4
