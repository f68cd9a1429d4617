"""Classes, labels and captions of a folder."""

import json
from pathlib import Path

import numpy as np
import pytest

from pixelspace.config import from_data
from pixelspace.data.folder import Folder
from pixelspace.data.index import Index, load_or_build
from pixelspace.errors import DataError, UserError
from tests.data.image_folders import draw, names, reasons


def labelled(index: Index) -> dict[str, int]:
    return {entry.name: entry.label for entry in index.good}


@pytest.fixture
def flat(tmp_path) -> Path:
    for name in ("a", "b", "c"):
        draw(tmp_path / f"{name}.png")
    return tmp_path


def test_the_first_folders_are_the_classes(tmp_path):
    for name in ("dog/1.png", "cat/deep/er/1.png", "cat/2.png"):
        draw(tmp_path / name)
    index = load_or_build(tmp_path, None)
    assert index.classes == ("cat", "dog")
    assert labelled(index) == {"cat/2.png": 0, "cat/deep/er/1.png": 0, "dog/1.png": 1}
    assert "2 classes: cat 2, dog 1" in index.summary()


def test_an_image_at_the_top_means_no_classes_and_that_is_said(tmp_path):
    draw(tmp_path / "cat" / "1.png")
    draw(tmp_path / "stray.png")
    index = load_or_build(tmp_path, None)
    assert index.classes == () and set(labelled(index).values()) == {-1}
    assert "no classes: some images lie at the top" in index.summary()


def test_a_class_whose_images_are_all_bad_keeps_its_number(tmp_path):
    draw(tmp_path / "b" / "1.png")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1.png").write_bytes(b"")
    index = load_or_build(tmp_path, None)
    assert index.classes == ("a", "b") and labelled(index) == {"b/1.png": 1}


def test_labels_csv_gives_names_or_numbers(flat):
    table = flat / "labels.csv"
    table.write_text("\ufefffile,label\na.png,tabby cat\nb.png,dog\n./c.png,dog\n", encoding="utf-8")
    index = load_or_build(flat, None)
    assert index.classes == ("dog", "tabby cat") and labelled(index) == {"a.png": 1, "b.png": 0, "c.png": 0}
    assert index.ignored == {}
    table.write_text("file,label,text\na.png,2,\nb.png,0,a dog\nc.png,10,\n")
    index = load_or_build(flat, None)
    assert len(index.classes) == 11 and labelled(index) == {"a.png": 2, "b.png": 0, "c.png": 10}
    assert [entry.texts for entry in index.good] == [(), ("a dog",), ()]


def test_metadata_jsonl_gives_labels_and_captions(flat):
    rows = [
        {"file_name": "a.png", "label": "x", "text": "line one\u2028line two"},
        {"file_name": "b.png", "label": "y", "text": ""},
        {"file_name": "c.png", "label": "x"},
    ]
    text = "\n\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    (flat / "metadata.jsonl").write_text(text, encoding="utf-8")
    index = load_or_build(flat, None)
    assert index.classes == ("x", "y") and labelled(index) == {"a.png": 0, "b.png": 1, "c.png": 0}
    assert [entry.texts for entry in index.good] == [("line one\u2028line two",), (), ()]


def test_captions_without_labels_leave_the_folders_as_classes(tmp_path):
    draw(tmp_path / "u" / "1.png")
    draw(tmp_path / "v" / "2.png")
    (tmp_path / "metadata.jsonl").write_text(
        '{"file_name": "u/1.png", "text": "one"}\n{"file_name": "v/2.png", "text": "two"}\n'
    )
    index = load_or_build(tmp_path, None)
    assert index.classes == ("u", "v") and [entry.texts for entry in index.good] == [("one",), ("two",)]


