import hashlib
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pixelspace.data.transforms import Cut, fit
from pixelspace.errors import DataError
from pixelspace.evaluation import npy
from pixelspace.evaluation.images import chunk_of
from pixelspace.evaluation.npy import Rows, npz_members, open_member, open_npy
from pixelspace.evaluation.sources import open_images
from tests.evaluation.image_sets import pictures
from tests.mutants import mutants

GOLDENS = Path(__file__).parents[1] / "goldens" / "metrics" / "stats_formats"
PICTURES = pictures(7)
PIXELS = torch.from_numpy(PICTURES).permute(0, 3, 1, 2)
SAVERS = {
    "stored.npz": np.savez,
    "deflated.npz": np.savez_compressed,
    "plain.npy": lambda path, array: np.save(path, array),
}


@pytest.mark.parametrize("name", SAVERS)
def test_rows_are_images_bit_for_bit(tmp_path, name):
    SAVERS[name](tmp_path / name, PICTURES)
    images = open_images(tmp_path / name, cache=tmp_path / "cache")
    assert len(images) == 7 and images.shape == (3, 6, 8) and images.name(3) == "image 3"
    assert torch.equal(images.read(range(7)), PIXELS) and torch.equal(images.read(range(2, 5)), PIXELS[2:5])
    assert images.read(range(3, 3)).shape == (0, 3, 6, 8) and images.notes == ()
    again = pickle.loads(pickle.dumps(images))
    assert torch.equal(again.read(range(6, 7)), PIXELS[6:])
    with pytest.raises(IndexError):
        images.read(range(6, 8))


def test_adms_samples_are_read():
    images = open_images(GOLDENS / "adm_samples.npz", cache=None)
    stored = np.load(GOLDENS / "adm_samples.npz")
    assert torch.equal(images.read(range(6)), torch.from_numpy(stored["arr_0"]).permute(0, 3, 1, 2))


def test_the_fingerprint_is_that_of_the_pixels(tmp_path):
    prints = set()
    for name, save in SAVERS.items():
        save(tmp_path / name, PICTURES)
        images = open_images(tmp_path / name, cache=tmp_path / "cache")
        prints.add(images.fingerprint)
        assert open_images(tmp_path / name, cache=tmp_path / "cache").fingerprint == images.fingerprint
    assert len(prints) == 1
    np.save(tmp_path / "other.npy", PICTURES.reshape(7, 8, 6, 3))
    np.save(tmp_path / "turned.npy", PICTURES[::-1])
    for name in ("other.npy", "turned.npy"):
        prints.add(open_images(tmp_path / name, cache=tmp_path / "cache").fingerprint)
    prints.add(open_images(tmp_path / "plain.npy", cache=None, size=(4, 4), crop="adm").fingerprint)
    assert len(prints) == 4


def test_a_cache_is_believed_for_the_same_file_only(tmp_path):
    path, cache = tmp_path / "a.npy", tmp_path / "cache"
    np.save(path, PICTURES)
    first = open_images(path, cache=cache).fingerprint
    (kept,) = cache.rglob("*.json")
    kept.write_text(kept.read_text().replace('"found": ["', '"found": ["0'))
    assert open_images(path, cache=cache).fingerprint == first  # damaged: found out again
    np.save(path, pictures(7, seed=1))
    assert open_images(path, cache=cache).fingerprint != first


def test_rows_are_cut_as_images_are(tmp_path):
    np.save(tmp_path / "a.npy", PICTURES)
    images = open_images(tmp_path / "a.npy", cache=None, size=(4, 3), crop="adm")
    assert images.shape == (3, 4, 3)
    assert torch.equal(images.read(range(7)), torch.stack([fit(image, Cut((4, 3), "adm")) for image in PIXELS]))


def test_rows_of_frames_are_clips(tmp_path):
    array = pictures(6).reshape(2, 3, 6, 8, 3)
    np.savez(tmp_path / "c.npz", array)
    images = open_images(tmp_path / "c.npz", cache=None, clips=True)
    assert images.shape == (3, 3, 6, 8) and images.name(1) == "clip 1"
    assert torch.equal(images.read(range(2)), torch.from_numpy(array).permute(0, 4, 1, 2, 3))
    cut = open_images(tmp_path / "c.npz", cache=None, clips=True, size=(4, 4), crop="center")
    frame = torch.from_numpy(array[1, 2]).permute(2, 0, 1)
    assert cut.shape == (3, 3, 4, 4) and torch.equal(cut.read(range(1, 2))[0, :, 2], fit(frame, Cut((4, 4))))
    np.save(tmp_path / "images.npy", PICTURES)
    with pytest.raises(DataError, match=r"images.npy: expected clips \(N, T, H, W, 3\), found images of shape"):
        open_images(tmp_path / "images.npy", cache=None, clips=True)


