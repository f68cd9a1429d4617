"""Folders of clips: which are good, which captions they have, and what comes out as batches."""

import json
import os
import pickle
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from pixelspace.config import from_data, to_data
from pixelspace.data import clip_index
from pixelspace.data import index as indexing
from pixelspace.data.clip_file import frames
from pixelspace.data.clip_index import CLIPS, load_or_build
from pixelspace.data.clips import Clips
from pixelspace.data.codec import Pixels
from pixelspace.data.index import File
from pixelspace.data.loader import Data, Positions, batches, read, to_model_space
from pixelspace.data.order import Shuffled
from pixelspace.data.transforms import Cut, fit
from pixelspace.errors import DataError, UserError
from pixelspace.nn.frames import as_clip
from pixelspace.random import Rng
from tests.data.moving_pictures import animation, film, motion

CPU, RNG = torch.device("cpu"), Rng(3)
SIZE = (24, 32)


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """Eight clips of all kinds, 12 to 40 frames."""
    root = tmp_path_factory.mktemp("clips") / "real"
    film(root / "a" / "1.mp4", motion(40, seed=1))
    film(root / "a" / "2.webm", motion(30, 80, 40, seed=2), "vp9.webm")
    film(root / "a" / "3.mkv", motion(12, 40, 60, seed=3), "open_gop.mkv")
    film(root / "b" / "4.avi", motion(24, seed=4), "mpeg4.avi")
    film(root / "b" / "5.mov", motion(20, seed=5), "hevc.mov", rotation=90)
    for i, suffix in enumerate((".gif", ".webp", ".apng")):
        animation(root / "b" / f"{6 + i}{suffix}", motion(16, 50, 36, seed=6 + i), 50)
    for i in (1, 4, 6):
        (root / ("a" if i < 4 else "b") / f"{i}.txt").write_text(f"clip number {i}\n")
    return root


@pytest.fixture(scope="module")
def cache(root) -> Path:
    load_or_build(root, root.parent / "cache", 1, 1)
    return root.parent / "cache"


@pytest.fixture
def dataset(root, cache):
    return Clips(str(root), frames=4, stride=3).open(cache)


def every(path: Path) -> torch.Tensor:
    """All frames (3, n, H, W), decoded from the first to the last."""
    return torch.from_numpy(
        np.stack(list(frames(path, range(clip_index.examine(path).frames), ()))).transpose(3, 0, 1, 2)
    )


def reasons(index) -> dict[str, str]:
    return {entry.name: entry.reason for entry in index.bad}


# Samples


def test_a_sample_is_the_middle_of_a_clip_at_the_stride_with_its_caption_and_class(dataset, root):
    assert len(dataset) == 8 and dataset.classes == ("a", "b")
    for i in range(8):
        whole = every(root / dataset.name(i))
        image, label, texts, *_ = dataset[i]
        start = (whole.shape[1] - 10 + 1) // 2
        assert torch.equal(image, whole[:, start : start + 10 : 3]) and image.dtype == torch.uint8
        assert label == (0 if dataset.name(i).startswith("a") else 1)
        number = dataset.name(i)[2]
        assert texts == dataset.texts(i) == ((f"clip number {number}",) if number in "146" else ())


@pytest.mark.parametrize("time", [0.0, 0.2, 0.5, 0.77, 1 - 2**-53])
def test_a_cut_is_that_of_each_frame_from_the_share_of_the_room(dataset, root, time):
    cut = Cut(SIZE, "random", (0.3, 0.9), True, time)
    for i in range(8):
        whole = every(root / dataset.name(i))
        room = whole.shape[1] - 10
        start = int(time * (room + 1))
        sample = dataset.cut(i, cut)
        assert 0 <= start <= room and sample.size == tuple(whole.shape[2:])
        want = torch.stack([fit(whole[:, t], cut) for t in range(start, start + 10, 3)], 1)
        assert torch.equal(sample.image, want) and sample.image.shape == (3, 4, *SIZE)


@pytest.mark.parametrize("crop", ["center", "random", "adm"])
def test_all_frames_are_cut_at_one_place(crop):
    still = torch.from_numpy(motion(1, 90, 70)).permute(3, 0, 1, 2).expand(3, 5, 70, 90)
    got = fit(still, Cut((20, 24), crop, (0.2, 0.7), True))
    assert got.shape == (3, 5, 20, 24) and got.is_contiguous()
    assert all(torch.equal(got[:, t], fit(still[:, 0], Cut((20, 24), crop, (0.2, 0.7), True))) for t in range(5))


