"""What must hold of the programs in `benchmarks/` for their tables to compare like with like."""

import subprocess
import sys
from importlib import import_module
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from pixelspace.random import Rng
from pixelspace.types import Batch

FOLDER = Path(__file__).parents[1] / "benchmarks"
LEVELS = [(64,), (64, 32), (64, 32, 16)]


@pytest.fixture
def pyramids(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    return import_module("pyramids")


def test_all_pyramids_see_the_same_noise_at_the_finest_level(pyramids):
    batch = Batch(torch.zeros(4, 3, 64, 64), {}, torch.arange(4))
    objectives = [pyramids.objective_of(sides) for sides in LEVELS]
    seen = []
    for objective in objectives:
        draw = objective.draw(batch, 4, 0.0, Rng(0))
        _, noisy = objective.noised(batch, draw)
        seen.append((noisy[0], objective.process.c_noise(draw.sigma)))
    for noisy, time in seen[1:]:
        torch.testing.assert_close(noisy, seen[0][0], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(time, seen[0][1], rtol=0, atol=1e-2)


def test_a_nested_network_holds_the_plain_one_of_its_coarser_level(pyramids):
    widths = {64: 8, 32: 8, 16: 16, 8: 16}
    nested, alone = (pyramids.backbone_of(sides, widths, num_classes=2) for sides in ((64, 32), (32,)))
    assert nested.inner == alone and nested.pyramid == (1, 2)


def test_a_level_of_hdit_more_costs_four_times_the_one_before_and_a_pixel_less(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    scale = import_module("scale")
    costs = [scale.macs(("HDiT", side, 128)) for side in (128, 256, 512, 1024)]
    added = [outer - inner for inner, outer in pairwise(costs)]
    assert all(outer / inner == pytest.approx(4, rel=0.001) for inner, outer in pairwise(added))
    pixel = [cost / side**2 for cost, side in zip(costs, (128, 256, 512, 1024), strict=True)]
    assert pixel == sorted(pixel, reverse=True)
    plain = [scale.macs(("DiT", side, 128)) / side**2 for side in (64, 256, 1024)]
    assert plain == sorted(plain) and scale.macs(("DiT", 64, 128)) == scale.macs(("HDiT", 64, 128))


@pytest.mark.parametrize("name", ["freezing", "growing", "masking", "nesting", "sample", "scale", "startup", "step"])
def test_a_benchmark_says_how_it_is_asked(name):
    command = [sys.executable, str(FOLDER / f"{name}.py"), "--help"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert f"benchmarks/{name}.py" in said
