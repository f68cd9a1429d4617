"""A network that grows by levels of a pyramid: trained, inherited, drawn from."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import pixelspace as ps
from pixelspace.backbones.nested import NestedUNetConfig
from pixelspace.backbones.unet import UNetConfig
from pixelspace.backbones.unet_body import UNetBody, UNetLevel
from pixelspace.data.emoji import Emoji
from pixelspace.data.loader import Data
from pixelspace.data.pictures import sheet
from pixelspace.growth.transfer import Rule
from pixelspace.nn.weights import digest
from pixelspace.noise.clock import TableIndex
from pixelspace.noise.process import VPV, Process
from pixelspace.noise.pyramid import Pyramid
from pixelspace.noise.tables import SquaredCosine
from pixelspace.noise.weighting import SNR
from pixelspace.objectives.nested import NestedDenoising
from pixelspace.sampling.generate import Sampling
from pixelspace.training import checkpoint
from pixelspace.training.stage import Inherit, Recipe, Stage

TABLE = SquaredCosine(100)
INNER = UNetConfig(
    UNetBody((UNetLevel(8, 1), UNetLevel(16, 1)), time_width=16, groups=4, heads=2, attention_groups=4), num_classes=2
)
OUTER = NestedUNetConfig(UNetBody((UNetLevel(8, 1), UNetLevel(8, 1)), time_width=16, groups=4), INNER)


def nested(factors: tuple[int, ...]) -> NestedDenoising:
    return NestedDenoising(Process(VPV(), clock=TableIndex(TABLE)), TABLE, SNR(), Pyramid(factors), drop_rate=0.1)


def parts_of(stage):
    return checkpoint.resume(stage / "checkpoints").contents.parts


@pytest.fixture
def recipe():
    low = Stage(
        name="low",
        backbone=INNER,
        objective=nested((1,)),
        data=Data(Emoji(groups=("animals", "food")), holdout=0.05),
        size=(8, 8),
        batch=4,
        images=8,
        sampling=Sampling("euler_ancestral", steps=3, levels=TABLE, guidance=2.0, threshold="clip"),
        save_images=4,
        validate_count=4,
        sample_count=2,
    )
    high = replace(
        low,
        name="high",
        backbone=OUTER,
        objective=nested(OUTER.pyramid),
        size=(8 * OUTER.pyramid[-1],) * 2,
        init=Inherit("low", (Rule("inner_unet.*", prefix=("inner_unet.", "")), Rule("*", fresh=True))),
        freeze=("inner_unet.*",),
    )
    return Recipe("progressive", (low, high))


def test_an_inner_network_is_inherited_frozen_and_drawn_with(recipe, train, tmp_path):
    train(recipe, tmp_path)
    inner, whole = parts_of(tmp_path / "00-low")["ema"], parts_of(tmp_path / "01-high")["model"]
    kept = {name.removeprefix("inner_unet."): whole[name] for name in whole if name.startswith("inner_unet.")}
    assert digest(kept) == digest(inner)
    model = ps.load(tmp_path / "01-high", device="cpu")
    assert model.config.pyramid == Pyramid(OUTER.pyramid)
    sheets = tmp_path / "01-high/samples"
    assert sorted(path.name for path in sheets.iterdir()) == ["0000000008.png", "0000000008_8.png"]
    fine, coarse = (Image.open(path) for path in sorted(sheets.iterdir()))
    drawn = [sheet(level) for level in model.sample(2, label=[0, 1], every_level=True, progress=False)]
    for saved, expected in zip((fine, coarse), drawn, strict=True):
        assert np.abs(np.asarray(saved, int) - np.asarray(expected, int)).max() <= 1
    images = model.sample(3, label=[0, 1, -1], progress=False)
    assert images.shape == (3, *recipe["high"].size, 3)
    again = model.sample(1, label=[1], first=1, progress=False)
    assert (images[1:2].int() - again.int()).abs().max() <= 1


def test_a_pyramid_goes_on_to_the_same_bits(recipe, train, tmp_path):
    train(recipe, tmp_path / "whole")
    half = replace(recipe, stages=(recipe["low"], replace(recipe["high"], images=4)))
    train(half, tmp_path / "run")
    train(recipe, tmp_path / "run")
    for part in ("model", "ema", "optimizer"):
        found, expected = (parts_of(tmp_path / run / "01-high")[part] for run in ("run", "whole"))
        assert digest(found) == digest(expected)


def test_a_mixed_batch_trains_alike_in_micro_batches(recipe, train, tmp_path):
    mixed = replace(recipe["high"], init=None, freeze=(), objective=replace(nested(OUTER.pyramid), mixed=(1, 1)))
    for name, micro in (("whole", 0), ("parts", 2)):
        train(Recipe("mixed", (replace(mixed, micro=micro, images=4),)), tmp_path / name)
    whole, parts = (parts_of(tmp_path / name / "00-high")["model"] for name in ("whole", "parts"))
    for name, tensor in whole.items():
        torch.testing.assert_close(parts[name], tensor, rtol=1e-3, atol=1e-5)