def test_columns_tell_size_length_and_rate(dataset):
    at = {dataset.name(i): i for i in range(8)}
    table = {name: dataset.column(name) for name in dataset.columns()}
    assert {name: column[at["a/2.webm"]] for name, column in table.items() if name not in ("seconds", "fps")} == {
        **{"captions": 0, "caption_length": 0, "height": 40, "width": 80, "frames": 30}
    }
    assert table["captions"][at["b/6.gif"]] == 1 and table["caption_length"][at["b/6.gif"]] == 13
    assert table["height"][at["b/5.mov"]] == 64  # turned
    np.testing.assert_allclose(table["seconds"][[at["a/1.mp4"], at["b/6.gif"]]], [40 / 24, 0.8])
    np.testing.assert_allclose(table["fps"], [24] * 5 + [20] * 3, rtol=1e-3)
    with pytest.raises(UserError, match=r"no sample has 'length'.*fps, frames, height"):
        dataset.column("length")


def test_a_dataset_goes_to_workers_and_a_source_to_json(dataset, root):
    again = pickle.loads(pickle.dumps(dataset))
    assert torch.equal(again[2].image, dataset[2].image) and again.fingerprint == dataset.fingerprint
    source = Clips(str(root), 8, 3)
    assert from_data(json.loads(json.dumps(to_data(source))), {"Clips": Clips}) == source


def test_the_fingerprint_is_of_the_clips_and_how_they_are_sampled(root, cache):
    found = {Clips(str(root), n, stride).open(cache).fingerprint for n, stride in ((6, 2), (6, 1), (11, 1))}
    assert len(found) == 3


@pytest.mark.parametrize("wrong", [{"frames": 0}, {"stride": 0}, {"max_bad_share": 1.0}])
def test_settings_that_cannot_be_meant_are_refused(wrong):
    with pytest.raises(ValueError, match=f"Clips: {next(iter(wrong))} must be"):
        Clips("x", **wrong)


# Batches


def positions(dataset, **given) -> Positions:
    data = Data(Clips("x"), **{"crop": "random", **given})
    return Positions(dataset, Shuffled(np.arange(len(dataset)), RNG), data, SIZE, RNG)


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_clips_and_the_same_for_any_number_of_workers(dataset, workers):
    alone = positions(dataset)
    stream = batches(positions(dataset, workers=workers), 5, 4, CPU)
    for raw in islice(stream, 2):
        assert raw.images.shape == (4, 3, 4, *SIZE) and raw.images.dtype == torch.uint8 and not raw.bad
        for p, image in zip(raw.pos.tolist(), raw.images, strict=True):
            assert torch.equal(alone[p].sample.image, image)
        batch = to_model_space(raw, alone.data, Pixels(), RNG, CPU)
        assert batch.x.shape == (4, 3, 2 * SIZE[0], 2 * SIZE[1]) and batch.x.dtype == torch.float32
        assert -1 <= batch.x.min() < batch.x.max() <= 1
        assert torch.equal(as_clip(Pixels().decode(batch.x), 2), raw.images)
    stream.close()


def test_clips_begin_anywhere_as_their_positions_say(dataset, root):
    pos, starts = positions(dataset, flip=False, crop="center"), set()
    whole = every(root / dataset.name(0))
    cuts = [fit(whole[:, start : start + 10 : 3], Cut(SIZE)) for start in range(whole.shape[1] - 9)]
    for p in (p for p in range(300) if pos.order.at(p) == 0):
        image = pos[p].sample.image
        (start,) = [i for i, cut in enumerate(cuts) if torch.equal(cut, image)]
        starts.add(start)
        assert torch.equal(pos[p].sample.image, cuts[start])
    assert len(starts) > 15 and min(starts) < 3 and max(starts) > 26


def test_validation_reads_the_middle(dataset):
    raw = read(dataset, [0, 3], SIZE)
    assert torch.equal(raw.images[1], dataset.cut(3, Cut(SIZE)).image) and raw.images.shape == (2, 3, 4, *SIZE)


def test_what_is_for_images_is_refused(dataset):
    raw = read(dataset, [0], SIZE)
    with pytest.raises(UserError, match=r"data.augment=0.1 is for images, and these are clips; set it to 0"):
        to_model_space(raw, Data(Clips("x"), augment=0.1), Pixels(), RNG, CPU)
    with pytest.raises(UserError, match=r"must fill a square, and 3 do not; set data.source.frames to 1 or 4"):
        to_model_space(replace(raw, images=raw.images[:, :, :3]), Data(Clips("x")), Pixels(), RNG, CPU)

    class Encoder(Pixels):
        def identity(self) -> str:
            return "weights"

    dataset.check(SIZE, True, Pixels())
    with pytest.raises(UserError, match="clips, and Encoder is for images"):
        dataset.check(SIZE, True, Encoder())


