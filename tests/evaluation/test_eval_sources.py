import io
import pickle
import tarfile
import zipfile
import zlib

import numpy as np
import pytest
import torch

from pixelspace.data.transforms import Cut, fit
from pixelspace.errors import DataError, UserError
from pixelspace.evaluation.sources import open_images
from tests.evaluation.image_sets import encoded, named, pictures, to_folder, to_tar, to_zip
from tests.mutants import mutants

PICTURES = pictures()
FILES = named(PICTURES)
ORDER = [PICTURES[i] for i in (0, 2, 4, 1, 3)]  # of the names: a/000, a/002, a/004, b/001, b/003
PIXELS = torch.from_numpy(np.stack(ORDER)).permute(0, 3, 1, 2)


def made(kind, folder, files):
    if kind == "folder":
        return to_folder(folder / "set", files)
    if kind == "tar":
        return to_tar(folder / "set.tar", files)
    return to_zip(folder / "set.zip", files, zipfile.ZIP_STORED if kind == "stored" else zipfile.ZIP_DEFLATED)


KINDS = ("folder", "deflated", "stored", "tar")


@pytest.mark.parametrize("kind", KINDS)
def test_images_come_in_order_of_name_and_bit_for_bit(tmp_path, kind):
    images = open_images(made(kind, tmp_path, FILES), cache=None)
    assert len(images) == 5 and images.shape == (3, 6, 8) and images.notes == ()
    assert [images.name(i) for i in range(5)] == sorted(FILES)
    assert torch.equal(images.read(range(5)), PIXELS) and images.read(range(5)).is_contiguous()
    assert torch.equal(images.read(range(3, 5)), PIXELS[3:])
    assert images.read(range(2, 2)).shape == (0, 3, 6, 8)
    again = pickle.loads(pickle.dumps(images))
    assert torch.equal(again.read(range(1)), PIXELS[:1]) and again.fingerprint == images.fingerprint


@pytest.mark.parametrize("kind", KINDS)
def test_the_sheet_that_sampling_writes_is_no_sample_and_that_is_said(tmp_path, kind):
    sheet = {"grid.png": encoded(np.zeros((40, 40, 3), np.uint8))}
    images = open_images(made(kind, tmp_path, FILES | sheet), cache=None)
    assert torch.equal(images.read(range(5)), PIXELS) and len(images) == 5
    assert images.notes == ("grid.png, a sheet of the others, is left out",)
    with pytest.raises(DataError, match=r"no images but grid\.png"):
        (tmp_path / "alone").mkdir()
        open_images(made(kind, tmp_path / "alone", sheet), cache=None)


def test_the_fingerprint_is_that_of_names_and_contents(tmp_path):
    def of(name, files, **settings):
        (tmp_path / name).mkdir()
        return {open_images(made(k, tmp_path / name, files), cache=None, **settings).fingerprint for k in KINDS}

    ours = of("same", FILES)
    assert len(ours) == 1
    renamed = {name.replace("004", "005"): data for name, data in FILES.items()}
    turned = dict(zip(FILES, [*list(FILES.values())[1:], FILES["a/000.png"]], strict=True))
    cut = of("cut", FILES, size=(4, 4), crop="center")
    assert not (ours & of("renamed", renamed)) and not (ours & of("turned", turned)) and not (ours & cut)


@pytest.mark.parametrize("kind", KINDS)
def test_a_second_opening_from_the_cache_is_the_same(tmp_path, kind):
    path = made(kind, tmp_path, FILES)
    first = open_images(path, cache=tmp_path / "cache")
    second = open_images(path, cache=tmp_path / "cache")
    assert list((tmp_path / "cache").rglob("*.json"))
    assert first.fingerprint == second.fingerprint and torch.equal(second.read(range(5)), PIXELS)


@pytest.mark.parametrize("kind", ["folder", "deflated", "tar"])
def test_an_image_that_changed_since_is_refused(tmp_path, kind):
    path = made(kind, tmp_path, FILES)
    images = open_images(path, cache=None)
    other = {**FILES, "b/001.png": FILES["a/000.png"]}
    made(kind, tmp_path, other)
    with pytest.raises(DataError, match=r"set.*: [ab]/00\d.png: (changed since the images|damaged)"):
        images.read(range(5))


