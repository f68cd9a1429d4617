"""Clips trained on: frames as images, clips of them round that network, larger frames round both."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import pixelspace as ps
from pixelspace.backbones.nested import NestedUNetConfig
from pixelspace.backbones.unet import UNetConfig
from pixelspace.backbones.unet_body import UNetBody, UNetLevel
from pixelspace.data.buckets import Buckets
from pixelspace.data.clips import Clips
from pixelspace.data.codec import Pixels
from pixelspace.data.dataset import Source
from pixelspace.data.loader import Data, read, to_model_space
from pixelspace.evaluation.monitor import Monitor
from pixelspace.evaluation.protocols import PROTOCOLS
from pixelspace.growth.transfer import Rule
from pixelspace.interop.kl_vae import KLVAE
from pixelspace.nn.frames import as_clip
from pixelspace.nn.weights import digest
from pixelspace.noise.clock import TableIndex
from pixelspace.noise.process import VPV, Process
from pixelspace.noise.pyramid import Pyramid
from pixelspace.noise.tables import SquaredCosine
from pixelspace.noise.weighting import SNR
from pixelspace.objectives.nested import NestedDenoising
from pixelspace.random import Rng
from pixelspace.sampling.generate import Sampling
from pixelspace.training import checkpoint
from pixelspace.training.describe import describe
from pixelspace.training.stage import Inherit, Recipe, Stage
from pixelspace.types import BackboneConfig
from tests.data.moving_pictures import animation, motion

CPU, TABLE = torch.device("cpu"), SquaredCosine(100)
SMALL = {"time_width": 16, "groups": 4, "heads": 2, "attention_groups": 4}
FRAME = UNetConfig(UNetBody((UNetLevel(8, 1), UNetLevel(8, 1)), **SMALL))
TIME = NestedUNetConfig(UNetBody((UNetLevel(32, 1, temporal=1), *[UNetLevel(8, 1)] * 2), **SMALL), FRAME, frames="time")
SPACE = NestedUNetConfig(UNetBody((UNetLevel(8, 1), UNetLevel(8, 1)), **SMALL), TIME, frames="space")
LONG = NestedUNetConfig(UNetBody((UNetLevel(8, 1),) * 5, **SMALL), FRAME, frames="time")
GROWN = (Rule("inner_unet.*", prefix=("inner_unet.", "")), Rule("*", fresh=True))


def clips(folder: Path, frames: int) -> Clips:
    return Clips(str(folder), frames, stride=2 if frames < 16 else 1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Six clips of 16 frames, two of each kind that needs no extra."""
    folder = tmp_path_factory.mktemp("moving") / "clips"
    for i, suffix in enumerate((".gif", ".webp", ".apng") * 2):
        animation(folder / f"{i}{suffix}", motion(16, 32, 20, seed=i))
    return folder


def stage(name: str, backbone: BackboneConfig, source: Source, side: int, **more) -> Stage:
    pyramid = Pyramid(backbone.pyramid, tiles=backbone.tiles)
    return Stage(
        name=name,
        backbone=backbone,
        objective=NestedDenoising(Process(VPV(), clock=TableIndex(TABLE)), TABLE, SNR(), pyramid),
        data=Data(source, holdout=0.2),
        size=(side, side),
        batch=2,
        images=4,
        sampling=Sampling("euler_ancestral", steps=2, levels=TABLE),
        save_images=2,
        sample_count=2,
        validate_count=1,
        **more,
    )


@pytest.fixture
def recipe(folder):
    held = {"init": Inherit("frames", GROWN), "freeze": ("inner_unet.*",)}
    return Recipe(
        "clips",
        (
            stage("frames", FRAME, clips(folder, 1), 8),
            stage("clips", TIME, clips(folder, 4), 8, **held),
            stage("larger", SPACE, clips(folder, 4), 16, init=Inherit("clips", GROWN)),
        ),
    )


def parts_of(folder: Path):
    return checkpoint.resume(folder / "checkpoints").contents.parts


