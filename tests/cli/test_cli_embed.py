"""Captions to embeddings on the command line, and what is printed to train on them."""

import json
import shlex
from pathlib import Path

import pytest
import torch

from pixelspace.text.bytes import Bytes
from pixelspace.text.cache import Cached
from pixelspace.text.named import encoder_of
from pixelspace.text.pretrained import Pretrained
from tests.cli.conftest import as_files, refused, squares

CAPTIONS = ["a red square", "", "a blue square", "a red square", "x" * 40]


@pytest.fixture
def captioned(tmp_path) -> Path:
    """Five images, one of them with two captions."""
    folder = as_files(squares(5, 0), tmp_path / "it's data")
    rows = [{"file_name": f"{i:03d}.png", "text": text} for i, text in enumerate(CAPTIONS)]
    rows[2]["text"] = ["a blue square", "ein blaues Quadrat"]  # type: ignore[assignment]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def embed(cli, captioned, *more, out="out", encoder="bytes"):
    return cli("embed", captioned, out, "--encoder", encoder, "--quiet", *more)


def test_embed_says_what_it_kept_and_how_to_train_with_it(cli, captioned, tmp_path):
    code, said, err = embed(cli, captioned, "--length", "24")
    assert code == 0, err
    size = (tmp_path / "out/part-00000.safetensors").stat().st_size
    assert f"captions, 5 distinct ones with the empty one, {size:,} bytes ({size / 5:,.0f} a caption): out" in said
    assert "longer than 24 tokens and cut there: 1 (20.00%)" in said and "text of width 256, pooled 256" in said
    words = shlex.split(said.splitlines()[-1], comments=True)
    assert words == ["pixelspace", "train", "RECIPE", "--data", str(captioned), "--text", "out"]
    made = encoder_of(words[-1])
    assert made == Cached(Bytes(24), str(tmp_path / "out"))
    found, direct = (one.open(torch.device("cpu"))(["a blue square", ""]) for one in (made, made.direct))
    assert torch.equal(found.tokens, direct.tokens) and torch.equal(found.mask, direct.mask)
    assert embed(cli, captioned, "--length", "24", "--batch", "1") == (0, said, "")


def test_a_model_in_a_folder_embeds(cli, captioned, tmp_path):
    from tests.text.text_models import MODELS

    MODELS["t5"](tmp_path / "t5")
    code, said, err = embed(cli, captioned, "--length", "20", encoder="t5")
    assert code == 0 and "width 16, pooled 16" in said, err
    cached = Cached(Pretrained(str(tmp_path / "t5"), 20), "out").open(torch.device("cpu"))
    assert cached(["ein blaues Quadrat"]).mask.any()


def test_processes_share_the_work(cli, captioned, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert embed(cli, captioned)[:2] == (0, "rank 1 of 2: its parts are done; out is complete when the others are\n")
    monkeypatch.setenv("RANK", "0")
    assert "5 distinct ones" in embed(cli, captioned)[1]


def test_what_cannot_be_embedded_is_refused_in_one_line(cli, captioned, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    refused(embed(cli, captioned, encoder="/nowhere"), 2, "/nowhere: no such folder")
    refused(embed(cli, captioned, encoder="nobody/nothing"), 6, "nobody/nothing", "cannot be had from the hub")
    refused(embed(cli, captioned, encoder="it's data"), 4, "it's data: no config.json")
    refused(embed(cli, captioned, "--length", "1"), 2, "length must be from 2 to 8192, found 1")
    refused(embed(cli, captioned, "--max-gib", "1e-9"), 6, "5 captions need about", "--max-gib")
    refused(embed(cli, captioned, "--max-gib", "nan"), 2, "--max-gib must be above 0")
    refused(embed(cli, captioned, "--batch", "0"), 2, "batch must be at least 1")
    refused(embed(cli, tmp_path / "none"), 3, "none: no such folder")
    refused(embed(cli, as_files(squares(2, 1), tmp_path / "bare")), 3, "none of 2 samples has a caption")
    assert not (tmp_path / "out").exists()
    refused(embed(cli, captioned, out="it's data"), 2, "holds something else")
    assert embed(cli, captioned)[0] == 0
    refused(embed(cli, captioned, "--length", "50"), 2, "out: was begun with other settings", "96", "50")
