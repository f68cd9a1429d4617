"""Captions in training: which are read, what is dropped, and that a run goes on to the same bits."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from pixelspace.data.emoji import Emoji
from pixelspace.data.folder import Folder
from pixelspace.data.huggingface import HuggingFace
from pixelspace.data.loader import Data
from pixelspace.errors import DataError, UserError
from pixelspace.nn.text import Text
from pixelspace.objectives.denoising import dropped
from pixelspace.text.bytes import ByteReader, Bytes
from pixelspace.text.remembered import Remembered
from pixelspace.training import checkpoint, words
from pixelspace.training.describe import describe
from pixelspace.training.memory import activation_bytes
from pixelspace.training.stage import Recipe
from pixelspace.types import Batch
from tests.cli.conftest import as_files, squares

CPU = torch.device("cpu")


@pytest.fixture(scope="session")
def told(tiny) -> Recipe:
    """The tiny recipe on captions in place of classes, its text read as bytes by a layer of its own."""
    (stage,) = tiny.stages
    fine, coarse = stage.backbone.levels
    backbone = replace(
        stage.backbone,
        num_classes=0,
        levels=(fine, replace(coarse, cross=True)),
        text=Text(256, 256, inner=32, depth=1, head_dim=16),
        micro=("size", "corner"),
    )
    return Recipe("told", (replace(stage, backbone=backbone, text=Bytes(32)),))


def test_a_run_on_captions_goes_on_to_the_same_bits(told, train, tmp_path):
    train(told, tmp_path / "whole")
    whole = tmp_path / "whole" / "00-train"
    assert (whole / "samples/captions.txt").read_text().splitlines() == ["dotted line face", "khanda"]
    for step in (3, 8):
        stage = tmp_path / str(step) / "00-train"
        shutil.copytree(whole / f"checkpoints/step-{step:08d}", stage / f"checkpoints/step-{step:08d}")
        train(told, stage.parent)
        found, expected = (checkpoint.resume(folder / "checkpoints").contents for folder in (stage, whole))
        assert found.parts.keys() == {"model", "ema", "optimizer", "nothing"}
        for part, tensors in expected.parts.items():
            assert all(torch.equal(tensor, found.parts[part][name]) for name, tensor in tensors.items())
        assert found.state["text"] == "bytes up to 32"


def test_another_encoder_cannot_take_over_a_run(told, train, tmp_path):
    (stage,) = told.stages
    train(Recipe("told", (replace(stage, images=16),)), tmp_path)
    with pytest.raises(UserError, match=r"the text encoder has changed since .*: bytes up to 32 then, bytes up to 16"):
        train(Recipe("told", (replace(stage, images=24, text=Bytes(16)),)), tmp_path)


def test_what_is_dropped_is_text_label_and_nothing_else():
    reader = Bytes(8).open(CPU)
    cond = {"label": torch.tensor([3, 4]), "size": torch.ones(2, 2)}
    batch = words.with_text(Batch(torch.zeros(2, 3, 4, 4), cond, torch.arange(2)), ["a", "b"], reader)
    left = dropped(batch, torch.tensor([True, False]))
    empty, full = reader([""]).cond(), reader(["a", "b"]).cond()
    assert left["label"].tolist() == [-1, 4] and torch.equal(left["size"], cond["size"])
    for name in full:
        assert torch.equal(left[name][:1], empty[name]) and torch.equal(left[name][1:], full[name][1:])
    assert dropped(batch, None) is batch.cond
    assert words.with_text(batch, ["a", "b"], None) is batch


def test_prompts_and_negative_prompts_of_unlike_lengths_are_filled_up():
    def cond(length):
        mask = torch.ones(1, length, dtype=torch.bool)
        return {"text": torch.ones(1, length, 3), "text_mask": mask, "pooled": torch.ones(1, 2)}

    some, none = words.asked(torch.tensor([-1, -1]), (8, 6), cond(2), cond(5))
    assert some["text"].shape == none["text"].shape == (2, 5, 3) and some["text_mask"].sum(1).tolist() == [2, 2]
    assert some["size"].tolist() == [[8, 6], [8, 6]] and some["corner"].tolist() == [[0, 0], [0, 0]]
    rows, zero = words.asked(torch.ones(2, 4), (8, 6), {}, {})
    assert not zero["label"].any() and rows.keys() == {"label", "size", "corner"}


def test_samples_without_captions_are_named(told, train, tmp_path):
    pictures = as_files(squares(24, 0), tmp_path / "pictures")
    (stage,) = told.stages
    data = Data(Folder(str(pictures)), holdout=0.1)
    with pytest.raises(DataError, match=r"22 of 22 training samples have no caption, the first is .*; give them one"):
        train(Recipe("bare", (replace(stage, data=data),)), tmp_path / "run")
    rows = [{"file_name": path.name, "text": "squares"} for path in sorted(pictures.iterdir())]
    rows[5]["text"] = ""
    (pictures / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError, match=r"1 of 24 training samples have no caption, the first is 005.png; leave them"):
        train(Recipe("bare", (replace(stage, data=replace(data, holdout=0.0)),)), tmp_path / "run")
    data = replace(data, holdout=0.9)
    with pytest.raises(DataError, match=r"1 of 22 validation samples have no caption, the first is 005.png; leave"):
        train(Recipe("bare", (replace(stage, data=data),)), tmp_path / "run")


def test_captions_of_which_one_cannot_be_read_are_not_all_kept_in_mind(told, tmp_path):
    import datasets  # takes a second

    (stage,) = told.stages
    for last, kind in (("good", Remembered), ("a\0b", ByteReader)):
        texts = {"image": [None] * 3, "text": ["one", "two", last]}
        features = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
        datasets.Dataset.from_dict(texts, features=features).save_to_disk(tmp_path / kind.__name__)
        dataset = HuggingFace(str(tmp_path / kind.__name__), text_key="text").open()
        assert type(words.open_reader(stage, dataset, np.arange(3), np.arange(0), CPU)) is kind


def test_an_encoder_of_another_width_is_refused(told):
    (stage,) = told.stages
    narrow = replace(stage, backbone=replace(stage.backbone, text=replace(stage.backbone.text, width=384)))
    dataset = Emoji().open()
    with pytest.raises(UserError, match="tokens of width 256 and pooled text of 256; the network reads 384 and 256"):
        words.open_reader(narrow, dataset, np.arange(len(dataset)), np.arange(0), CPU)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda stage: {"text": None}, "reads text, and the stage has no encoder: set text"),
        (lambda stage: {"backbone": replace(stage.backbone, text=None, levels=stage.backbone.levels[:1])}, "no text"),
    ],
)
def test_a_stage_has_both_encoder_and_reading_network_or_neither(told, change, message):
    (stage,) = told.stages
    with pytest.raises(ValueError, match=message):
        replace(stage, **change(stage))


def test_text_is_counted(told):
    (stage,) = told.stages
    levels = tuple(replace(level, cross=False) for level in stage.backbone.levels)
    bare = replace(stage.backbone, text=None, micro=(), levels=levels)
    objective = replace(stage.objective, drop_rate=0.0)
    assert activation_bytes(stage) > activation_bytes(replace(stage, backbone=bare, text=None, objective=objective))
    height, width = stage.size
    assert stage.backbone.macs(height, width, tokens=32) > stage.backbone.macs(height, width) > bare.macs(height, width)
    assert "text_in" in describe(told)