def test_an_image_without_a_row_or_label_is_bad(flat):
    (flat / "labels.csv").write_text("file,label\na.png,cat\n")
    index = load_or_build(flat, None)
    assert names(index) == ["a.png"] and set(reasons(index).values()) == {"has no row in labels.csv"}
    (flat / "labels.csv").unlink()
    lines = [{"file_name": "a.png", "label": 0}, {"file_name": "b.png", "label": None}, {"file_name": "c.png"}]
    (flat / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert set(reasons(load_or_build(flat, None)).values()) == {"has no label in metadata.jsonl"}


WRONG_CSV = {
    "no header": ("a.png,cat\n", r"labels.csv:1: expected the columns file,label; found a.png,cat"),
    "empty": ("", r"labels.csv:1: expected the columns file,label; found nothing"),
    "unknown": ("file,label\na.png,cat\nz.png,cat\n", r"labels.csv:3: there is no image 'z.png'"),
    "outside": ("file,label\n../a.png,cat\n", r"labels.csv:2: there is no image '../a.png'"),
    "twice": ("file,label\na.png,cat\nb.png,x\n./a.png,cat\n", r"labels.csv:4: 'a.png' stands twice, first in line 2"),
    "too few": ("file,label\na.png\n", r"labels.csv:2: expected 2 fields"),
    "too many": ("file,label\na.png,cat,dog\n", r"labels.csv:2: expected 2 fields; put quotes"),
    "no name": ("file,label\n,cat\n", r"labels.csv:2: expected the name of an image, found ''"),
    "no label": ("file,label\na.png,\n", r"labels.csv:2: a label is a name or a whole number from 0 on, found ''"),
    "negative": ("file,label\na.png,-1\n", r"labels.csv:2: a label .* found '-1'"),
    "fraction": ("file,label\na.png,1.0\n", r"labels.csv:2: a label .* found '1.0'"),
    "nan": ("file,label\na.png,nan\n", r"labels.csv:2: a label .* found 'nan'"),
    "huge": ("file,label\na.png,1000000000\n", r"labels.csv:2: the label 1000000000 is over 99999"),
    "huger": (f"file,label\na.png,{'9' * 5000}\n", r"labels.csv:2: a label .* found '9999"),
    "open quote": ('file,label\n"a.png,cat\n', r"labels.csv:\d: not CSV: unexpected end of data"),
    "long field": (f"file,label\na.png,{'x' * 200_000}\n", r"labels.csv:\d: not CSV: field larger"),
}


@pytest.mark.parametrize(("text", "message"), WRONG_CSV.values(), ids=WRONG_CSV.keys())
def test_a_wrong_labels_csv_is_refused_by_line(flat, text, message):
    (flat / "labels.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        load_or_build(flat, None)


WRONG_JSON = {
    "broken": ('{"file_name": "a.png"}\n{"file_name": "b', r"metadata.jsonl:2: not JSON: Unterminated string"),
    "duplicate key": (
        '{"file_name": "a.png", "label": 1, "label": 2}',
        r"jsonl:1: not JSON: the key 'label' stands twice",
    ),
    "deep": ("[" * 100_000, r"metadata.jsonl:1: not JSON: "),
    "NaN": ('{"file_name": "a.png", "label": NaN}', r"metadata.jsonl:1: not JSON: NaN"),
    "list": ("[1]", r"metadata.jsonl:1: expected an object with file_name, found \[1\]"),
    "no name": ('{"label": 1}', r"metadata.jsonl:1: expected the name of an image, found None"),
    "name of a number": ('{"file_name": 3}', r"metadata.jsonl:1: expected the name of an image, found 3"),
    "fraction": ('{"file_name": "a.png", "label": 1.0}', r"metadata.jsonl:1: a label is .* found 1.0"),
    "bool": ('{"file_name": "a.png", "label": true}', r"metadata.jsonl:1: a label is .* found True"),
    "negative": ('{"file_name": "a.png", "label": -1}', r"metadata.jsonl:1: a label is .* found -1"),
    "text list": ('{"file_name": "a.png", "text": ["x", 1]}', r"metadata.jsonl:1: text must be a string, found 1"),
    "text null": ('{"file_name": "a.png", "text": null}', r"metadata.jsonl:1: text must be a string, found None"),
    "surrogate": ('{"file_name": "a.png", "text": "\\ud800"}', r"jsonl:1: text holds a NUL or half a surrogate pair"),
    "NUL": ('{"file_name": "a.png", "text": "\\u0000"}', r"metadata.jsonl:1: text holds a NUL"),
    "long": (json.dumps({"file_name": "a.png", "text": "ü" * 4097}), r"metadata.jsonl:1: text is over 8192 bytes"),
}


@pytest.mark.parametrize(("text", "message"), WRONG_JSON.values(), ids=WRONG_JSON.keys())
def test_a_wrong_metadata_jsonl_is_refused_by_line(flat, text, message):
    (flat / "metadata.jsonl").write_text(text)
    with pytest.raises(DataError, match=message):
        load_or_build(flat, None)


def test_labels_that_are_not_utf8_are_refused_at_the_byte(flat):
    for name in ("labels.csv", "metadata.jsonl"):
        (flat / name).write_bytes(b"file,label\na.png,\xff\n")
        with pytest.raises(DataError, match=f"{name}: not UTF-8 at byte 17"):
            load_or_build(flat, None)
        (flat / name).unlink()


def test_two_label_files_are_one_too_many(flat):
    (flat / "labels.csv").write_text("file,label\n")
    (flat / "metadata.jsonl").write_text("")
    with pytest.raises(DataError, match=r"found both labels.csv and metadata.jsonl; keep the one"):
        load_or_build(flat, None)


def test_labels_are_read_anew_at_every_start(flat):
    cache = flat / ".cache"
    assert load_or_build(flat, cache).classes == ()
    (flat / "labels.csv").write_text("file,label\na.png,x\nb.png,x\nc.png,y\n")
    assert load_or_build(flat, cache).classes == ("x", "y")


# Numbers


def test_numbers_of_metadata_are_columns(flat):
    rows = [
        {"file_name": "a.png", "aesthetic": 5, "width": 1, "captions": 9, "good": True, "note": "x", "tags": [1]},
        {"file_name": "b.png", "aesthetic": -0.25, "clip": 1e-3, "more": {"aesthetic": 7}},
        {"file_name": "c.png", "aesthetic": None},
    ]
    (flat / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    dataset = Folder(str(flat)).open()
    assert dataset.columns() == ("captions", "caption_length", "height", "width", "aesthetic", "clip")
    np.testing.assert_array_equal(dataset.column("aesthetic"), [5, -0.25, np.nan])
    np.testing.assert_array_equal(dataset.column("clip"), [np.nan, 1e-3, np.nan])
    assert dataset.column("width").tolist() == [12] * 3 and dataset.column("captions").tolist() == [0] * 3
    with pytest.raises(UserError, match="no sample has 'aesthetics'; did you mean 'aesthetic'"):
        dataset.column("aesthetics")
    rows[0]["aesthetic"] = 6
    (flat / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert Folder(str(flat)).open().fingerprint != dataset.fingerprint


@pytest.mark.parametrize("number", ["1e999", "-1e999", "1" + 400 * "0"])
def test_a_number_out_of_range_is_refused_by_line(flat, number):
    (flat / "metadata.jsonl").write_text(f'{{"file_name": "a.png"}}\n{{"file_name": "b.png", "score": {number}}}')
    with pytest.raises(DataError, match=r"metadata.jsonl:2: score is out of range: "):
        load_or_build(flat, None)


# Layouts of known data sets


def test_ffhq_folders_are_no_classes(tmp_path):
    for name in ("00000/00000.png", "00000/00999.png", "69000/69123.png"):
        draw(tmp_path / name)
    assert Folder(str(tmp_path)).open().classes == ("00000", "69000")
    dataset = Folder(str(tmp_path), labels="none").open()
    assert dataset.classes == () and [dataset[i].label for i in range(3)] == [-1] * 3
    assert dataset.name(2) == "69000/69123.png"
    assert "classes" not in load_or_build(tmp_path, None, "none").summary()


def test_without_labels_a_file_of_them_says_nothing_either(flat):
    (flat / "labels.csv").write_text("file,label,text\na.png,cat,a cat\nb.png,dog,\nc.png,dog,\n")
    dataset = Folder(str(flat), labels="none").open()
    assert dataset.classes == () and [dataset[i].label for i in range(3)] == [-1] * 3
    assert dataset.texts(0) == ("a cat",)


SYNSETS = """n01440764 tench, Tinca tinca
n02012849 crane
n03126707 crane
n01443537 goldfish, Carassius auratus
"""


@pytest.fixture
def imagenet(tmp_path) -> Path:
    """Kaggle's layout; the folder of training images."""
    train = tmp_path / "ILSVRC" / "Data" / "CLS-LOC" / "train"
    for id in ("n03126707", "n01440764", "n02012849"):
        draw(train / id / f"{id}_18.png").rename(train / id / f"{id}_18.JPEG")
    (tmp_path / "LOC_synset_mapping.txt").write_text(SYNSETS)
    return train


def test_imagenets_classes_have_names_in_the_order_of_their_ids(imagenet):
    dataset = Folder(str(imagenet)).open()
    assert dataset.classes == ("tench", "crane (n02012849)", "crane (n03126707)")
    assert [dataset[i].label for i in range(3)] == [0, 1, 2] and dataset.name(0) == "n01440764/n01440764_18.JPEG"
    (imagenet / "LOC_synset_mapping.txt").write_text(SYNSETS.replace("tench", "Schleie"))
    index = load_or_build(imagenet, None)
    assert index.classes[0] == "Schleie" and index.ignored == {}


def test_a_file_of_names_may_lie_anywhere_and_be_of_any_ids(imagenet, flat):
    names = flat / "words.txt"
    names.write_text("a\tapple, fruit\n\nb  two words , more\n")
    for name in ("a/1.png", "b/1.png"):
        draw(flat / "images" / name)
    assert Folder(str(flat / "images"), names=str(names)).open().classes == ("apple", "two words")
    (flat / "images" / "labels.csv").write_text("file,label\na/1.png,b\nb/1.png,a\n")
    dataset = Folder(str(flat / "images"), names=str(names)).open()
    assert dataset.classes == ("apple", "two words") and [dataset[i].label for i in range(2)] == [1, 0]


def test_ids_keep_their_names_without_a_file(tmp_path):
    draw(tmp_path / "train" / "n01440764" / "1.png")
    assert Folder(str(tmp_path / "train")).open().classes == ("n01440764",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"n01440764 tench\n", r"has no name for 2 of 3 classes, the first is 'n02012849'"),
        (b"n01440764 tench\nn01440764 x\n", r":2: 'n01440764' stands twice"),
        (b"n01440764\n", r":1: expected an id and a name, found 'n01440764'"),
        (b"n01440764 , x\n", r":1: expected an id and a name"),
        (b"n01440764 \xff\n", r": not UTF-8 at byte 10"),
    ],
)
def test_a_wrong_file_of_names_is_refused_by_line(imagenet, text, message):
    (imagenet / "names").write_bytes(text)
    with pytest.raises(DataError, match=f"names:? ?{message}"):
        Folder(str(imagenet), names=str(imagenet / "names")).open()


def test_names_need_classes(flat):
    (flat / "names").write_text("a b")
    with pytest.raises(DataError, match=r"has no classes that .*names could name"):
        Folder(str(flat), names=str(flat / "names")).open()
    with pytest.raises(DataError, match="absent: cannot be read: No such file"):
        Folder(str(draw(flat / "x" / "y" / "1.png").parents[1]), names=str(flat / "absent")).open()
    with pytest.raises(UserError, match="names are those of classes, and labels is none"):
        from_data({"type": "Folder", "path": "x", "labels": "none", "names": "y"}, {"Folder": Folder})