@pytest.mark.parametrize("kind", KINDS)
def test_mixed_sizes_are_refused_by_two_names(tmp_path, kind):
    path = made(kind, tmp_path, FILES | {"b/004.png": encoded(pictures(1, 9, 8)[0])})
    said = r"a/000.png is 8x6, b/004.png is 8x9 \(width x height\); give a size and a crop"
    with pytest.raises(DataError, match=said):
        open_images(path, cache=None)
    images = open_images(path, cache=None, size=(4, 4), crop="center")
    expected = torch.stack([fit(image, Cut((4, 4))) for image in PIXELS])
    assert len(images) == 6 and torch.equal(images.read(range(5)), expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("data", "said"),
    [
        (FILES["a/000.png"][:-30], "cut short|damaged"),
        (b"", "zero bytes"),
        (b"<html>", "an HTML page"),
        (encoded(np.zeros((21, 1, 3), np.uint8)), "1x21 has a side over 20 times"),
    ],
)
def test_one_bad_image_is_refused_by_name(tmp_path, kind, data, said):
    with pytest.raises(DataError, match=f"set.*: 1 of 6 image files cannot be read: b/009.png: .*({said})") as error:
        open_images(made(kind, tmp_path, FILES | {"b/009.png": data}), cache=None)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_reader_must_know_is_noted(tmp_path, kind):
    jpeg, webp = encoded(PICTURES[0], "jpeg"), encoded(PICTURES[0], "webp")
    more = {"c/1.png": jpeg, "c/2.webp": webp, "c/3.webp": encoded(PICTURES[0], "webp", lossless=True)}
    images = open_images(made(kind, tmp_path, FILES | more | {"c/4.png": FILES["b/003.png"]}), cache=None)
    lossy, twice = images.notes
    assert lossy.startswith("2 of 9 files are JPEG or lossy WebP (c/1.png): ")
    assert twice == "1 of 9 are the same as another, byte for byte (c/4.png as b/003.png)"


@pytest.mark.parametrize("kind", KINDS)
def test_images_that_are_enlarged_are_noted(tmp_path, kind):
    images = open_images(made(kind, tmp_path, FILES), cache=None, size=(7, 7), crop="adm")
    assert images.notes == ("5 of 5 files are smaller than 7x7 and are enlarged",)


def clips(n=2, frames=11):
    """Frames whose names are not padded, by name; (n, 3, T, H, W)."""
    pixels = pictures(n * frames, 4, 4, seed=1).reshape(n, frames, 4, 4, 3)
    files = {f"clip{c}/f{t}.png": encoded(pixels[c, t]) for c in range(n) for t in range(frames)}
    return files, torch.from_numpy(pixels).permute(0, 4, 1, 2, 3)


@pytest.mark.parametrize("kind", KINDS)
def test_folders_of_frames_are_clips_in_order_of_time(tmp_path, kind):
    files, pixels = clips()
    images = open_images(made(kind, tmp_path, files), cache=None, clips=True)
    assert len(images) == 2 and images.shape == (3, 11, 4, 4) and images.name(1) == "clip1"
    assert torch.equal(images.read(range(2)), pixels)


def test_clips_of_two_lengths_or_without_a_folder_are_refused(tmp_path):
    files, _ = clips()
    short = {name: data for name, data in files.items() if name != "clip1/f3.png"}
    with pytest.raises(DataError, match=r"clips of one length are compared: clip0 has 11 frames, clip1 has 10"):
        open_images(to_zip(tmp_path / "short.zip", short), cache=None, clips=True)
    with pytest.raises(DataError, match=r"top.png: is in no folder; expected a folder of frames a clip"):
        open_images(to_zip(tmp_path / "t.zip", files | {"top.png": files["clip0/f0.png"]}), cache=None, clips=True)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"size": (4, 4)}, "give both, the crop 'center' or 'adm', or neither"),
        ({"crop": "adm"}, "give both"),
        ({"size": (4, 4), "crop": "random"}, "give both"),
        ({"size": (0, 4), "crop": "adm"}, "expected positive height and width"),
    ],
)
def test_a_size_needs_a_crop(tmp_path, settings, said):
    with pytest.raises(UserError, match=said):
        open_images(tmp_path, cache=None, **settings)


def test_what_holds_no_images_is_refused(tmp_path):
    with pytest.raises(DataError, match="nowhere: no such file or folder"):
        open_images(tmp_path / "nowhere", cache=None)
    with pytest.raises(DataError, match=r"no image files .*found nothing"):
        open_images(tmp_path, cache=None)
    hidden = to_zip(tmp_path / "h.zip", {"__MACOSX/._a.png": b"x", ".a.png": b"x", "read.me": b"x"})
    with pytest.raises(DataError, match=r"h.zip: no image files \(.jpg .* in it"):
        open_images(hidden, cache=None)
    (tmp_path / "x.tar.gz").write_bytes(b"x")
    with pytest.raises(UserError, match=r"expected a folder, or a .zip, .tar, .npz or .npy file, found '.gz'"):
        open_images(tmp_path / "x.tar.gz", cache=None)


