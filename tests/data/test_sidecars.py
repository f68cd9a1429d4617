"""Captions in files beside the images."""

import json
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pixelspace.data import sidecars
from pixelspace.data.folder import Folder
from pixelspace.data.index import load_or_build
from pixelspace.data.sidecars import paired, parse
from pixelspace.errors import DataError
from pixelspace.evaluation.image_files import FolderFiles
from tests.data.image_folders import draw, names, reasons


@pytest.fixture
def pair(tmp_path) -> Path:
    """Two images, one with a caption."""
    draw(tmp_path / "a.png")
    draw(tmp_path / "sub" / "b.jpg")
    (tmp_path / "a.txt").write_text("a red fox\n")
    return tmp_path


def texts(root: Path, cache: Path | None = None) -> dict[str, tuple[str, ...]]:
    return {entry.name: entry.texts for entry in load_or_build(root, cache).good}


@pytest.mark.parametrize(
    ("data", "caption"),
    [
        (b"a red fox", "a red fox"),
        (b"\xef\xbb\xbf a red fox \r\n", "a red fox"),
        (b"a red\n\n  fox\r\n\tin snow\r", "a red fox in snow"),
        ("füchse  zwei\u2028drei".encode(), "füchse  zwei\u2028drei"),
        (b"", ""),
        (b"\xef\xbb\xbf\n \t\n", ""),
        (b"\xef\xbb\xbf" + b"x" * 8192, "x" * 8192),
    ],
)
def test_a_file_is_one_caption(data, caption):
    assert parse(data) == caption


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"caf\xe9", "not UTF-8 at byte 3"),
        ("fox".encode("utf-16"), "not UTF-8 at byte 0"),
        (b"\xef\xbb\xbf\xed\xa0\x80", "not UTF-8 at byte 3"),
        (b"a\0b", "holds a NUL"),
        (b"x" * 8193, "over 8192 bytes"),
        (b"x" * 100_000, "over 8192 bytes"),
    ],
)
def test_what_is_no_caption_is_refused_with_the_reason(data, reason):
    with pytest.raises(DataError, match=f"^{reason}$"):
        parse(data)


@settings(deadline=None)
@given(st.binary(max_size=64))
def test_any_bytes_are_a_line_of_text_or_refused(data):
    try:
        text = parse(data)
    except DataError:
        return
    assert text == text.strip() and not set(text) & set("\0\r\n")
    assert " ".join(text.split()) == " ".join(data.decode().removeprefix("\ufeff").split())


def test_captions_belong_to_images_by_stem():
    found, alone = paired(["a.png", "b.c.jpg", "d.png", "e.jpg"], ["a.txt", "b.c.TXT", "b.txt", "x.txt"])
    assert found == {"a.png": ("a.txt", ""), "b.c.jpg": ("b.c.TXT", "")} and alone == 2
    assert paired(["a.png"], []) == ({}, 0) and paired([], ["a.txt"]) == ({}, 1)


def test_a_caption_comes_with_its_image_and_others_have_none(pair):
    dataset = Folder(str(pair), labels="none").open()
    assert [dataset.texts(i) for i in range(2)] == [("a red fox",), ()] == [dataset[i].texts for i in range(2)]
    assert dataset.column("captions").tolist() == [1, 0] and dataset.column("caption_length").tolist() == [9, 0]


def test_text_files_without_an_image_are_ignored_and_counted(pair):
    (pair / "notes.txt").write_text("?")
    (pair / "sub" / "a.txt").write_text("of an image elsewhere")
    assert load_or_build(pair, None).ignored == {".txt": 2}


@pytest.mark.parametrize(
    ("data", "reason"),
    [(b"\xff", "not UTF-8 at byte 0"), (b"\0", "holds a NUL"), (b"x" * 100_000, "over 8192 bytes")],
)
def test_a_wrong_caption_makes_its_image_bad_and_counts_against_the_budget(pair, data, reason):
    (pair / "a.txt").write_bytes(data)
    index = load_or_build(pair, None)
    assert names(index) == ["sub/b.jpg"] and reasons(index) == {"a.png": f"its caption a.txt: {reason}"}
    with pytest.raises(DataError, match=f"1 of 2 image files are bad.*: a.png: its caption a.txt: {reason}; mend"):
        index.check(0.1)


