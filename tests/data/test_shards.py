"""Tar shards: found out once, read by number, and every fault named."""

import hashlib
import io
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pixelspace.data import shard_index
from pixelspace.data.detect import source_of
from pixelspace.data.folder import Folder
from pixelspace.data.loader import Data, Positions
from pixelspace.data.order import Shuffled
from pixelspace.data.remote import open_files
from pixelspace.data.shard_index import Indexed, ShardIndex, build_index, verify_images
from pixelspace.data.shard_part import PartFile, part_path
from pixelspace.data.shards import Shards
from pixelspace.errors import DataError, UserError
from pixelspace.random import Rng
from tests.data.tars import Members, png, sample, write_shards, write_tar


def indexed(root: Path, out: Path, text_key: str | None = None, **settings) -> ShardIndex:
    found = build_index(
        open_files(str(root), (".tar",), out.parent), Indexed(str(root), text_key), out, progress=False, **settings
    )
    assert found is not None
    return found


def verdicts(tmp_path: Path, members: Members, text_key: str | None = None) -> tuple[list[str], dict[str, str]]:
    """The names of the good samples of one shard with these members, and the reasons of the bad ones by key."""
    write_tar(tmp_path / "in" / "a.tar", members)
    index = indexed(tmp_path / "in", tmp_path / "index", text_key)
    (part,) = index.parts
    good = part.column("keys").tobytes().decode("utf-8", "surrogateescape")
    ends = part.column("key_ends").tolist()
    names = [good[a:b] for a, b in zip([0, *ends[:-1]], ends, strict=True)]
    return names, {key: why for _, key, why in index.rejects() if key}


# Samples


def test_samples_are_what_was_packed(tmp_path):
    dataset = Shards(str(write_shards(tmp_path / "in"))).open(tmp_path / "cache")
    assert len(dataset) == 12 and dataset.classes == ()
    for i in range(12):
        image, label, texts, *_ = dataset[i]
        with Image.open(io.BytesIO(png(i))) as expected:
            assert np.array_equal(image.permute(1, 2, 0).numpy(), np.array(expected))
        assert (label, texts, dataset.texts(i)) == (-1, (f"caption {i}",), (f"caption {i}",))
        assert dataset.name(i) == f"{i // 4:05d}.tar:{i:09d}"
    assert dataset.name(-1) == dataset.name(11) and dataset[-1].texts == ("caption 11",)
    with pytest.raises(IndexError):
        dataset[12]


def test_columns_keys_and_files_are_those_of_single_samples(tmp_path):
    root = write_shards(tmp_path / "in")
    write_tar(root / "00003.tar", [("x.png", png(50, 20, 10)), ("x.cls", b"3\n"), ("y.png", b"?")])
    write_tar(root / "00004.tar", [])
    write_tar(
        root / "00005.tar", [("z.jpg", png(51)), ("z.json", b'{"score": NaN, "other": 2, "flag": true, "captions": 7}')]
    )
    dataset = Shards(str(root), max_bad_share=0.5).open(tmp_path / "cache")
    assert len(dataset) == 14 and dataset.classes == ("0", "1", "2", "3") and dataset[12].label == 3
    assert dataset.columns() == ("captions", "caption_length", "height", "width", "other", "score")
    sizes = [tuple(dataset[i].image.shape[1:]) for i in range(14)]
    assert list(zip(dataset.column("height"), dataset.column("width"), strict=True)) == sizes
    assert dataset.column("captions").tolist() == [1] * 12 + [0, 0]
    assert dataset.column("caption_length").tolist() == [9] * 10 + [10] * 2 + [0, 0]
    nan = np.nan
    np.testing.assert_array_equal(dataset.column("score"), [*(i / 10 for i in range(12)), nan, nan])
    np.testing.assert_array_equal(dataset.column("other"), [nan] * 13 + [2])
    assert all(dataset.column(name).dtype == np.float64 for name in dataset.columns())
    names = (dataset.name(i).encode() for i in range(14))
    hashes = [int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "little") for name in names]
    assert dataset.keys().tolist() == hashes and dataset.keys().dtype == np.uint64
    assert dataset.files().tolist() == [0, 4, 8, 12, 13]
    with pytest.raises(UserError, match="no sample has 'scor'; did you mean 'score'"):
        dataset.column("scor")


