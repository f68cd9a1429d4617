"""`pixelspace prepare` of tar shards: what it says, and that programs share them."""

import json
import re
from pathlib import Path

import pytest

from tests.cli.conftest import refused
from tests.data.tars import png, write_shards, write_tar


@pytest.fixture
def shards(tmp_path):
    """Three shards of four samples, and a fourth with a good and a bad one."""
    root = write_shards(tmp_path / "shards")
    write_tar(root / "00003.tar", [("good.png", png(90)), ("good.cls", b"2"), ("page.png", b"<html>"), ("x.pkl", b"?")])
    return root


def test_prepare_says_what_is_in_tar_shards(cli, shards):
    code, out, _ = cli("prepare", "shards", "--verify")
    assert code == 0
    for line in (
        f"{shards}: 13 good samples in 4 shards, 1 bad",
        "shorter side: 8 to 8, median 8",
        "pixels: 13 RGB; all are read as RGB",
        "captions: 12 samples have one, 1 none, 0 are blank; the longest has 10 characters",
        "duplicates: 0 images, 0 keys in several shards",
        "number: score: 12 samples, 0 to 1.1",
        "3 classes, by number",
        "ignored: 1 .pkl",
        "pickle, never read: 00003.tar:x.pkl",
        "bad: 00003.tar:page: page.png: an HTML page",
        "verified: 13 images are what was indexed",
    ):
        assert line in out.splitlines(), line
    (index,) = re.findall("^index: (.*)$", out, re.MULTILINE)
    (row,) = map(json.loads, (Path(index) / "rejects.jsonl").read_text().splitlines())
    assert row == {"shard": "00003.tar", "key": "page", "reason": "page.png: an HTML page"}
    refused(cli("prepare", shards, "--max-bad-share", "0.05"), 3, "1 of 14 samples are bad", "00003.tar:page")


def test_prepare_takes_patterns_and_other_captions(cli, shards):
    code, out, _ = cli("prepare", "shards/{00000..00001}.tar", "--text-key", "caption", "--out", "index")
    assert code == 0 and "8 good samples in 2 shards" in out and "captions: 8 samples have one" in out
    assert cli("prepare", "index")[0] == 0
    refused(cli("prepare", "shards/{0..9999999}.tar"), 2, "stands for 10,000,000 files")
    refused(cli("prepare", "shards/*.tar", "--text-key", "captoin"), 2, "did you mean 'caption'")
    refused(cli("prepare", "pipe:cat shards/00000.tar"), 2, "expected a path on disk, or a URL")


def test_programs_share_the_shards_by_rank(cli, shards, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    said = []
    for rank in "01":
        monkeypatch.setenv("RANK", rank)
        code, out, _ = cli("prepare", "shards")
        assert code == 0
        said.append(out)
        refused(cli("prepare", "shards", "--verify"), 2, "--verify is for one process")
    assert said[0].startswith("rank 0 of 2: its shards are done; ") and "13 good samples in 4 shards" in said[1]


def test_prepare_refuses_settings_that_a_folder_of_images_would_ignore(cli, pictures):
    for setting in ("--verify", "--out=x", "--text-key=caption", "--workers=2", "--cache-gib=1", "--frames=8"):
        refused(cli("prepare", pictures, setting), 2, f"{setting.partition('=')[0]} is not for a folder of images")
    refused(cli("prepare", pictures, "--workers=0"), 2, "--workers must be at least 1")


def test_training_takes_tar_shards_as_data(cli, shards):
    from pixelspace.cli.given import recipe_of
    from pixelspace.data.shards import Shards

    (stage,) = recipe_of("hdit-imagenet128-debug", "shards").stages
    assert stage.data.source == Shards(str(shards))
    (stage,) = recipe_of("hdit-imagenet128-debug", "s3://bucket/{0..9}.tar").stages
    assert stage.data.source == Shards("s3://bucket/{0..9}.tar")
