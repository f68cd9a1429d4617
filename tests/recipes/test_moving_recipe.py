from dataclasses import replace

from pixelspace.cli.given import recipe_of
from pixelspace.data.clips import Clips
from pixelspace.recipes.moving import clips


def test_each_stage_reads_as_many_frames_as_its_network_holds():
    for stage, levels in zip(clips().stages, ((1,), (1, 4), (1, 2, 8)), strict=True):
        assert isinstance(stage.data.source, Clips)
        assert stage.data.source.frames == stage.backbone.tiles**2 and stage.backbone.pyramid == levels
        assert stage.shape[1:] == tuple(stage.backbone.tiles * side for side in stage.size)


def test_a_folder_takes_the_place_of_the_clips_and_not_of_how_they_are_read(tmp_path):
    for own, given in zip(clips().stages, recipe_of("mdm-clips", tmp_path).stages, strict=True):
        assert given.data.source == replace(own.data.source, path=str(tmp_path))