def test_a_sample_is_known_the_same_wherever_and_among_whatever_it_lies(tmp_path):
    first = Shards(str(write_shards(tmp_path / "a"))).open()
    (tmp_path / "b").mkdir()
    shutil.copy(tmp_path / "a" / "00001.tar", tmp_path / "b")
    assert Shards(f"{tmp_path}/b/*.tar").open().keys().tolist() == first.keys()[4:8].tolist()


def test_a_worker_is_sent_little_and_reads_the_same(tmp_path):
    dataset = Shards(str(write_shards(tmp_path / "in"))).open(tmp_path / "cache")
    sent = pickle.dumps(dataset)
    assert len(sent) < 3000
    other = pickle.loads(sent)
    assert len(other) == len(dataset)
    for i in range(len(dataset)):
        assert torch.equal(dataset[i].image, other[i].image) and dataset[i][1:] == other[i][1:]


# Captions


def test_captions_may_come_from_the_metadata(tmp_path):
    rows = ['{"c": "one"}', '{"c": ["two", " ", "zwei "]}', '{"c": null}', "{}", '{"c": 3}', '{"c": ["a", 4]}']
    rows += ['{"c": "\\ud800"}', '{"c": "a\\u0000"}', json.dumps({"c": "é" * 4097})]
    members = [one for i, row in enumerate(rows) for one in ((f"{i}.png", png(i)), (f"{i}.json", row.encode()))]
    members += [("9.png", png(9)), ("9.txt", b"not this")]
    good, bad = verdicts(tmp_path, members, "c")
    assert good == ["0", "1", "2", "3", "9"]
    assert bad == {
        "4": "4.json: 'c' must be a string or a list of strings, found 3",
        "5": "5.json: 'c' must be a string or a list of strings, found ['a', 4]",
        "6": "6.json: caption holds half a surrogate pair",
        "7": "7.json: caption holds a NUL at character 1",
        "8": "8.json: caption over 8192 bytes",
    }
    dataset = Shards(str(tmp_path / "index"), max_bad_share=0.9).open(tmp_path / "cache")
    assert [dataset.texts(i) for i in range(5)] == [("one",), ("two", "zwei"), (), (), ()]
    assert dataset.column("captions").tolist() == [1, 2, 0, 0, 0]
    with pytest.raises(UserError, match=r"no .json has the key 'caption'; did you mean 'c'\?|known here: c"):
        Shards(str(tmp_path / "in"), 0.9, "caption").open(tmp_path / "cache")


def test_wrong_captions_are_named_with_member_and_byte(tmp_path):
    texts = [
        b"\xef\xbb\xbfwith a mark",
        b"ok\xff",
        "ü".encode("utf-16"),
        b"a\0b",
        b"x" * 8193,
        b" \n",
        b"",
        b"y" * 8192,
    ]
    members = [one for i, text in enumerate(texts) for one in ((f"{i}.png", png(i)), (f"{i}.txt", text))]
    good, bad = verdicts(tmp_path, members)
    assert good == ["0", "5", "6", "7"]
    assert bad == {
        "1": "1.txt: not UTF-8 at byte 2",
        "2": "2.txt: not UTF-8 at byte 0",
        "3": "3.txt: caption holds a NUL at character 1",
        "4": "4.txt: caption over 8192 bytes",
    }
    dataset = Shards(str(tmp_path / "index"), max_bad_share=0.9).open(tmp_path / "cache")
    assert [dataset.texts(i) for i in range(3)] == [("with a mark",), (), ()]
    summary = ShardIndex(
        tmp_path / "index", shard_index.SEAL.read(tmp_path / "index/shards.json", shard_index.Manifest)[0]
    )
    assert "captions: 2 samples have one, 2 none, 2 are blank; the longest has 8,192 characters" in summary.summary()


# Faults of members