def test_frames_then_clips_then_larger_ones_train_and_are_drawn(recipe, train, tmp_path):
    train(recipe, tmp_path, cache=tmp_path / "cache")
    frames, moving = parts_of(tmp_path / "00-frames")["ema"], parts_of(tmp_path / "01-clips")["model"]
    kept = {name.removeprefix("inner_unet."): moving[name] for name in moving if name.startswith("inner_unet.")}
    assert digest(kept) == digest(frames)
    assert recipe["larger"].shape == (3, 32, 32) and recipe["larger"].size == (16, 16)
    levels = ps.load(tmp_path / "02-larger", device="cpu").sample(2, every_level=True, progress=False)
    assert [tuple(level.shape[1:-1]) for level in levels] == [(4, 16, 16), (4, 8, 8), (1, 8, 8)]
    sheets = {"00-frames": [""], "01-clips": ["", "_1x8x8"], "02-larger": ["", "_1x8x8", "_4x8x8"]}
    for name, sizes in sheets.items():
        found = sorted((tmp_path / name / "samples").iterdir())
        assert [path.name for path in found] == [f"0000000004{size}.png" for size in sizes]
    with Image.open(found[0]) as rows:  # one a clip, of its frames
        assert rows.size == (4 * 18 + 2, 2 * 18 + 2)


def test_clips_of_16_frames_in_batches_of_their_own_shape_go_on_to_the_same_bits(folder, train, tmp_path):
    long = stage("long", LONG, clips(folder, 16), 8)
    whole = Recipe("long", (replace(long, data=replace(long.data, buckets=Buckets(multiple=2))),))
    half = replace(whole, stages=(replace(whole["long"], images=2),))
    for recipe, run in ((whole, "whole"), (half, "run"), (whole, "run")):
        train(recipe, tmp_path / run, cache=tmp_path / "cache")
    for part in ("model", "ema", "optimizer"):
        found, expected = (parts_of(tmp_path / run / "00-long")[part] for run in ("run", "whole"))
        assert digest(found) == digest(expected)


def test_what_is_shown_of_clips_counts_their_frames(recipe):
    assert "stage clips: 4 frames of 8x8, " in describe(Recipe("one", (replace(recipe["clips"], init=None),)))


def test_a_mirrored_clip_has_its_frames_mirrored_in_their_places(folder):
    dataset = clips(folder, 4).open()
    raw = read(dataset, [0, 3], (8, 8))
    mirrored = replace(raw, images=raw.images.flip(-1))
    plain, turned = (to_model_space(one, Data(clips(folder, 4)), Pixels(), Rng(0), CPU).x for one in (raw, mirrored))
    assert torch.equal(as_clip(turned, 2), as_clip(plain, 2).flip(-1)) and not torch.equal(turned, plain.flip(-1))


def test_a_still_clip_is_its_frame_at_every_level():
    frame = torch.randn(2, 3, 16, 16)
    whole, small, first = Pyramid(SPACE.pyramid, tiles=SPACE.tiles).pool(frame.repeat(1, 1, 2, 2))
    assert torch.equal(whole, frame.repeat(1, 1, 2, 2)) and torch.equal(first, F.avg_pool2d(frame, 2))
    assert torch.equal(small, first.repeat(1, 1, 2, 2))


@pytest.mark.parametrize(("network", "frames"), [(TIME, 1), (TIME, 9), (FRAME, 4)])
def test_frames_that_do_not_fill_the_grid_are_refused(network, frames, folder):
    wanted = rf"'odd'.* sample of the data has {frames}; set data.source.frames to {network.tiles**2}"
    with pytest.raises(ValueError, match=wanted):
        stage("odd", network, Clips(str(folder), frames), 8)


def test_a_frame_of_a_size_that_the_levels_cannot_hold_is_refused(folder):
    with pytest.raises(ValueError, match=r"frame height 18: this network needs a multiple of 4; .* are 16 and 20"):
        stage("odd", SPACE, clips(folder, 4), 18)


def test_a_network_for_clips_takes_pixels_alone(folder):
    with pytest.raises(ValueError, match=r"the network is for clips, and KLVAE is for images; set codec to Pix"):
        stage("latents", TIME, clips(folder, 4), 64, codec=KLVAE("vae.pth"))


def test_a_network_for_clips_is_judged_by_no_evaluator_of_images(folder):
    with pytest.raises(ValueError, match=r"'judged': evaluators judge images, and this network draws clips"):
        stage("judged", TIME, clips(folder, 4), 8, evaluators=(Monitor(PROTOCOLS["quick"]()),))