def test_a_clip_that_changed_is_refused_and_one_that_was_only_touched_is_not(tmp_path):
    for i in range(2):
        animation(tmp_path / f"{i}.gif", motion(8, seed=i))
    dataset = Clips(str(tmp_path), 4).open()
    os.utime(tmp_path / "0.gif")
    animation(tmp_path / "1.gif", motion(8, seed=5))
    assert dataset[0].image.shape == (3, 4, 48, 64)
    with pytest.raises(DataError, match=r"1\.gif: changed since the folder was indexed"):
        dataset[1]
    (tmp_path / "1.gif").unlink()
    with pytest.raises(DataError, match=r"1\.gif: cannot be read: No such file"):
        dataset.cut(1, Cut(SIZE))
    raw = next(batches(positions(dataset), 0, 4, CPU))
    assert set(raw.ids.tolist()) == {0} and {name for name, _ in raw.bad} == {"1.gif"}


# The index


def test_bad_files_are_named_and_counted_against_the_budget(root, tmp_path):
    for name in ("a/1.mp4", "b/6.gif"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        os.link(root / name, tmp_path / name)
    whole = (root / "a" / "1.mp4").read_bytes()
    for name, data in {"cut.mp4": whole[:-900], "empty.webm": b"", "page.mp4": b"<html>"}.items():
        (tmp_path / "a" / name).write_bytes(data)
    (tmp_path / "a" / "latin.gif").write_bytes((root / "b" / "6.gif").read_bytes())
    (tmp_path / "a" / "latin.txt").write_bytes(b"caf\xe9")
    (tmp_path / "a" / "still.png").write_bytes(b"?")
    index = load_or_build(tmp_path, None, 16, 2)
    found = reasons(index)
    assert found.pop("a/cut.mp4").startswith("cut short")
    assert found == {
        "a/empty.webm": "zero bytes",
        "a/page.mp4": "an HTML page",
        "a/latin.gif": "its caption a/latin.txt: not UTF-8 at byte 3",
        "b/6.gif": "16 frames; 16 at a stride of 2 take 31",
    }
    assert [entry.name for entry in index.good] == ["a/1.mp4"] and index.ignored == {".png": 1}
    for line in ("1 good clips, 5 bad", "frames: 40 to 40, median 40", "frames a second: 24 to 24", "pixels: 1 h264"):
        assert line in index.summary()
    with pytest.raises(DataError, match=r"5 of 6 clip files are bad, more than the 10% allowed: a/cut.mp4: cut short"):
        index.check(0.1)


def test_unchanged_files_are_not_decoded_again(root, tmp_path):
    cache = tmp_path / "cache"
    first = load_or_build(root, cache, 6, 2)
    (file,) = cache.rglob("*.json")
    stored, written = json.loads(file.read_text()), file.stat().st_mtime_ns
    assert load_or_build(root, cache, 6, 2) == first and file.stat().st_mtime_ns == written
    # What the cache says is believed, or else this would not show.
    stored["entries"] = [[*row[:9], row[9] + 100, *row[10:]] for row in stored["entries"]]
    file.write_text(json.dumps(stored))
    assert [e.frames - 100 for e in load_or_build(root, cache, 6, 2).good] == [e.frames for e in first.good]


def test_a_file_that_hangs_its_decoder_costs_only_itself(root, tmp_path):
    os.mkfifo(tmp_path / "hang.mp4")  # opening it waits for ever
    files = [File("a/1.mp4", 1, 1), File(str(tmp_path / "hang.mp4"), 1, 1), File("b/6.gif", 1, 1)]
    one, stuck, two = indexing._read_all(root, files, CLIPS._replace(seconds=0.7))
    assert stuck.reason == "its decoder crashed or took over 0.7 seconds"
    assert (one.frames, two.frames, one.reason, two.reason) == (40, 16, "", "")


def test_an_empty_folder_says_what_was_looked_for(tmp_path):
    with pytest.raises(DataError, match=r"no clip files \(.mp4 .m4v .mov .webm .mkv .avi .gif .webp .apng\) at any"):
        Clips(str(tmp_path)).open()
    with pytest.raises(DataError, match="absent: no such folder; give a folder of clips"):
        Clips(str(tmp_path / "absent")).open()


def test_captions_come_out_of_metadata(root, tmp_path):
    os.link(root / "b" / "6.gif", tmp_path / "x.gif")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "x.gif", "text": ["one", "two"]}\n')
    assert Clips(str(tmp_path), 4).open().texts(0) == ("one", "two")