def test_bad_samples_are_named_with_their_members(tmp_path):
    image = png(1)
    members: Members = [
        *sample(0),
        *(("cut.png", image[:60]), ("page.png", b"<html>"), ("empty.png", b"")),
        *(("none.txt", b"words"), ("none.json", b"{}")),
        *(("two.png", image), ("two.jpg", image)),
        *(("/abs.png", image), ("../up.png", image)),
        *(("broken.png", image), ("broken.json", b'{"a": ')),
        *(("list.png", image), ("list.json", b"[1]")),
        *(("twice.png", image), ("twice.json", b'{"a": 1, "a": 2}')),
        *(("deep.png", image), ("deep.json", b"[" * 99_999)),
        *(("latin.png", image), ("latin.json", b'{"a": "\xe9"}')),
        *(("large.png", image), ("large.json", b" " * (1 << 20) + b"{}")),
        *(("negative.png", image), ("negative.cls", b"-1")),
        *(("word.png", image), ("word.cls", b"cat")),
        *(("high.png", image), ("high.cls", b"100000")),
        *(("same.txt", b"a"), ("same.png", image), ("same.txt", b"b")),
        *(("back.png", image), ("other.png", image), ("back.txt", b"whose?")),
    ]
    good, bad = verdicts(tmp_path, members)
    assert good == ["000000000", "other"]
    starts = {
        "cut": "cut.png: cut short",
        "page": "page.png: an HTML page",
        "empty": "empty.png: zero bytes",
        "none": "no image; found .txt .json",
        "two": "two members with an image: two.png at byte ",
        "/abs": "/abs.png: an absolute name",
        "../up": "../up.png: a name that leads out of the archive",
        "broken": "broken.json: not JSON: Expecting value: line 1 column 7",
        "list": "list.json: expected a JSON object, found list",
        "twice": "twice.json: not JSON: the key 'a' stands twice",
        "deep": "deep.json: not JSON: ",
        "latin": "latin.json: not UTF-8 at byte 7",
        "large": "large.json: metadata over 1048576 bytes",
        "negative": "negative.cls: a label is a whole number from 0 to 99999, found '-1'",
        "word": "word.cls: a label is a whole number from 0 to 99999, found 'cat'",
        "high": "high.cls: a label is a whole number from 0 to 99999, found '100000'",
        "same": "two members with that name: same.txt at byte ",
        "back": "the key comes back behind another: back.png at byte ",
    }
    assert bad.keys() == starts.keys()
    for key, start in starts.items():
        assert bad[key].startswith(start), bad[key]
    assert "back.txt at byte" in bad["back"] and "two.jpg at byte" in bad["two"]


def test_an_image_over_the_cap_is_not_read(tmp_path):
    path = tmp_path / "in" / "a.tar"
    path.parent.mkdir()
    info = tarfile.TarInfo("big.png")
    info.size = (512 << 20) + 1
    with path.open("wb") as file:
        file.write(info.tobuf())
        file.truncate(512 + info.size + 511 + 1024)
    index = indexed(path.parent, tmp_path / "index")
    assert index.rejects() == [("a.tar", "big", "big.png: over 512 MiB")]


class Trap:
    def __reduce__(self):
        return os.abort, ()


def test_pickles_and_other_members_are_counted_and_never_read(tmp_path):
    trap = pickle.dumps(Trap())
    members = [*sample(0), ("000000000.pkl", trap), ("000000000.pth", trap), ("1.pyd", trap), ("._x.png", b"?")]
    members += [("1.npy", trap), ("README", b"?"), ("000000002.seg.pt", trap)]
    good, bad = verdicts(tmp_path, members)
    assert (good, bad) == (["000000000"], {})
    summary = indexed(tmp_path / "in", tmp_path / "index").summary()
    (line,) = [line for line in summary.splitlines() if line.startswith("ignored: ")]
    expected = {"1 .pkl", "1 .pth", "1 .pyd", "1 hidden", "1 .npy", "1 without suffix", "1 .seg.pt"}
    assert set(line.removeprefix("ignored: ").split(", ")) == expected
    for name in ("000000000.pkl", "000000000.pth", "1.pyd"):
        assert f"pickle, never read: a.tar:{name}" in summary


def test_names_of_any_bytes_are_kept_and_shown_safely(tmp_path):
    name = os.fsdecode(b"\xff\x1b[31m\n")
    good, bad = verdicts(tmp_path, [(f"{name}.png", png(0)), (f"b{name}.png", b"")])
    assert good == [name] and list(bad) == [f"b{name}"]
    dataset = Shards(str(tmp_path / "index"), max_bad_share=0.9).open(tmp_path / "cache")
    assert dataset.name(0).isprintable() and dataset[0].image.shape == (3, 8, 8)
    assert all(line.isprintable() for line in indexed(tmp_path / "in", tmp_path / "index").summary().split("\n"))


