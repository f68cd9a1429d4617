"""What must hold of the programs in `benchmarks/` for their tables to compare like with like."""

import subprocess
import sys
from importlib import import_module
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


@pytest.mark.parametrize("name", ["freezing", "growing", "masking", "nesting", "step"])
def test_a_benchmark_of_training_says_how_it_is_asked(name):
    command = [sys.executable, str(FOLDER / f"{name}.py"), "--help"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert f"benchmarks/{name}.py" in said