# WebVid


HEAD = "videoid,contentUrl,duration,page_dir,name\n"


def webvid(root: Path, folder: Path, rows: str, name: str = "results_2M_train.csv") -> Path:
    for place in ("p_1/10.mp4", "20.mp4", "p_1/unlisted.mp4"):
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        os.link(root / "a" / "1.mp4", folder / place)
    (folder / name).write_bytes(rows.encode() if isinstance(rows, str) else rows)
    return folder


def test_a_table_names_clips_and_captions(root, tmp_path):
    rows = '10,http://a,PT00H00M02S,p_1,"A bar, moving"\n20,http://b,PT00H00M02S,p_2,Another\n'
    index = load_or_build(webvid(root, tmp_path, HEAD + rows), None, 16, 1)
    assert {entry.name: entry.texts for entry in index.good} == {
        "p_1/10.mp4": ("A bar, moving",),
        "20.mp4": ("Another",),
    }
    assert index.bad == () and index.classes == () and index.ignored == {"clips not in results_2M_train.csv": 1}


def test_rows_without_a_clip_or_twice_are_named_and_counted(root, tmp_path):
    rows = f"10,u,d,p_1,one\n30,u,d,p_1,lost\n10,u,d,p_1,again\n,u,d,p_1,none\n20,u,d,p_1,{'x' * 9000}\n"
    index = load_or_build(webvid(root, tmp_path, HEAD + rows), None, 16, 1)
    assert reasons(index) == {
        "p_1/30.mp4": "no such file, and results_2M_train.csv:3 lists it",
        "results_2M_train.csv:4": "p_1/10.mp4 stands twice, first in line 2",
        "results_2M_train.csv:5": "no videoid",
        "results_2M_train.csv:6": "its name over 8192 bytes",
    }
    with pytest.raises(DataError, match="4 of 5 clip files are bad"):
        index.check(0.1)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("videoid,contentUrl,duration,name\n1,u,d,n\n", r"csv:1: expected the columns page_dir too; found videoid,con"),
        ("", "csv:1: expected the columns videoid,page_dir,name too; found nothing"),
        (HEAD + "10,u,d,p_1,a, b\n", "csv:2: expected 5 fields; put quotes round names with commas"),
        (HEAD + '10,u,d,p_1,"open\n', "csv:2: not CSV"),
        (HEAD.encode() + b"10,u,d,p_1,caf\xe9\n", "csv: not UTF-8, somewhere after line [01]"),
    ],
)
def test_a_table_that_is_wrong_is_refused_by_line(root, tmp_path, table, message):
    with pytest.raises(DataError, match=message):
        load_or_build(webvid(root, tmp_path, table), None, 16, 1)


def test_one_of_several_tables_is_to_be_named(root, tmp_path):
    webvid(root, tmp_path, HEAD + "10,u,d,p_1,one\n")
    (tmp_path / "results_2M_val.csv").write_text(HEAD + "20,u,d,p_1,two\n")
    with pytest.raises(DataError, match=r"found results_2M_train.csv and results_2M_val.csv; set table"):
        Clips(str(tmp_path)).open()
    dataset = Clips(str(tmp_path), table="results_2M_val.csv").open()
    assert [dataset.name(i) for i in range(len(dataset))] == ["20.mp4"]
    with pytest.raises(DataError, match=r"absent.csv: no such file; set table"):
        Clips(str(tmp_path), table="absent.csv").open()


def test_captions_from_two_places_are_refused(root, tmp_path):
    webvid(root, tmp_path, HEAD + "10,u,d,p_1,one\n")
    (tmp_path / "20.txt").write_text("else")
    with pytest.raises(DataError, match=r"found captions in results_2M_train.csv and in files beside the clips"):
        Clips(str(tmp_path)).open()
    (tmp_path / "20.txt").unlink()
    (tmp_path / "metadata.jsonl").write_text("")
    with pytest.raises(DataError, match=r"found both results_2M_train.csv and metadata.jsonl"):
        Clips(str(tmp_path)).open()


def test_a_clip_knows_its_file_and_the_corner_of_what_is_seen(dataset):
    assert dataset.files().tolist() == [0]
    height, width = dataset[0].image.shape[-2:]
    cut = Cut((height, width // 2), "random", (0.0, 0.8))
    for flip in (False, True):
        sample, whole = dataset.cut(0, cut._replace(flip=flip)), dataset[0].image
        left = sample.corner[1]
        assert torch.equal(sample.image, (whole.flip(3) if flip else whole)[..., left : left + width // 2])