def test_a_shard_of_endless_suffixes_and_keys_can_be_indexed(tmp_path):
    pairs = {f"{'k' * 90}{i:05d}": "text" for i in range(9000)}
    both = [("0.png", png(0)), ("0.json", json.dumps({**pairs, "last": "caption"}).encode())]
    dotted = [(f"photo.{i:05d}{'x' * 80}.dat", b"") for i in range(14_000)]
    write_tar(tmp_path / "in" / "a.tar", [*both, *dotted], tarfile.USTAR_FORMAT)
    for text_key in (None, "last"):
        index = indexed(tmp_path / "in", tmp_path / f"by {text_key}", text_key)
        index.check(0)
        (part,) = (one.part for one in index.manifest.shards)
        assert (part.good, part.captioned) == (1, int(text_key is not None))
        assert sum(dict(part.ignored).values()) == len(dotted) and len(part.ignored) == 257
        assert len(part.text_keys) == 256 + (text_key is not None)


def test_numbers_with_odd_names_or_values_are_left_out(tmp_path):
    row = {"ok": 1, "big": 10**400, "inf": 1e999, "a\nb": 1, "n" * 101: 1, "text": "5"}
    row |= {f"x{i:03}": i for i in range(300)}
    verdicts(tmp_path, [("0.png", png(0)), ("0.json", json.dumps(row).encode())])
    index = indexed(tmp_path / "in", tmp_path / "index")
    assert index.numbers == ("ok", *(f"x{i:03}" for i in range(255)))
    assert "ignored: 47 numbers with odd names, or too many of them" in index.summary()


# Faults of shards


@pytest.mark.parametrize("name", ["a.tar.gz", "b.tgz", "c.tar.zst"])
def test_compressed_shards_are_refused_by_name(tmp_path, name):
    write_shards(tmp_path)
    (tmp_path / name).write_bytes(b"\x1f\x8b")
    for path in (tmp_path, tmp_path / name):
        with pytest.raises(DataError, match=f"^{name}: compressed"):
            Shards(str(path)).open(tmp_path / "cache")
    assert isinstance(source_of(str(tmp_path / name)), Shards)


def test_a_truncated_shard_keeps_the_samples_before(tmp_path):
    root = write_shards(tmp_path / "in", 1, 8)
    with tarfile.open(root / "00000.tar") as archive:
        cut = archive.getmember("000000005.txt").offset_data + 3
    os.truncate(root / "00000.tar", cut)
    index = indexed(root, tmp_path / "index")
    assert index.good == 5 and [key for _, key, _ in index.rejects()] == ["000000005", ""]
    assert index.rejects()[0][2] == "000000005.txt: cut short: 3 of 9 bytes"
    fault = f"cut short: ends at byte {cut:,}, within '000000005.txt'; its last whole member is '000000005.png'"
    assert index.faults == [f"00000.tar: {fault}"] and f"damaged: 00000.tar: {fault}" in index.summary()
    with pytest.raises(DataError, match=r"1 of 6 samples are bad, more than the 10% allowed: 00000.tar:000000005: "):
        index.check(0.1)
    with pytest.raises(DataError, match="1 of 1 shards are bad"):
        index.check(0.5)
    rows = [json.loads(line) for line in (tmp_path / "index" / "rejects.jsonl").read_text().splitlines()]
    assert [(row["shard"], row["key"], row["reason"]) for row in rows] == index.rejects()


def test_shards_that_are_no_tars_are_damaged_and_the_others_good(tmp_path):
    root = write_shards(tmp_path / "in")
    (root / "page.tar").write_bytes(b"<html>" * 999)
    (root / "gz.tar").write_bytes(b"\x1f\x8b" * 999)
    index = indexed(root, tmp_path / "index")
    assert index.good == 12 and [fault.partition(";")[0] for fault in index.faults] == [
        "gz.tar: compressed by gzip: members can only be read in order",
        "page.tar: not a tar",
    ]


def test_three_bad_samples_are_named_over_the_budget(tmp_path):
    members = [(f"{i}.png", png(i) if i > 4 else b"") for i in range(9)]
    write_tar(tmp_path / "a.tar", members)
    with pytest.raises(DataError) as error:
        Shards(str(tmp_path), 0.5).open(tmp_path / "cache")
    assert str(error.value).startswith(
        f"{tmp_path}: 5 of 9 samples are bad, more than the 50% allowed: a.tar:0: 0.png: zero bytes; "
        "a.tar:1: 1.png: zero bytes; a.tar:2: 2.png: zero bytes; all are in "
    )
    write_tar(tmp_path / "a.tar", members[:3])
    with pytest.raises(DataError, match="changed since it was indexed"):
        Shards(str(tmp_path), 0.5).open(tmp_path / "cache")