def test_duplicates_and_order_by_class_are_noted(tmp_path):
    np.savez(tmp_path / "a.npz", np.concatenate([PICTURES, PICTURES[:2]]), np.arange(9) // 3)
    twice, order = open_images(tmp_path / "a.npz", cache=None).notes
    assert twice == "2 of 9 are the same as another, byte for byte"
    assert order.startswith("they come class by class: an Inception Score")
    np.savez(tmp_path / "b.npz", PICTURES, np.array([1, 0, 2, 1, 0, 2, 1]))
    assert open_images(tmp_path / "b.npz", cache=None).notes == ()
    np.savez(tmp_path / "c.npz", PICTURES, np.arange(6))
    with pytest.raises(DataError, match=r"c.npz: arr_1.npy: expected a label for each of 7, found shape \(6,\)"):
        _ = open_images(tmp_path / "c.npz", cache=None).notes


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (PICTURES.astype(np.float32) / 255, r"expected uint8 from 0 to 255, found float32 \(7, 6, 8, 3\); round"),
        (PICTURES.astype(np.int64), "expected uint8 from 0 to 255, found int64"),
        (PICTURES.transpose(0, 3, 1, 2).copy(), r"expected \(N, H, W, 3\).* found uint8 \(7, 3, 6, 8\); channels come"),
        (PICTURES[..., :1], r"expected \(N, H, W, 3\), or \(N, T, H, W, 3\) for clips, found uint8 \(7, 6, 8, 1\)"),
        (PICTURES[0], r"found uint8 \(6, 8, 3\)"),
        (PICTURES[:0], r"holds no images: uint8 \(0, 6, 8, 3\)"),
        (np.asfortranarray(PICTURES), "lies in Fortran order; save it with numpy.ascontiguousarray"),
        (np.array([{}], dtype=object), r"expected plain numbers \(f2 .*found \{'descr': '\|O'"),
    ],
)
@pytest.mark.parametrize("name", SAVERS)
def test_arrays_of_something_else_are_refused(tmp_path, name, array, said):
    SAVERS[name](tmp_path / name, array)
    with pytest.raises(DataError, match=f"{name}: .*{said}") as error:
        open_images(tmp_path / name, cache=None)
    assert "\n" not in str(error.value)


def test_statistics_are_no_images():
    said = r"pytorch_fid_or_edm.npz: no arr_0 in it, found mu, sigma; statistics are given as the reference"
    with pytest.raises(DataError, match=said):
        open_images(GOLDENS / "pytorch_fid_or_edm.npz", cache=None)


def test_a_deflated_bomb_is_refused_before_it_inflates(tmp_path, monkeypatch):
    monkeypatch.setattr(npy, "_BOMB_BYTES", 1 << 16)
    np.savez_compressed(tmp_path / "b.npz", np.zeros((20, 64, 64, 3), np.uint8))
    with pytest.raises(DataError, match=r"b.npz: arr_0.npy: \d+ bytes inflate to 245,888; .* refused as a bomb"):
        open_images(tmp_path / "b.npz", cache=None)


@pytest.mark.parametrize("name", SAVERS)
def test_nothing_but_the_one_error_comes_of_damaged_arrays(tmp_path, name):
    path = tmp_path / name
    SAVERS[name](path, PICTURES)
    refused = 0
    for data in mutants(path.read_bytes(), 200, name):
        path.write_bytes(data)
        try:
            images = open_images(path, cache=None)
            assert images.read(range(len(images))).dtype == torch.uint8 and images.fingerprint
        except DataError as error:
            refused += 1
            assert str(error).startswith(str(path)) and "\n" not in str(error)
    assert refused >= 40  # the 40 that were cut short, at least


def test_a_file_that_becomes_shorter_is_named(tmp_path):
    np.save(tmp_path / "a.npy", PICTURES)
    images = open_images(tmp_path / "a.npy", cache=None)
    with (tmp_path / "a.npy").open("r+b") as file:
        file.truncate(500)
    with pytest.raises(DataError, match=r"a.npy: cut short since it was opened"):
        images.read(range(7))


DTYPES = ("<f4", ">f8", "<f2", "|u1", "|b1", ">i2", "<i8")


@settings(deadline=None, max_examples=60)
@given(
    shape=st.lists(st.integers(1, 5), min_size=0, max_size=4),
    dtype=st.sampled_from(DTYPES),
    fortran=st.booleans(),
    deflated=st.booleans(),
    seed=st.integers(0, 99),
)
def test_any_array_of_numbers_is_read_as_numpy_reads_it(tmp_path_factory, shape, dtype, fortran, deflated, seed):
    path = tmp_path_factory.mktemp("npz") / "a.npz"
    array = (np.random.default_rng(seed).normal(size=shape) * 100).astype(dtype)
    array = np.asfortranarray(array) if fortran else array
    (np.savez_compressed if deflated else np.savez)(path, a=array)
    read = open_member(path, npz_members(path)["a"])
    np.testing.assert_array_equal(read.load().numpy(), array)
    if shape and not read.fortran:
        rows = Rows(read)
        np.testing.assert_array_equal(rows[range(1, len(array))], array[1:])
        assert list(read.digests()) == [hashlib.sha256(array[i : i + 1].tobytes()).digest() for i in range(len(array))]


@pytest.mark.parametrize(
    "header",
    [
        b"{'shape': (2L, 3L), 'fortran_order': False, 'descr': '<f4'}\n",
        b"{'descr':'<f4','fortran_order':False,'shape':(2,3)}",
    ],
)
@pytest.mark.parametrize("version", [1, 2, 3])
def test_headers_by_other_writers_are_read(tmp_path, header, version):
    width = 2 if version == 1 else 4
    numbers = np.arange(6, dtype="<f4")
    head = b"\x93NUMPY" + bytes([version, 0]) + len(header).to_bytes(width, "little") + header
    (tmp_path / "a.npy").write_bytes(head + numbers.tobytes())
    assert open_npy(tmp_path / "a.npy").load().tolist() == numbers.reshape(2, 3).tolist()


@pytest.mark.parametrize(
    ("shape", "chunk"),
    [((3, 256, 256), 64), ((3, 2048, 2048), 21), ((3, 128, 512, 512), 2), ((3, 9999, 9999), 1)],
)
def test_no_more_is_read_at_a_time_than_memory_has_room_for(shape, chunk):
    assert chunk_of(shape) == chunk
