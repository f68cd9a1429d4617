"""Images of every level and clips on the command line, and ml-mdm's weights from its file to a picture."""

import argparse
import json

import numpy as np
import pytest
import torch
from PIL import Image

from pixelspace.backbones.nested import NestedUNetConfig
from pixelspace.backbones.unet import UNetConfig
from pixelspace.backbones.unet_body import UNetBody, UNetLevel
from pixelspace.interop.ml_mdm import read_config
from pixelspace.model import Model
from pixelspace.model_config import ModelConfig
from pixelspace.noise.process import VPV, Process
from pixelspace.noise.pyramid import Pyramid
from pixelspace.sampling.generate import Sampling
from tests.cli.conftest import refused
from tests.conftest import GOLDENS


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A file as ml-mdm writes them, of a small network that reads text."""
    config = json.loads((GOLDENS / "mdm/nested2_text.json").read_text())["config"]
    config["conditioning_feature_dim"] = 16
    path = tmp_path_factory.mktemp("published") / "vis_model.pth"
    args = argparse.Namespace(model="nested_unet", unet_config=config)
    torch.save({"state_dict": read_config(config).build().state_dict(), "batch_num": 1, "args": args}, path)
    return path


INNER = UNetConfig(UNetBody((UNetLevel(8, 1), UNetLevel(8, 1)), time_width=16, groups=4), middle=False)
CLIPS = NestedUNetConfig(UNetBody((UNetLevel(8, 1),) * 3, time_width=16, groups=4), INNER, frames="time")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder of fresh models: one of 4 frames of 8 x 8, and one of images."""
    root = tmp_path_factory.mktemp("saved")
    for name, backbone in (("clips", CLIPS), ("images", INNER)):
        pyramid = Pyramid(backbone.pyramid, tiles=backbone.tiles)
        config = ModelConfig(backbone, Process(VPV()), Sampling("euler", steps=2), (8, 8), pyramid=pyramid)
        Model(config, backbone.build().state_dict(), "cpu").save(root / name)
    return root


def test_a_published_file_becomes_a_model_that_draws_every_level_by_prompts(cli, published, tmp_path):
    from tests.text.text_models import t5  # transformers takes seconds to import

    code, out, err = cli("import", published, "model", "--system", "ml-mdm")
    assert code == 0 and "parameters" in out, err
    sample = ("sample", "model", "--levels", "--steps", "2", "--quiet", "--encoder", t5(tmp_path / "t5"))
    code, out, err = cli(*sample, "--text", "a cat", "--text", "the quick brown fox", "--guidance", "2")
    assert code == 0 and "2 images" in out, err
    folder = tmp_path / "samples"
    names = [f"{start}{level}.png" for start in ("000000", "000001", "grid") for level in ("", "_8")]
    assert sorted(path.name for path in folder.iterdir()) == sorted([*names, "metadata.jsonl"])
    for name, side in (("000001", 32), ("000001_8", 8)):
        with Image.open(folder / f"{name}.png") as image:
            assert image.size == (side, side)
    rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    assert [row["file_name"] for row in rows] == ["000000.png", "000001.png"]


def test_an_imported_model_names_the_encoder_that_is_not_at_hand(cli, published):
    assert cli("import", published, "model", "--system", "ml-mdm")[0] == 0
    refused(cli("sample", "model", "--text", "a cat", "--quiet"), 6, "google/flan-t5-xl: no such folder")


def test_a_clip_is_an_animated_webp_and_a_row_of_the_grid(cli, saved, tmp_path):
    code, out, err = cli("sample", saved / "clips", "-n", "3", "--levels", "--fps", "20", "--quiet")
    assert code == 0 and "3 clips" in out, err
    folder = tmp_path / "samples"
    numbers = ("000000", "000001", "000002")
    names = [*(f"{i}.webp" for i in numbers), *(f"{i}_1x8x8.png" for i in numbers), "grid.png", "grid_1x8x8.png"]
    assert sorted(path.name for path in folder.iterdir()) == sorted(names)
    rows = np.asarray(Image.open(folder / "grid.png"))
    assert rows.shape == (3 * 10 + 2, 4 * 10 + 2, 3)
    with Image.open(folder / "000001.webp") as clip:
        for t in range(4):
            clip.seek(t)
            frame = np.asarray(clip.convert("RGB"))
            assert np.array_equal(frame, rows[12:20, 2 + 10 * t : 10 + 10 * t]) and clip.info["duration"] == 50


def test_a_plain_model_has_one_level_on_the_command_line_too(cli, saved, tmp_path):
    code, _, err = cli("sample", saved / "images", "-n", "1", "--levels", "--quiet")
    assert code == 0, err
    assert sorted(path.name for path in (tmp_path / "samples").iterdir()) == ["000000.png", "grid.png"]


def test_what_cannot_be_meant_of_clips_is_refused(cli, saved):
    refused(cli("sample", saved / "clips", "--fps", "0", "--quiet"), 2, "--fps must be from 0.1 to 1000")
    refused(
        cli("sample", saved / "images", "--fps", "4", "--quiet"), 2, "this model draws images, not clips; leave it out"
    )
    refused(cli("sample", saved / "clips", "--size", "7", "--quiet"), 2, "7", "the next valid sizes are 6 and 8")
    refused(cli("evaluate", saved / "clips", "--protocol", "adm50k", "--quiet"), 2, "is a model of clips")