def test_equal_images_and_keys_in_several_shards_are_counted(tmp_path):
    for i in range(2):
        write_tar(tmp_path / f"{i}.tar", [("same.png", png(i)), (f"k{i}.png", png(7))])
    assert "duplicates: 1 images, 1 keys in several shards" in indexed(tmp_path, tmp_path / "index").summary()
    dataset = Shards(str(tmp_path)).open(tmp_path / "cache")
    assert [dataset.name(0), dataset.name(2)] == ["0.tar:same", "1.tar:same"]
    assert len(set(dataset.keys().tolist())) == 4


@pytest.mark.parametrize("fate", ["vanishes", "is replaced", "is cut", "is damaged"])
def test_a_shard_that_is_lost_in_training_is_substituted_and_named(tmp_path, fate):
    root = write_shards(tmp_path / "in")
    dataset = Shards(str(root)).open(tmp_path / "cache")
    path = root / "00001.tar"
    status = path.stat()
    if fate == "vanishes":
        path.unlink()
    elif fate == "is replaced":
        shutil.copy(root / "00000.tar", path)
    elif fate == "is cut":
        os.truncate(path, 600)
    else:
        data = path.read_bytes()
        path.write_bytes(data.replace(b"IDAT", b"IDAX"))
        os.utime(path, ns=(status.st_mtime_ns, status.st_mtime_ns))
    positions = Positions(dataset, Shuffled(np.arange(12), Rng(0)), Data(Shards("unused")), (8, 8), Rng(0))
    items = [positions[p] for p in range(12)]
    bad = [name for item in items for name, _ in item.bad]
    reasons = {why for item in items for _, why in item.bad}
    assert {name for name in bad if name.startswith("00001.tar:")} == set(bad) and len(set(bad)) == 4
    assert all(item.index not in range(4, 8) for item in items)
    expected = {"vanishes": "vanished", "is damaged": "changed since it was indexed"}.get(fate, "changed since it was")
    assert all(expected in why for why in reasons), reasons
    with pytest.raises(DataError, match=r"00001.tar"):
        Shards(str(root)).open(tmp_path / "cache") if fate != "is damaged" else dataset[5]


def test_a_damaged_shard_with_the_same_size_and_time_is_found_by_verifying(tmp_path):
    root = write_shards(tmp_path / "in")
    index = indexed(root, tmp_path / "index")
    files = open_files(str(root), (".tar",), None)
    verify_images(index, files)
    path, status = root / "00001.tar", (root / "00001.tar").stat()
    path.write_bytes(path.read_bytes().replace(b"IDAT", b"IDAX"))
    os.utime(path, ns=(status.st_mtime_ns, status.st_mtime_ns))
    with pytest.raises(DataError, match=r"4 images are not what was indexed: 00001.tar:000000004, .*5, .*6; bring"):
        verify_images(index, files)


# The index


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix != ".part"}


def counted(monkeypatch) -> list[int]:
    """The offsets of images that are looked at from now on."""
    real, seen = shard_index.examined, []

    def counting(offset: int, data: bytes):
        seen.append(offset)
        return real(offset, data)

    monkeypatch.setattr(shard_index, "examined", counting)
    return seen


def test_only_a_shard_that_changed_is_read_again(tmp_path, monkeypatch):
    root, out = write_shards(tmp_path / "in"), tmp_path / "index"
    seen = counted(monkeypatch)
    first = indexed(root, out)
    assert len(seen) == 12
    assert indexed(root, out).manifest == first.manifest and len(seen) == 12
    source = Shards(str(out))
    assert len(source.open(tmp_path / "cache")) == 12
    write_tar(root / "00001.tar", sample(77))
    with pytest.raises(DataError, match=r"^00001.tar: changed since it was indexed; run `pixelspace prepare` again$"):
        source.open(tmp_path / "cache")
    assert indexed(root, out).good == 9 and len(seen) == 13
    write_tar(root / "00003.tar", sample(78))
    with pytest.raises(DataError, match=r"^00003.tar: is not indexed"):
        source.open(tmp_path / "cache")
    (root / "00000.tar").unlink()
    with pytest.raises(DataError, match=r"^00000.tar: is gone, although it is indexed"):
        source.open(tmp_path / "cache")
    assert indexed(root, out).good == 6 and len(seen) == 14
    assert len(list(out.glob("part-*"))) == 3 and len(source.open(tmp_path / "cache")) == 6