def test_an_empty_caption_is_none(pair):
    (pair / "a.txt").write_text(" \n\n")
    assert texts(pair) == {"a.png": (), "sub/b.jpg": ()}


def test_two_images_of_one_stem_and_one_caption_are_both_bad(pair):
    draw(pair / "a.webp")
    reason = "its caption a.txt: may belong to a.png or to a.webp; give each image a stem of its own"
    cache = pair / ".cache"
    assert reasons(load_or_build(pair, cache)) == {"a.png": reason, "a.webp": reason}
    (pair / "a.webp").unlink()
    assert texts(pair, cache) == {"a.png": ("a red fox",), "sub/b.jpg": ()}


def test_two_captions_of_one_image_make_it_bad(pair):
    (pair / "a.TXT").write_text("another")
    index = load_or_build(pair, None)
    assert reasons(index) == {"a.png": "its caption a.TXT: a.TXT and a.txt both lie beside it; keep one"}
    assert index.ignored == {}


def test_a_caption_that_is_a_link_out_of_the_folder_is_refused(pair, tmp_path_factory):
    secret = tmp_path_factory.mktemp("outside") / "secret"
    secret.write_text("secret")
    (pair / "a.txt").unlink()
    (pair / "a.txt").symlink_to(secret)
    assert reasons(load_or_build(pair, None)) == {"a.png": "its caption a.txt: a link out of the folder"}


def test_captions_in_two_places_are_refused(pair):
    rows = [{"file_name": "a.png", "label": 1}, {"file_name": "sub/b.jpg", "label": 0}]
    (pair / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert texts(pair)["a.png"] == ("a red fox",)
    rows[1]["text"] = "a dog"
    (pair / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(
        DataError, match=r"captions in metadata.jsonl \(line 2\) and in files beside .* \(a.txt\); keep those"
    ):
        load_or_build(pair, None)


def test_a_caption_is_read_again_when_it_changed_and_its_image_is_not(pair, tmp_path_factory, monkeypatch):
    cache, opened = tmp_path_factory.mktemp("cache"), []
    read = sidecars._read

    def counting(root, file):
        opened.append(file.name)
        return read(root, file)

    monkeypatch.setattr(sidecars, "_read", counting)
    first = load_or_build(pair, cache)
    assert load_or_build(pair, cache) == first and opened == ["a.txt"]
    monkeypatch.setattr("pixelspace.data.index._read", None)  # no image is read from now on
    (pair / "a.txt").write_text("a blue fox")
    assert texts(pair, cache)["a.png"] == ("a blue fox",) and opened == ["a.txt"] * 2
    assert load_or_build(pair, cache).fingerprint != first.fingerprint
    images = FolderFiles(pair).entries(cache)  # which wants no captions, and forgets none
    assert [entry.texts for entry in images] == [(), ()]
    assert texts(pair, cache)["a.png"] == ("a blue fox",) and opened == ["a.txt"] * 2
    (pair / "a.txt").write_bytes(b"\xff")
    assert [entry.reason for entry in FolderFiles(pair).entries(cache)] == ["", ""]
    (pair / "a.txt").unlink()
    assert texts(pair, cache)["a.png"] == ()


def test_thousands_of_captions_are_told_apart(tmp_path, monkeypatch):
    monkeypatch.setattr(sidecars, "_TOGETHER", 7)
    files = []
    for i in range(100):
        (tmp_path / f"{i}.txt").write_text(f"caption {i}")
        files.append(sidecars.Sidecar(f"{i}.txt", 1, 1))
    assert [read.text for read in sidecars.read_sidecars(tmp_path, files)] == [f"caption {i}" for i in range(100)]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_caption_that_cannot_be_read_gets_another_try(pair):
    (pair / "a.txt").chmod(0)
    assert (
        reasons(load_or_build(pair, pair / ".cache"))["a.png"] == "its caption a.txt: cannot be read: Permission denied"
    )
    (pair / "a.txt").chmod(0o600)
    assert texts(pair, pair / ".cache")["a.png"] == ("a red fox",)
