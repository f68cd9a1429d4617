"""Judging from Python: what several processes do to one sweep."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pixelspace import judge
from pixelspace.errors import UserError
from pixelspace.evaluation import blocks
from pixelspace.evaluation.computing import Computing
from pixelspace.evaluation.custom import Custom
from pixelspace.evaluation.metrics import CLIPScore, Vendi
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


class Words(Custom):
    """Images by their mean, captions by their number."""

    text_output = "words"

    def open(self, weights, device):
        def embed_text(captions):
            return torch.tensor([[float(caption), 1.0, 0.0] for caption in captions])

        return replace(super().open(weights, device), embed_text=embed_text)


def test_images_that_are_drawn_from_more_keep_their_own_captions(tmp_path):
    pixels = torch.arange(40, dtype=torch.uint8)[:, None, None, None].expand(40, 4, 4, 3).contiguous()
    np.save(tmp_path / "images.npy", pixels.numpy())
    (tmp_path / "prompts.txt").write_text("".join(f"{i}\n" for i in range(40)))

    def features(images):
        mean = images.double().mean((1, 2, 3))
        return torch.stack([mean, torch.ones_like(mean), torch.zeros_like(mean)], 1)

    words = Words(features, name="words", output="mean", width=3, sha256="none")
    protocol = Protocol("said", "what is said", 40, (CLIPScore(words, "mean"),), labels="captions")
    task = judge.Task(tmp_path / "images.npy", protocol, count=10, prompts=tmp_path / "prompts.txt")
    computing = Computing(Weights(Path("none")), torch.device("cpu"), progress=False)
    report = judge.judge(task, tmp_path / "out", computing)
    assert report.numbers["CLIPScore (100 cos) (10 images, not 40)"] == pytest.approx(100, abs=1e-4)
    (tmp_path / "prompts.txt").write_text("1\n" * 10)
    with pytest.raises(UserError, match="10 lines for 40 images"):
        judge.judge(task, tmp_path / "other", computing)