def test_a_damaged_index_is_refused_and_made_anew(tmp_path):
    root, out = write_shards(tmp_path / "in"), tmp_path / "index"
    first = indexed(root, out)
    whole, path = contents(out), part_path(out, "00001.tar")
    for damage in (lambda data: data[:-1], lambda data: data[:-1] + b"?", lambda data: b"", lambda data: b"\xff" * 99):
        path.write_bytes(damage(path.read_bytes()))
        with pytest.raises(DataError, match=r"is damaged.*run `pixelspace prepare` again"):
            Shards(str(out)).open(tmp_path / "cache")
        assert indexed(root, out).manifest == first.manifest and contents(out) == whole
    path.unlink()
    with pytest.raises(DataError, match="cannot be read"):
        Shards(str(out)).open(tmp_path / "cache")
    assert indexed(root, out).good == 12


def test_any_number_of_processes_and_programs_writes_the_same_index(tmp_path):
    root = write_shards(tmp_path / "in", 5)
    indexed(root, tmp_path / "alone")
    indexed(root, tmp_path / "two", workers=2)
    files, what = open_files(str(root), (".tar",), None), Indexed(str(root), None)
    shared = [build_index(files, what, tmp_path / "shared", rank=r, world=3, progress=False) for r in (2, 0, 1)]
    assert shared[:2] == [None, None] and shared[2] is not None and shared[2].good == 20
    assert contents(tmp_path / "alone") == contents(tmp_path / "two") == contents(tmp_path / "shared")


def test_an_index_folder_is_not_mixed_with_others(tmp_path):
    root, out = write_shards(tmp_path / "in"), tmp_path / "index"
    indexed(root, out)
    with pytest.raises(UserError, match="was begun with other settings: text_key: None -> 'caption'"):
        indexed(root, out, "caption")
    with pytest.raises(UserError, match="indexed with text_key None, not 'caption'"):
        Shards(str(out), text_key="caption").open(tmp_path / "cache")
    with pytest.raises(UserError, match="holds something else"):
        indexed(root, root)


def test_the_fingerprint_is_of_what_is_trained_on(tmp_path):
    root = write_shards(tmp_path / "in")
    first = Shards(str(root)).open().fingerprint
    os.utime(root / "00000.tar")
    write_tar(root / "bad.tar", [("x.png", b"")])
    assert Shards(str(root)).open().fingerprint == first
    root.rename(tmp_path / "moved")
    assert Shards(str(tmp_path / "moved")).open().fingerprint == first
    found = {first}
    for change in ([("a.png", png(1))], [("a.png", png(2))], [("a.png", png(2)), ("a.txt", b"t")], [("b.png", png(2))]):
        write_tar(tmp_path / "moved" / "new.tar", change)
        found.add(Shards(str(tmp_path / "moved")).open().fingerprint)
    assert len(found) == 5


@pytest.mark.parametrize("deed", ["os.kill(os.getpid(), 9)", "time.sleep(99)"])
def test_an_image_that_ends_its_decoder_costs_only_itself(tmp_path, deed):
    root = write_shards(tmp_path / "in", 3)
    write_tar(root / "00001.tar", [*sample(4), ("killer.png", b"kill"), *sample(5), ("more.png", b"kill"), *sample(6)])
    script = tmp_path / "script.py"  # the processes that read import it, too
    script.write_text(
        f"""
import os, sys, time
from pathlib import Path
from tqdm import tqdm
from pixelspace.data import shard_index
from pixelspace.data.remote import open_files
real = shard_index.examined
def examined(offset, data):
    if data == b"kill":
        {deed}
    return real(offset, data)
shard_index.examined = examined
if __name__ == "__main__":
    files, out = open_files(sys.argv[1], (".tar",), None), Path(sys.argv[2])
    out.mkdir()
    shard_index._index_all(list(files.files), None, out, 2, tqdm(disable=True), seconds=0.5)
"""
    )
    subprocess.run([sys.executable, script, root, tmp_path / "index"], timeout=60, check=True)
    bad = PartFile(part_path(tmp_path / "index", "00001.tar")).bad
    assert bad == [(key, f"{key}.png: its decoder crashed or took too long") for key in ("killer", "more")]
    assert [PartFile(part_path(tmp_path / "index", f"{i:05d}.tar")).part.good for i in range(3)] == [4, 3, 4]
    assert sorted(path.suffix for path in (tmp_path / "index").iterdir()) == [".safetensors"] * 3


