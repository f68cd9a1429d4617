from dataclasses import replace

import torch

from pixelspace.backbones.unet import UNetText
from pixelspace.cli.given import recipe_of
from pixelspace.data.clips import Clips
from pixelspace.recipes.moving import FRAME, SPACE, TIME, clips, objective_of
from pixelspace.text.bytes import Bytes
from pixelspace.training.loop import run_recipe
from pixelspace.training.stage import Recipe
from tests.data.moving_pictures import animation, motion


def test_each_stage_reads_as_many_frames_as_its_network_holds():
    for stage, levels in zip(clips().stages, ((1,), (1, 4), (1, 2, 8)), strict=True):
        assert isinstance(stage.data.source, Clips)
        assert stage.data.source.frames == stage.backbone.tiles**2 and stage.backbone.pyramid == levels
        assert stage.shape[1:] == tuple(stage.backbone.tiles * side for side in stage.size)


def test_a_folder_takes_the_place_of_the_clips_and_not_of_how_they_are_read(tmp_path):
    for own, given in zip(clips().stages, recipe_of("mdm-clips", tmp_path).stages, strict=True):
        assert given.data.source == replace(own.data.source, path=str(tmp_path))


def test_the_stages_train_one_after_the_other(tmp_path):
    for i, suffix in enumerate((".webp", ".apng")):
        animation(tmp_path / f"clips/{i}{suffix}", motion(61, 32, 32, seed=i))
        (tmp_path / f"clips/{i}.txt").write_text(f"a bar, number {i}")
    frame = replace(FRAME, text=UNetText(256))
    time = replace(TIME, inner=frame)
    stages = []
    for stage, network in zip(clips().stages, (frame, time, replace(SPACE, inner=time)), strict=True):
        source = replace(stage.data.source, path=str(tmp_path / "clips"))
        few = {"batch": 1, "images": 1, "sample_count": 1, "data": replace(stage.data, source=source, holdout=0.0)}
        short = {**few, "sampling": replace(stage.sampling, steps=1), "text": Bytes(24)}
        stages.append(replace(stage, backbone=network, objective=objective_of(network), **short))
    recipe, run = Recipe("mdm-clips", tuple(stages)), tmp_path / "run"
    quiet = {"progress": False, "say": lambda text: None}
    run_recipe(recipe, run, device=torch.device("cpu"), cache=tmp_path / "cache", **quiet)
    assert len(list(run.glob("*/checkpoints/step-00000001"))) == 3
