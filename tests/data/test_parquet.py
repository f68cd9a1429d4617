"""Rows of Parquet files as samples."""

import importlib.util
import io
import json
import multiprocessing
import pickle
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pixelspace.config import from_data, to_data
from pixelspace.data import parquet_rows
from pixelspace.data.detect import source_of
from pixelspace.data.parquet import Parquet
from pixelspace.data.remote import open_files
from pixelspace.errors import DataError, ResourceError, UserError

WITH_PYARROW = importlib.util.find_spec("pyarrow") is not None
needs_pyarrow = pytest.mark.skipif(not WITH_PYARROW, reason="pyarrow is not installed")


def pixels(seed: int, width: int = 12, height: int = 8) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def png(seed: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels(seed)).save(file, "PNG")
    return file.getvalue()


def write(path: Path, schema: Any = None, **columns: Any) -> Path:
    """A file of two rows a row group."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table(columns, schema=schema)
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=2)
    return path


@pytest.fixture
def two(tmp_path) -> Path:
    """Five images in two files."""
    pytest.importorskip("pyarrow")
    for number, ids in enumerate((range(3), range(3, 5))):
        write(
            tmp_path / "rows" / f"train-{number}.parquet",
            image=[png(i) for i in ids],
            caption=[f"image {i} " for i in ids],
            label=list(ids),
            score=[i / 2 if i else None for i in ids],
            width=[1] * len(ids),
            good=[True] * len(ids),
        )
    return tmp_path / "rows"


def image_of(seed: int) -> torch.Tensor:
    return torch.from_numpy(pixels(seed)).permute(2, 0, 1)


@pytest.mark.skipif(WITH_PYARROW, reason="pyarrow is installed")
def test_the_absence_of_pyarrow_names_the_extra(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    with pytest.raises(ResourceError, match=r"pip install 'pixelspace\[parquet\]'"):
        Parquet(str(tmp_path)).open()


@pytest.mark.parametrize("where", ["", "/train-*.parquet", "/train-{0..1}.parquet"])
def test_rows_are_samples_by_number(two, tmp_path, where):
    dataset = Parquet(f"{two}{where}", text_key="caption", label_key="label").open(tmp_path / "cache")
    assert len(dataset) == 5 and dataset.classes == ("0", "1", "2", "3", "4")
    for i in (4, 0, 3, 1, 2):
        sample = dataset[i]
        assert torch.equal(sample.image, image_of(i)) and (sample.label, sample.texts) == (i, (f"image {i}",))
        assert dataset.texts(i) == sample.texts
    assert [dataset.name(i) for i in (0, 2, 3)] == ["train-0.parquet:0", "train-0.parquet:2", "train-1.parquet:0"]
    assert dataset.files().tolist() == [0, 2, 3]  # row groups
    assert len(np.unique(dataset.keys())) == 5


def test_one_file_is_a_data_set_and_its_samples_keep_their_keys(two):
    dataset = Parquet(str(two / "train-1.parquet")).open()
    assert len(dataset) == 2 and torch.equal(dataset[1].image, image_of(4)) and dataset[1].label == -1
    assert dataset.keys().tolist() == Parquet(str(two)).open().keys()[3:].tolist()


def test_numbers_are_columns(two):
    dataset = Parquet(str(two), text_key="caption", label_key="label").open()
    assert dataset.columns() == ("captions", "caption_length", "height", "width", "score")
    np.testing.assert_array_equal(dataset.column("score"), [np.nan, 0.5, 1, 1.5, 2])
    assert dataset.column("width").tolist() == [12] * 5 and dataset.column("caption_length").tolist() == [7] * 5
    assert "label" in Parquet(str(two)).open().columns()
    with pytest.raises(UserError, match="no sample has 'scores'; did you mean 'score'"):
        dataset.column("scores")


@needs_pyarrow
def test_images_may_be_structs_and_captions_lists(tmp_path):
    import pyarrow as pa

    caption = pa.list_(pa.string())
    columns = {
        "image": [{"bytes": png(0), "path": "a.png"}, {"bytes": png(1), "path": None}, {"bytes": png(2), "path": "c"}],
        "caption": [["a", " ", "b "], [], None],
    }
    image = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    schema = pa.schema({"image": image, "caption": caption})
    write(tmp_path / "a.parquet", schema=schema, **columns)
    dataset = Parquet(str(tmp_path), text_key="caption").open()
    assert [dataset.texts(i) for i in range(3)] == [("a", "b"), (), ()]
    assert all(torch.equal(dataset[i].image, image_of(i)) for i in range(3))
    large = pa.schema({"image": pa.large_binary(), "caption": pa.large_list(pa.large_string())})
    write(tmp_path / "b.parquet", schema=large, image=[png(3)], caption=[["ä"]])
    both = Parquet(str(tmp_path), text_key="caption").open()
    assert both[3].texts == ("ä",) and torch.equal(both[3].image, image_of(3))


def test_labels_may_be_names(two, tmp_path):
    for number, labels in enumerate((["dog", "cat", None], ["eel", "cat"])):
        write(tmp_path / "named" / f"{number}.parquet", image=[png(i) for i in range(len(labels))], label=labels)
    dataset = Parquet(str(tmp_path / "named"), label_key="label").open()
    assert dataset.classes == ("cat", "dog", "eel") and [dataset[i].label for i in range(5)] == [1, 0, -1, 2, 0]


def test_hugging_faces_class_names_are_kept(tmp_path):
    datasets = pytest.importorskip("datasets")
    features = {"image": datasets.Image(), "label": datasets.ClassLabel(names=["tench", "goldfish"])}
    columns = {"image": [{"bytes": png(i), "path": None} for i in range(3)], "label": [1, 0, None]}
    datasets.Dataset.from_dict(columns, features=datasets.Features(features)).to_parquet(tmp_path / "a.parquet")
    dataset = Parquet(str(tmp_path), label_key="label").open()
    assert dataset.classes == ("tench", "goldfish") and [dataset[i].label for i in range(3)] == [1, 0, -1]
    assert torch.equal(dataset[2].image, image_of(2))


@needs_pyarrow
def test_bad_rows_are_named_and_counted_against_the_budget(tmp_path):
    import pyarrow as pa

    images = [
        {"bytes": png(0), "path": None},
        {"bytes": None, "path": "a/b.png"},
        {"bytes": b"<html>", "path": None},
        {"bytes": png(3)[:60], "path": None},
        None,
        *({"bytes": png(i), "path": None} for i in range(5, 9)),
    ]
    captions = ["fine", "", "", "", "", b"caf\xe9", "x" * 100_000, "a\0b", None]
    raw = pa.array([c.encode() if isinstance(c, str) else c for c in captions], pa.binary())
    table = {"image": images, "caption": raw.view(pa.string()), "label": [0] * 8 + [None]}
    write(tmp_path / "a.parquet", **table)
    source = Parquet(str(tmp_path), text_key="caption", label_key="label", max_bad_share=0.8)
    dataset = source.open(tmp_path / "cache")
    assert [dataset.name(i) for i in range(len(dataset))] == ["a.parquet:0", "a.parquet:8"]
    (rejects,) = (tmp_path / "cache").rglob("rejects.jsonl")
    found = {row["key"]: row["reason"] for row in map(json.loads, rejects.read_text().splitlines())}
    assert found == {
        "1": "holds the path 'a/b.png' and not the image; store the bytes",
        "2": "an HTML page",
        "3": found["3"],
        "4": "no image",
        "5": "caption is not UTF-8 at byte 3",
        "6": "caption: text is over 8192 bytes",
        "7": "caption: text holds a NUL or half a surrogate pair",
    }
    assert found["3"].startswith("cut short")
    with pytest.raises(DataError, match=r"7 of 9 samples are bad, more than the 10% allowed: a.parquet:1: holds the"):
        Parquet(str(tmp_path), text_key="caption", label_key="label").open(tmp_path / "cache")


def test_mistakes_are_named(two):
    settings: dict[str, Any]
    for settings, message in (
        ({"image_key": "img"}, r"train-0.parquet: no column 'img'; .*known here: caption, good, image"),
        ({"text_key": "captoin"}, r"no column 'captoin'; did you mean 'caption'"),
        ({"image_key": "score"}, r"column 'score' holds double; expected images: bytes, or a struct"),
        ({"text_key": "score"}, r"column 'score' holds double; expected strings or lists of them"),
        ({"label_key": "score"}, r"column 'score' holds double; expected whole numbers or names"),
    ):
        with pytest.raises(DataError, match=message):
            Parquet(str(two), **settings).open()
    with pytest.raises(DataError, match=r"empty: no .parquet or .pq files; found nothing"):
        (two / "empty").mkdir()
        Parquet(str(two / "empty")).open()
    write(two / "train-2.parquet", image=[png(0)], caption=[""], label=[-2])
    with pytest.raises(DataError, match=r"column 'label' holds -2 to 4; labels are names, or whole numbers"):
        Parquet(str(two), label_key="label").open()
    write(two / "train-2.parquet", image=[png(0)], caption=[""], label=["x"])
    with pytest.raises(DataError, match=r"column 'label' holds numbers in some files and names in others"):
        Parquet(str(two), label_key="label").open()


def test_two_columns_of_one_name_are_refused(two):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table([[png(0)], [png(1)]], ["image", "image"]), two / "train-0.parquet")
    with pytest.raises(DataError, match=r"train-0.parquet: two columns have one name"):
        Parquet(str(two)).open()


def test_files_that_are_cut_short_or_no_parquet_are_named(two):
    whole = (two / "train-1.parquet").read_bytes()
    for data in (b"", b"PAR1", b"<html>", whole[:-1], whole[: len(whole) // 2]):
        (two / "train-1.parquet").write_bytes(data)
        with pytest.raises(DataError, match=r"train-1.parquet: cannot be read as Parquet: ") as error:
            Parquet(str(two)).open()
        assert "\n" not in str(error.value)


def test_a_damaged_row_group_costs_its_rows_alone(two, tmp_path):
    path = two / "train-0.parquet"
    data = bytearray(path.read_bytes())
    data[4:40] = b"\xff" * 36  # the head of the first page
    path.write_bytes(data)
    dataset = Parquet(str(two), max_bad_share=0.5).open(tmp_path / "cache")
    assert [dataset.name(i) for i in range(3)] == ["train-0.parquet:2", "train-1.parquet:0", "train-1.parquet:1"]
    assert torch.equal(dataset[0].image, image_of(2))
    with pytest.raises(DataError, match=r"2 of 5 samples are bad.*train-0.parquet:0: row group 0: cannot be read"):
        Parquet(str(two)).open(tmp_path / "cache")


def test_what_was_indexed_is_not_read_again_until_it_changes(two, tmp_path, monkeypatch):
    cache, scanned = tmp_path / "cache", []
    scan = parquet_rows.scan_rows
    monkeypatch.setattr(
        "pixelspace.data.parquet.scan_rows",
        lambda w, c, file, look: scanned.append(file.name) or scan(w, c, file, look),
    )
    first = Parquet(str(two)).open(cache)
    assert Parquet(str(two)).open(cache).fingerprint == first.fingerprint
    assert scanned == ["train-0.parquet", "train-1.parquet"]
    write(two / "train-1.parquet", image=[png(9)])
    second = Parquet(str(two)).open(cache)
    assert scanned[2:] == ["train-1.parquet"] and len(second) == 4 and second.fingerprint != first.fingerprint
    assert torch.equal(second[3].image, image_of(9))
    Parquet(str(two), image_key="image", text_key=None).open(cache)
    assert len(scanned) == 3 and len(list(cache.rglob("shards.json"))) == 1


def test_a_file_that_changed_since_is_refused_by_name(two, tmp_path):
    dataset = Parquet(str(two)).open(tmp_path / "cache")
    write(two / "train-0.parquet", image=[png(i) for i in (7, 8, 9)])
    with pytest.raises(DataError, match=r"^train-0.parquet:1: .*train-0.parquet: changed since it was listed"):
        dataset[1]
    (two / "train-1.parquet").unlink()
    with pytest.raises(DataError, match=r"^train-1.parquet:1: .*train-1.parquet: vanished"):
        dataset[4]


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_a_parquet_dataset_can_be_sent_to_a_worker(two, tmp_path, method):
    dataset = Parquet(str(two), text_key="caption").open(tmp_path / "cache")
    _ = dataset[0]
    assert len(pickle.dumps(dataset)) < 2000
    with ProcessPoolExecutor(1, multiprocessing.get_context(method)) as pool:
        sample = pool.submit(dataset.__getitem__, 4).result()
    assert torch.equal(sample.image, image_of(4)) and sample.texts == ("image 4",)


def test_row_groups_make_room_for_others(two, monkeypatch):
    (file,) = open_files(str(two / "train-0.parquet"), (".parquet",), None).files
    opened, read = [], parquet_rows.open_rows
    monkeypatch.setattr(parquet_rows, "open_rows", lambda *args: opened.append(1) or read(*args))
    groups = parquet_rows.Groups(parquet_rows.Wanted("image"))
    first, second = (((group + 1) << parquet_rows.GROUP_BITS) for group in range(2))
    assert groups.read(file, first + 1) == png(1) and groups.read(file, second) == png(2)
    assert len(groups._groups) == 2 and opened == [1]
    monkeypatch.setattr(parquet_rows, "_KEPT", 1)
    assert groups.read(file, first) == png(0) and len(groups._groups) == 2  # was kept
    other = parquet_rows.Groups(parquet_rows.Wanted("image"))
    assert other.read(file, second) == png(2) and other.read(file, first) == png(0) and len(other._groups) == 1
    for offset in (first + 2, second + 1, second + (1 << parquet_rows.GROUP_BITS)):
        with pytest.raises(DataError, match=r"train-0.parquet: (row group \d has no row|has no row group)"):
            other.read(file, offset)


def test_many_rows_are_looked_at_by_several_processes_to_the_same_end(two, tmp_path, monkeypatch):
    source = Parquet(str(two), text_key="caption", label_key="label")
    alone = source.open(tmp_path / "alone")
    monkeypatch.setattr("pixelspace.data.shard_index._ALONE", 0)
    shared = source.open(tmp_path / "shared")
    assert shared.fingerprint == alone.fingerprint
    files = [sorted((tmp_path / name).rglob("part-*")) for name in ("alone", "shared")]
    assert len(files[0]) == 2 and [f.read_bytes() for f in files[0]] == [f.read_bytes() for f in files[1]]


def test_a_path_tells_that_parquet_files_lie_there(two):
    for path in (str(two), f"{two}/train-0.parquet", f"{two}/train-*.parquet", "https://host/a.parquet?x=y"):
        assert source_of(path) == Parquet(path)
    assert not isinstance(source_of(str(two.parent)), Parquet)


def test_it_is_a_value():
    source = Parquet("x", "img", "text", "class", 0.5, 2.0)
    assert from_data(to_data(source), {"Parquet": Parquet}) == source
    for wrong, message in (
        ({"max_bad_share": 1.0}, "max_bad_share must be in"),
        ({"cache_gib": 0.0}, "cache_gib must be positive"),
        ({"text_key": "image"}, "must be different columns"),
    ):
        with pytest.raises(UserError, match=message):
            from_data({"type": "Parquet", "path": "x", **wrong}, {"Parquet": Parquet})