def children(pid: int) -> set[int]:
    """The processes that descend from one, while it lives."""
    found = {pid}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) in found:
            found.add(int(path.parent.name))
    return found - {pid}


@pytest.fixture(scope="module")
def many(tmp_path_factory) -> Path:
    """30 shards of 60 samples, and an index of them beside."""
    folder, image = tmp_path_factory.mktemp("many"), png(0, 64, 64)
    for shard in range(30):
        write_tar(folder / "in" / f"{shard}.tar", [(f"{i}.png", image) for i in range(60)], tarfile.USTAR_FORMAT)
    indexed(folder / "in", folder / "index", workers=2)
    return folder


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGINT])
def test_indexing_killed_goes_on_where_it_was_and_leaves_no_process(many, tmp_path, signum):
    root = many / "in"
    heard = "signal.signal(signal.SIGINT, signal.default_int_handler)"  # background jobs of a shell ignore it
    program = f"import runpy, signal; {heard}; runpy.run_module('pixelspace', run_name='__main__')"
    command = [sys.executable, "-c", program, "prepare", str(root), "--out", "index", "--workers", "2"]
    run = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while len(list((tmp_path / "index").glob("part-*"))) < 3:
        assert run.poll() is None
        time.sleep(0.002)
    running = children(run.pid)
    run.send_signal(signum)
    run.wait(timeout=20)
    parts = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "index").glob("part-*")}
    assert 3 <= len(parts) < 30 and not (tmp_path / "index" / "shards.json").exists()
    end = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() for pid in running):
        assert time.monotonic() < end, "a process was left"
        time.sleep(0.05)
    index = indexed(root, tmp_path / "index")
    assert index.good == 1800
    assert all((tmp_path / "index" / name).stat().st_mtime_ns == at for name, at in parts.items())
    assert contents(tmp_path / "index") == contents(many / "index")


# Elsewhere


def test_shards_elsewhere_are_samples_as_those_on_disk(tmp_path):
    fsspec = pytest.importorskip("fsspec")
    here = Shards(str(write_shards(tmp_path / "in"))).open(tmp_path / "cache")
    memory = fsspec.filesystem("memory")
    memory.put(str(tmp_path / "in") + "/", "/shards", recursive=True)
    try:
        source = Shards("memory://shards/{00000..00002}.tar", cache_gib=25 * 1024 / 2**30)
        there = source.open(tmp_path / "cache")
        assert there.fingerprint == here.fingerprint and there.keys().tolist() == here.keys().tolist()
        for _ in range(2):
            for i in (0, 5, 11, 1, 6):
                assert torch.equal(there[i].image, here[i].image) and there.texts(i) == here.texts(i)
        memory.pipe_file("/shards/00001.tar", b"other")
        with pytest.raises(DataError, match=r"00001.tar: changed since it was indexed"):
            source.open(tmp_path / "cache")
        memory.rm("/shards/00001.tar")
        with pytest.raises(DataError, match=r"00001.tar: cannot be fetched: not found"):
            source.open(tmp_path / "cache")
    finally:
        memory.store.clear()


# Kinds of data


def test_what_lies_at_a_path_is_recognised(tmp_path):
    root = write_shards(tmp_path / "in")
    indexed(root, tmp_path / "index")
    (tmp_path / "images").mkdir()
    for path in (root, tmp_path / "index", root / "00000.tar", f"{root}/{{00000..00001}}.tar", "s3://b/{0..9}.tar"):
        assert source_of(str(path)) == Shards(str(path))
    assert source_of("https://host/folder") == Shards("https://host/folder")
    assert source_of(str(tmp_path / "images")) == Folder(str(tmp_path / "images"))


@pytest.mark.parametrize("wrong", [{"max_bad_share": 1.0}, {"cache_gib": 0.0}, {"max_bad_share": -0.1}])
def test_senseless_settings_are_refused(wrong):
    with pytest.raises(ValueError, match="Shards: "):
        Shards("a", **wrong)
