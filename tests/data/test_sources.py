"""Folders and Hugging Face data sets as samples."""

import hashlib
import importlib.util
import io
import json
import multiprocessing
import pickle
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pixelspace.config import from_data, to_data
from pixelspace.data.dataset import Dataset, Source
from pixelspace.data.folder import Folder, FolderDataset
from pixelspace.data.huggingface import HuggingFace
from pixelspace.data.index import Entry, Index
from pixelspace.data.transforms import Cut
from pixelspace.errors import DataError, ResourceError, UserError
from tests.data.odd_images import display_p3_profile, picture

WITH_DATASETS = importlib.util.find_spec("datasets") is not None


def pixels(seed: int, width: int = 12, height: int = 8) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture
def folder(tmp_path) -> Path:
    root = tmp_path / "images"
    for i, name in enumerate(("cat/1.png", "cat/2.png", "dog/1.png")):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels(i)).save(root / name)
    return root


# Folders


def test_a_sample_is_pixels_label_and_text(folder):
    dataset = Folder(str(folder)).open()
    assert (len(dataset), dataset.classes) == (3, ("cat", "dog"))
    assert [dataset.name(i) for i in range(3)] == ["cat/1.png", "cat/2.png", "dog/1.png"]
    for i in range(3):
        image, label, texts, *_ = dataset[i]
        assert torch.equal(image, torch.from_numpy(pixels(i)).permute(2, 0, 1))
        assert image.dtype == torch.uint8 and (label, texts) == (i // 2, ())


def test_bad_images_are_left_out_within_the_budget(folder):
    (folder / "cat" / "0.png").write_bytes(b"")
    assert len(Folder(str(folder), max_bad_share=0.25).open()) == 3
    with pytest.raises(DataError, match=r"1 of 4 image files are bad.*: cat/0.png: zero bytes"):
        Folder(str(folder), max_bad_share=0.2).open()


def test_captions_come_with_the_images(folder):
    rows = [{"file_name": f"{name}/1.png", "text": f"a {name}", "label": name} for name in ("cat", "dog")]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    dataset = Folder(str(folder), max_bad_share=0.5).open()
    assert [(dataset[i].label, dataset[i].texts) for i in range(2)] == [(0, ("a cat",)), (1, ("a dog",))]


def test_the_cache_changes_nothing(folder, tmp_path):
    plain = Folder(str(folder)).open()
    assert Folder(str(folder)).open(tmp_path / "cache") == plain == Folder(str(folder)).open(tmp_path / "cache")


def test_an_image_that_changed_since_is_refused_by_name(folder):
    dataset = Folder(str(folder)).open()
    Image.fromarray(pixels(9)).save(folder / "cat" / "1.png")
    with pytest.raises(DataError, match=r"^cat/1.png: changed since the folder was indexed"):
        dataset[0]
    (folder / "cat" / "2.png").unlink()
    with pytest.raises(DataError, match=r"^cat/2.png: cannot be read: No such file"):
        dataset[1]
    assert dataset[2].label == 1


def test_every_flipped_bit_is_found(folder):
    dataset, path = Folder(str(folder)).open(), folder / "dog" / "1.png"
    whole = path.read_bytes()
    for bit in range(0, 8 * len(whole), 61):
        changed = bytearray(whole)
        changed[bit // 8] ^= 1 << bit % 8
        path.write_bytes(changed)
        with pytest.raises(DataError, match=r"^dog/1.png: changed"):
            dataset[2]


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_a_dataset_can_be_sent_to_a_worker(folder, method):
    dataset = Folder(str(folder)).open()
    with ProcessPoolExecutor(1, multiprocessing.get_context(method)) as pool:
        assert pool.submit(dataset.name, 2).result() == "dog/1.png"
        image, label, *_ = pool.submit(dataset.__getitem__, 2).result()
    assert torch.equal(image, dataset[2].image) and label == 1


def test_a_dataset_is_small_to_send():
    entries = tuple(
        Entry(f"n{i:08}/n{i:08}_{i}.JPEG", i, i, hashlib.sha256(str(i).encode()).hexdigest(), 500, 375, "RGB")
        for i in range(3000)
    )
    dataset = FolderDataset.of(Path("x"), Index("x", ("a",), entries, {}))
    assert len(pickle.dumps(dataset)) / len(dataset) < 100  # bytes an image
    captioned = tuple(replace(entry, texts=("a photograph of a thing on a table",)) for entry in entries)
    more = FolderDataset.of(Path("x"), Index("x", ("a",), captioned, {}))
    assert len(pickle.dumps(more)) - len(pickle.dumps(dataset)) < (34 + 20) * len(dataset)


def test_what_is_cut_of_a_file_is_what_is_cut_of_the_whole_sample(tmp_path):
    wide, turned = Image.fromarray(picture(90, 40)), Image.Exif()
    turned[0x0112] = 6
    meta = {"exif": turned, "icc_profile": display_p3_profile()}
    for i, mode in enumerate(("RGB", "CMYK", "L", "RGBA", "P")):
        kind = "JPEG" if mode in ("RGB", "CMYK", "L") else "PNG"
        wide.convert(mode).save(tmp_path / f"{i}.png", kind, **(meta if mode == "RGB" else {}))
    dataset = Folder(str(tmp_path)).open()
    for i in range(5):
        for cut in (Cut((32, 32), "random", (0.9, 0.2), True), Cut((16, 16), "adm"), Cut((40, 24))):
            found, plain = dataset.cut(i, cut), Dataset.cut(dataset, i, cut)
            assert torch.equal(found.image, plain.image) and found[1:] == plain[1:]
    assert dataset.cut(0, Cut((32, 32))).size == (90, 40)  # it lay on its side


def test_sources_are_values():
    types = {"Folder": Folder, "HuggingFace": HuggingFace}
    for source in (Folder("x"), Folder("x", 0.5), HuggingFace("x", "test", "img", "class", "caption")):
        assert isinstance(source, Source) and from_data(to_data(source), types) == source
    for share in (-0.1, 1.0):
        with pytest.raises(UserError, match="max_bad_share must be in"):
            from_data({"type": "Folder", "path": "x", "max_bad_share": share}, types)


# Hugging Face


@pytest.mark.skipif(WITH_DATASETS, reason="datasets is installed")
def test_the_absence_of_datasets_names_the_extra():
    with pytest.raises(ResourceError, match=r"pip install 'pixelspace\[hf-data\]'"):
        HuggingFace("x").open()


@pytest.fixture
def saved(tmp_path) -> str:
    """Four images saved by `datasets`, the last one damaged; labels as classes, names, numbers and fractions."""
    datasets = pytest.importorskip("datasets")

    def png(seed: int) -> bytes:
        file = io.BytesIO()
        Image.fromarray(pixels(seed)).save(file, "PNG")
        return file.getvalue()

    columns = {
        "image": [{"bytes": png(i)[: 50 if i == 3 else None], "path": None} for i in range(4)],
        "label": [0, 1, 1, None],
        "name": ["b", "a", None, "b"],
        "number": [3, 0, None, -1],
        "fraction": [0.5] * 4,
        "text": ["one", "", None, "four"],
        "texts": [["one", "eins"], [], None, ["vier", " ", "x" * 8193]],
    }
    features = {
        "image": datasets.Image(),
        "label": datasets.ClassLabel(names=["cat", "dog"]),
        "name": datasets.Value("string"),
        "number": datasets.Value("int64"),
        "fraction": datasets.Value("float32"),
        "text": datasets.Value("string"),
        "texts": [datasets.Value("string")],
    }
    table = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
    table.save_to_disk(tmp_path / "table")
    datasets.DatasetDict(train=table, test=table.select([1])).save_to_disk(tmp_path / "splits")
    return str(tmp_path / "table")


def test_hugging_face_images_keep_pixels_labels_and_text(saved):
    dataset = HuggingFace(saved, label_key="label", text_key="text").open()
    assert len(dataset) == 4 and dataset.classes == ("cat", "dog")
    found = [dataset[i] for i in range(3)]
    assert [(sample.label, sample.texts) for sample in found] == [(0, ("one",)), (1, ()), (1, ())]
    assert all(torch.equal(image, torch.from_numpy(pixels(i)).permute(2, 0, 1)) for i, (image, *_) in enumerate(found))
    with pytest.raises(DataError, match=r"^row 3: "):
        dataset[3]


def test_hugging_face_captions_may_be_lists_and_need_no_image(saved):
    dataset = HuggingFace(saved, text_key="texts").open()
    assert dataset[0].texts == ("one", "eins") and [dataset.texts(i) for i in range(3)] == [("one", "eins"), (), ()]
    with pytest.raises(DataError, match=r"^row 3: text is over 8192 bytes$"):
        dataset.texts(3)
    np.testing.assert_array_equal(dataset.column("captions"), [2, 0, 0, np.nan])
    np.testing.assert_array_equal(dataset.column("caption_length"), [4, 0, 0, np.nan])
    assert HuggingFace(saved, text_key="text").open().texts(3) == ("four",)  # whose image is damaged
    plain = HuggingFace(saved).open()
    assert plain.texts(0) == () and plain.column("captions").tolist() == [0] * 4


def test_hugging_face_numbers_are_columns(saved):
    dataset = HuggingFace(saved).open()
    assert dataset.columns() == ("captions", "caption_length", "label", "number", "fraction")
    np.testing.assert_array_equal(dataset.column("number"), [3, 0, np.nan, -1])
    np.testing.assert_array_equal(dataset.column("fraction"), [0.5] * 4)
    with pytest.raises(UserError, match="no sample has 'name'"):
        dataset.column("name")
    part = HuggingFace(saved.replace("table", "splits"), split="test").open()
    assert part.column("number").tolist() == [0] and len(part.keys()) == 1


def test_hugging_face_labels_may_be_names_or_numbers(saved):
    names, numbers = (HuggingFace(saved, label_key=key).open() for key in ("name", "number"))
    assert names.classes == ("a", "b") and [names[i].label for i in range(3)] == [1, 0, -1]
    assert numbers.classes == ("0", "1", "2", "3") and [numbers[i].label for i in range(3)] == [3, 0, -1]
    plain = HuggingFace(saved).open()
    assert plain.classes == () and plain[0].label == -1


def test_hugging_face_mistakes_are_named(saved):
    for settings, message in (
        ({"label_key": "labels"}, "no column 'labels'; did you mean 'label'"),
        ({"label_key": "fraction"}, "column 'fraction' holds .*float32.*; labels are names or whole numbers"),
        ({"image_key": "number"}, "column 'number' holds .*int64.*, not images"),
        ({"text_key": "number"}, "column 'number' holds .*int64.*, not strings"),
    ):
        with pytest.raises(UserError, match=message):
            HuggingFace(saved, **settings).open()
    with pytest.raises(DataError, match="splits, split validation: "):
        HuggingFace(saved.replace("table", "splits"), split="validation").open()
    with pytest.raises(DataError, match="absent, split train: "):
        HuggingFace(saved.replace("table", "absent")).open()


def test_hugging_face_splits_and_fingerprints(saved):
    splits = saved.replace("table", "splits")
    test = HuggingFace(splits, split="test", label_key="label").open()
    assert len(test) == 1 and test[0].label == 1
    assert HuggingFace(saved).open().fingerprint == HuggingFace(saved).open().fingerprint
    sources = (HuggingFace(saved), HuggingFace(saved, label_key="name"), HuggingFace(splits, split="test"))
    assert len({source.open().fingerprint for source in sources}) == 3


def test_a_hugging_face_dataset_can_be_sent_to_a_worker(saved):
    dataset = HuggingFace(saved, label_key="label").open()
    assert torch.equal(pickle.loads(pickle.dumps(dataset))[1].image, dataset[1].image)
