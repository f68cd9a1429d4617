"""Judging from Python: what several processes do to one sweep."""

from pathlib import Path

import torch

from pixelspace import judge
from pixelspace.evaluation import blocks
from pixelspace.evaluation.computing import Computing
from pixelspace.evaluation.custom import Custom
from pixelspace.evaluation.metrics import Vendi
from pixelspace.evaluation.protocols import Protocol
from pixelspace.evaluation.weights import Weights
from tests.conftest import GOLDENS

WEIGHTS = GOLDENS / "hdit/nbhd_class_2lvl.weights.safetensors"
POINTS = [{"steps": 1}, {"steps": 2}]


def test_who_finishes_a_sweep_last_has_all_of_it_whoever_finished_a_point(tmp_path, monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK", 2)  # so that two processes share four images
    seen = []

    def swept(rank: int, world: int, out: Path):
        def features(images):
            seen.append(rank)
            if seen.count(0) == 2 and 1 not in seen:  # the first is at its second point, when the second comes
                assert swept(1, 2, out) is None
            return images.double().flatten(2).mean(2)

        colours = Custom(features, name="mean colour", output="colour", width=3, sha256="none")
        protocol = Protocol("colours", "how different colours are", 4, (Vendi(colours, "colour"),))
        computing = Computing(Weights(Path("none")), torch.device("cpu"), rank, world, progress=False)
        return judge.sweep(judge.Task(WEIGHTS, protocol), POINTS, out, computing)

    shared, alone = swept(0, 2, tmp_path / "shared"), swept(0, 1, tmp_path / "alone")
    assert seen == [0, 0, 1, 1, 0, 0, 0, 0]
    assert [point.settings for point in shared] == POINTS
    assert [point.report.numbers for point in shared] == [point.report.numbers for point in alone]