def test_members_that_lead_out_of_the_archive_lead_nowhere(tmp_path):
    (tmp_path / "in").mkdir()
    for make in (to_zip, to_tar):
        path = make(tmp_path / "in" / f"x.{make.__name__[3:]}", {"../../out.png": FILES["a/000.png"]})
        assert torch.equal(open_images(path, cache=None).read(range(1)), PIXELS[:1])
    assert {file.name for file in tmp_path.rglob("*")} == {"in", "x.zip", "x.tar"}


def test_two_members_of_one_name_are_refused(tmp_path):
    with tarfile.open(tmp_path / "t.tar", "w") as archive:
        for data in (b"x", b"yz"):
            info = tarfile.TarInfo("a.png")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    with pytest.raises(DataError, match=r"t.tar: a.png: stands twice in the archive"):
        open_images(tmp_path / "t.tar", cache=None)


def test_links_in_a_tar_are_refused(tmp_path):
    with tarfile.open(tmp_path / "t.tar", "w") as archive:
        info = tarfile.TarInfo("a.png")
        info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(info)
    with pytest.raises(DataError, match=r"t.tar: 1 of 1 .* a.png: a link, a sparse or a special file"):
        open_images(tmp_path / "t.tar", cache=None)


def forged(path, *, size, method=8, flags=0):
    """A zip whose member a.png says that it is of `size` and inflates to a megabyte."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    data = packer.compress(bytes(1 << 20)) + packer.flush()
    name, crc = b"a.png", zlib.crc32(bytes(1 << 20))
    fields = [n.to_bytes(w, "little") for n, w in ((20, 2), (flags, 2), (method, 2), (0, 4), (crc, 4), (len(data), 4))]
    common = b"".join(fields) + size.to_bytes(4, "little") + len(name).to_bytes(2, "little") + b"\0\0"
    local = b"PK\3\4" + common + name + data
    central = b"PK\1\2\x14\0" + common + bytes(14) + name
    counts = b"\1\0\1\0" + len(central).to_bytes(4, "little") + len(local).to_bytes(4, "little")
    path.write_bytes(local + central + b"PK\5\6\0\0\0\0" + counts + b"\0\0")
    return path


@pytest.mark.parametrize(
    ("forgery", "said"),
    [
        ({"size": 1000}, "damaged: inflates to more than the 1,000 bytes stated"),
        ({"size": 1 << 30}, "over 512 MiB"),
        ({"size": 2 << 20}, "damaged: 1,048,576 bytes, 2,097,152 stated"),
        ({"size": 1 << 20}, "not a JPEG, PNG, WebP, TIFF or BMP image"),
        ({"size": 1 << 20, "method": 12}, "compressed by method 12; stored and deflated members are read"),
        ({"size": 1 << 20, "flags": 1}, "encrypted"),
    ],
)
def test_bombs_and_forgeries_are_refused_by_name(tmp_path, forgery, said):
    with pytest.raises(DataError, match=f"x.zip: 1 of 1 image files cannot be read: a.png: {said}"):
        open_images(forged(tmp_path / "x.zip", **forgery), cache=None)


def test_a_damaged_header_within_a_tar_does_not_end_it(tmp_path):
    path = to_tar(tmp_path / "t.tar", FILES, tarfile.USTAR_FORMAT)
    data = bytearray(path.read_bytes())
    data[data.index(b"a/002.png")] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"t.tar: damaged or cut short: neither a member nor the end .* at byte"):
        open_images(path, cache=None)


@pytest.mark.parametrize("kind", ["deflated", "stored", "tar"])
def test_nothing_but_the_one_error_comes_of_damaged_archives(tmp_path, kind):
    path = made(kind, tmp_path, FILES)
    refused = 0
    for data in mutants(path.read_bytes(), 150, kind):
        path.write_bytes(data)
        try:
            images = open_images(path, cache=None)
            images.read(range(len(images)))
        except DataError as error:
            refused += 1
            assert str(error).startswith(str(path)) and "\n" not in str(error)
    assert refused >= 30  # the 30 that were cut short, at least
