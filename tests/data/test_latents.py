"""Latents on disk: the same whoever writes them and however often they are interrupted, and never read damaged."""

import errno
import json
import multiprocessing
import os
import pickle
import shutil
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from pixelspace.config import from_data, to_data
from pixelspace.data.codec import Codec, Pixels
from pixelspace.data.folder import Folder
from pixelspace.data.latents import (
    BEGUN,
    MANIFEST,
    LatentDataset,
    Latents,
    encode_images,
    is_latents,
    shard_path,
)
from pixelspace.data.loader import Data, Positions, batches, to_model_space
from pixelspace.data.order import Shuffled
from pixelspace.data.preparation import Preparation
from pixelspace.data.transforms import Cut, fit
from pixelspace.errors import DataError, NumericalError, ResourceError, UserError
from pixelspace.interop.kl_vae import open_vae
from pixelspace.random import Rng

pytest.importorskip("diffusers")
CPU = torch.device("cpu")
PLAN = {"size": 16, "batch": 3, "shard": 4, "flip": True, "device": CPU}


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """Eleven images of two classes, some with captions that JSON and terminals do not like."""
    root, rng, rows = tmp_path_factory.mktemp("images"), np.random.default_rng(0), []
    for i in range(11):
        name = f"{'cat' if i < 5 else 'dog'}/{i}.png"
        (root / name).parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (20 + i, 37, 3), np.uint8)).save(root / name)
        rows.append({"file_name": name, "label": name[:3], "text": f"Katze № {i} \"\\' 🐈\n" * (i % 3)})
    (root / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return root


@pytest.fixture(scope="module")
def vae(golden, tmp_path_factory) -> Codec:
    path = tmp_path_factory.mktemp("vae") / "autoencoder_kl.pth"
    torch.save({name[3:]: tensor for name, tensor in golden("maskdit/vae_tiny").items() if name[:3] == "sd."}, path)
    return open_vae(path)


@pytest.fixture(scope="module")
def whole(images, vae, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("latents")
    assert encode_images(Folder(str(images)).open(), out, vae, **PLAN)
    return out


@pytest.fixture
def copy(whole, tmp_path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "copy"))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# What is stored


def test_a_sample_is_what_the_codec_stores_of_the_image(images, vae, whole):
    pictures, latents = Folder(str(images)).open(), Latents(str(whole)).open()
    assert isinstance(latents, LatentDataset) and len(latents) == 11 and latents.classes == ("cat", "dog")
    for i in range(11):
        image = pictures[i].image
        for flip in (False, True):
            found = latents.cut(i, Cut((16, 16), flip=flip))
            stored = vae.store(fit(image, Cut((16, 16), "adm", flip=flip))[None])[0]
            torch.testing.assert_close(found.image, stored, rtol=1e-5, atol=1e-5)
            assert (found.label, found.texts) == (pictures[i].label, pictures[i].texts)
        assert latents.name(i) == pictures.name(i) and torch.equal(
            latents[i].image, latents.cut(i, Cut((16, 16))).image
        )
    assert not torch.equal(latents[0].image, latents.cut(0, Cut((16, 16), flip=True)).image)


def test_preparing_latents_reads_all_of_them_once(copy, tmp_path):
    said = list[str]()
    Latents(str(copy)).prepare(tmp_path / "cache", Preparation(said.append))
    assert said == ["a folder of latents: 11 samples, 2 classes", "captions: 7 samples have one, 4 none"]
    with pytest.raises(UserError, match="--workers is not for a folder of latents"):
        Latents(str(copy)).prepare(tmp_path / "cache", Preparation(said.append, workers=2))
    path = shard_path(copy, 1)
    begin = path.read_bytes().index(b"cat/4.png")
    with path.open("r+b") as file:
        file.seek(begin)
        file.write(b"d")
    with pytest.raises(DataError, match="sample 4 is damaged"):
        Latents(str(copy)).prepare(tmp_path / "cache", Preparation(said.append))
    assert len(said) == 2


def test_only_images_are_encoded(whole, vae, tmp_path):
    with pytest.raises(UserError, match="LatentDataset: its samples are no images"):
        encode_images(Latents(str(whole)).open(), tmp_path / "out", vae, **PLAN)
    assert not (tmp_path / "out").exists()


def test_shards_are_plain_safetensors(whole):
    tensors = load_file(shard_path(whole, 2))
    assert tensors["moments"].shape == tensors["mirrored"].shape == (3, 8, 8, 8)
    rows = np.split(tensors["rows"].numpy(), tensors["ends"][:-1].numpy())
    assert [json.loads(bytes(row))[:2] for row in rows] == [[1, "dog/7.png"], [1, "dog/8.png"], [1, "dog/9.png"]]
    assert sorted(contents(whole)) == sorted([BEGUN, MANIFEST, *(shard_path(whole, i).name for i in range(3))])


def test_half_precision_takes_half_the_bytes(images, vae, whole, tmp_path):
    half = encode_images(Folder(str(images)).open(), tmp_path / "half", vae, **{**PLAN, "half": True})
    full = Latents(str(whole)).open()
    assert half and half[0].image.dtype == torch.float32
    torch.testing.assert_close(half[3].image, full[3].image, rtol=1e-3, atol=1e-3)
    assert full.bytes - half.bytes == 11 * 2 * 8 * 8 * 8 * 2 and full.fingerprint != half.fingerprint


def test_the_number_of_workers_or_the_batch_changes_nothing_but_rounding(images, vae, whole, tmp_path):
    pictures = Folder(str(images)).open()
    encode_images(pictures, tmp_path / "workers", vae, **PLAN, workers=1)
    assert contents(tmp_path / "workers") == contents(whole)
    other = encode_images(pictures, tmp_path / "batch", vae, **{**PLAN, "batch": 4, "flip": False})
    assert other
    torch.testing.assert_close(other[7].image, Latents(str(whole)).open()[7].image, rtol=1e-5, atol=1e-5)


# Stopped and shared out


@pytest.mark.parametrize("missing", [[0], [1], [2], [0, 1, 2], [MANIFEST], [1, MANIFEST]], ids=str)
def test_encoding_goes_on_to_the_same_files(images, vae, whole, copy, missing):
    for one in missing:
        (copy / one if isinstance(one, str) else shard_path(copy, one)).unlink()
    (copy / ".shard-00001.safetensors.0123.part").write_bytes(b"half a shard")
    before = {name: (copy / name).stat().st_ino for name in contents(copy) if name.startswith("shard")}
    assert encode_images(Folder(str(images)).open(), copy, vae, **PLAN)
    kept = {name: inode for name, inode in before.items() if (copy / name).stat().st_ino == inode}
    assert kept == before, "a whole shard was written again"
    (copy / ".shard-00001.safetensors.0123.part").unlink(missing_ok=True)
    assert contents(copy) == contents(whole)


def test_a_draft_that_a_killed_writer_left_is_swept(images, vae, copy):
    shard_path(copy, 1).unlink()
    draft = copy / ".shard-00001.safetensors.0123.part"
    draft.write_bytes(b"half a shard")
    encode_images(Folder(str(images)).open(), copy, vae, **PLAN)
    assert not draft.exists()


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_two_ranks_write_what_one_writes(images, vae, whole, tmp_path, order):
    pictures = Folder(str(images)).open()
    first, second = (encode_images(pictures, tmp_path / "out", vae, **PLAN, rank=rank, world=2) for rank in order)
    assert first is None and second and second.fingerprint == Latents(str(whole)).open().fingerprint
    assert contents(tmp_path / "out") == contents(whole)


def test_encoding_killed_at_any_call_goes_on_to_the_same_files(images, vae, tmp_path):
    program = Path(__file__).with_name("latents_killed.py")
    command = [sys.executable, program, images, vae.vae, tmp_path]
    run = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout) >= 20


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"size": 32}, r"size: \[16, 16\] -> \[32, 32\]"),
        ({"flip": False}, "flip: True -> False"),
        ({"half": True}, "half: False -> True"),
        ({"shard": 5}, "shard: 4 -> 5"),
    ],
    ids=str,
)
def test_a_folder_begun_with_other_settings_is_refused(images, vae, copy, change, words):
    with pytest.raises(UserError, match=rf"copy: was begun with other settings: .*{words}.*; set them back or"):
        encode_images(Folder(str(images)).open(), copy, vae, **{**PLAN, **change})


def test_a_folder_begun_with_another_vae_or_other_images_is_refused(images, vae, copy, tmp_path):
    with pytest.raises(UserError, match=r"begun with other settings: codec: 'KLVAE sha256=.* -> 'KLVAE sha256="):
        encode_images(Folder(str(images)).open(), copy, replace(vae, scale=1.0), **PLAN)
    fewer = shutil.copytree(images, tmp_path / "fewer")
    (fewer / "metadata.jsonl").unlink()
    with pytest.raises(UserError, match="begun with other settings: source: "):
        encode_images(Folder(str(fewer)).open(), copy, vae, **PLAN)


def test_a_folder_that_holds_something_else_is_left_alone(images, vae, tmp_path):
    pictures = Folder(str(images)).open()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match=r"full: holds something else \('thesis.tex'\); give a new or empty folder"):
        encode_images(pictures, tmp_path / "full", vae, **PLAN)
    with pytest.raises(ResourceError, match=r"thesis.tex: cannot be written"):
        encode_images(pictures, tmp_path / "full" / "thesis.tex", vae, **PLAN)
    assert contents(tmp_path / "full") == {"thesis.tex": b"years of work"}


@pytest.mark.parametrize("change", [{"size": 15}, {"size": 0}, {"batch": 0}, {"shard": 0}, {"workers": -1}], ids=str)
def test_numbers_out_of_range_are_refused(images, vae, tmp_path, change):
    with pytest.raises(UserError, match=r"at least|multiple of 2"):
        encode_images(Folder(str(images)).open(), tmp_path / "out", vae, **{**PLAN, **change})
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_cannot_be_read_any_more_is_named(images, vae, tmp_path, workers):
    root = shutil.copytree(images, tmp_path / "images")
    pictures = Folder(str(root)).open()
    (root / "dog" / "6.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"^dog/6.png: "):
        encode_images(pictures, tmp_path / "out", vae, **PLAN, workers=workers)
    assert shard_path(tmp_path / "out", 0).exists() and not (tmp_path / "out" / MANIFEST).exists()


@pytest.mark.parametrize("call", ["fsync", "rename"])
def test_a_full_disk_is_named_and_encoding_goes_on_when_there_is_room(images, vae, whole, tmp_path, monkeypatch, call):
    real, calls = getattr(os, call), 0

    def full(*given):
        nonlocal calls
        calls += 1
        if calls > 4:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(*given)

    monkeypatch.setattr(os, call, full)
    out, pictures = tmp_path / "out", Folder(str(images)).open()
    with pytest.raises(ResourceError, match=r"out/\S+: cannot be written .*No space left on device"):
        encode_images(pictures, out, vae, **PLAN)
    assert not (out / MANIFEST).exists() and not list(out.glob("*.part"))
    monkeypatch.setattr(os, call, real)
    assert encode_images(pictures, out, vae, **PLAN) and contents(out) == contents(whole)


class Overflowing(Pixels):
    def store(self, images):
        return images.float() * 1000


def test_latents_that_are_not_finite_are_refused(images, tmp_path):
    with pytest.raises(NumericalError, match=r"^cat/0.png: its latents are not finite as float16; leave out --half"):
        encode_images(Folder(str(images)).open(), tmp_path / "out", Overflowing(), **{**PLAN, "half": True})


# Bad folders


def test_absent_and_unfinished_latents_are_named(copy, tmp_path):
    with pytest.raises(DataError, match="nowhere: holds no latents"):
        Latents(str(tmp_path / "nowhere")).open()
    (copy / MANIFEST).unlink()
    shard_path(copy, 1).unlink()
    assert is_latents(copy) and not is_latents(tmp_path)
    with pytest.raises(DataError, match=r"copy: 2 of 3 shards are there .* run the same `pixelspace encode` again"):
        Latents(str(copy)).open()


def test_missing_and_truncated_shards_are_named_and_mended(images, vae, whole, copy):
    path = shard_path(copy, 1)
    data = path.read_bytes()
    for wrong, words in ((data[:-1], "cut short"), (b"", "cut short"), (data + b"\0", "too long"), (None, "missing")):
        path.unlink(missing_ok=True)
        if wrong is not None:
            path.write_bytes(wrong)
        with pytest.raises(DataError, match=rf"shard-00001.safetensors: {words}.*pixelspace encode"):
            Latents(str(copy)).open()
        assert encode_images(Folder(str(images)).open(), copy, vae, **PLAN)
        assert contents(copy) == contents(whole)


def test_no_flipped_bit_of_a_shard_is_trained_on(copy):
    dataset, path = Latents(str(copy)).open(), shard_path(copy, 1)
    good = [dataset.cut(i, Cut((16, 16), flip=flip)) for i in range(4, 8) for flip in (False, True)]
    data = path.read_bytes()
    for bit in [*range(0, 8 * 700, 37), *range(8 * 700, 8 * len(data), 8 * 97 + 1)]:
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        path.write_bytes(changed)
        damaged = pickle.loads(pickle.dumps(dataset))  # as in a new process
        for k, (i, flip) in enumerate((i, flip) for i in range(4, 8) for flip in (False, True)):
            try:
                found = damaged.cut(i, Cut((16, 16), flip=flip))
            except DataError as error:
                assert "shard-00001.safetensors" in str(error) and "pixelspace encode" in str(error)
                damaged.name(i)
            else:
                assert torch.equal(found.image, good[k].image) and found[1:] == good[k][1:]


def test_every_flipped_bit_of_the_descriptions_is_found(copy):
    path = copy / MANIFEST
    data = path.read_bytes()
    for bit in range(0, 8 * len(data), 13):
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        path.write_bytes(changed)
        with pytest.raises(DataError, match=MANIFEST):
            Latents(str(copy)).open()


def test_a_shard_of_other_latents_is_refused(copy):
    zero, one = shard_path(copy, 0), shard_path(copy, 1)
    dataset = Latents(str(copy)).open()
    zero_bytes, one_bytes = zero.read_bytes(), one.read_bytes()
    zero.write_bytes(one_bytes)
    one.write_bytes(zero_bytes)
    with pytest.raises(DataError, match=r"shard-00000.safetensors: is damaged or of another encoding"):
        dataset[0]


def test_a_file_cut_short_while_it_is_read_is_named(copy):
    dataset = Latents(str(copy)).open()
    assert dataset[4].label == 0
    path = shard_path(copy, 1)
    os.truncate(path, 900)
    with pytest.raises(DataError, match=r"shard-00001.safetensors: sample 4 is damaged"):
        dataset[4]
    path.unlink()
    with pytest.raises(DataError, match=r"shard-00001.safetensors: cannot be read: No such file"):
        dataset[4]
    assert dataset.name(4) == "sample 4"


def test_latents_of_a_newer_format_ask_for_a_newer_pixelspace(copy):
    data = json.loads((copy / MANIFEST).read_text())
    (copy / MANIFEST).write_text(json.dumps({**data, "format": 3}))
    with pytest.raises(DataError, match="format 3; this pixelspace reads format 2: install a newer one"):
        Latents(str(copy)).open()
    (copy / MANIFEST).write_bytes((copy / BEGUN).read_bytes())
    with pytest.raises(DataError, match="expected Manifest, found Encoding"):
        Latents(str(copy)).open()


# Training on them


def test_a_recipe_of_another_size_codec_or_with_flips_is_refused(images, vae, whole, tmp_path):
    dataset = Latents(str(whole)).open()
    dataset.check((16, 16), True, vae)
    with pytest.raises(UserError, match=r"latents of 16x16 images, and the stage's size is 32x24; encode with --size"):
        dataset.check((32, 24), True, vae)
    with pytest.raises(UserError, match=r"latents of another codec: made with KLVAE .*; the stage's is Pixels"):
        dataset.check((16, 16), True, Pixels())
    with pytest.raises(UserError, match=r"of another codec: .*scale=0.18215; the stage's is .*scale=1.0"):
        dataset.check((16, 16), True, replace(vae, scale=1.0))
    plain = encode_images(Folder(str(images)).open(), tmp_path / "plain", vae, **{**PLAN, "flip": False})
    assert plain
    plain.check((16, 16), False, vae)
    with pytest.raises(UserError, match=r"no mirrored copies; encode with --flip, or set stages.N.data.flip=false"):
        plain.check((16, 16), True, vae)


@pytest.mark.parametrize("method", ["spawn"])
def test_latents_can_be_sent_to_a_worker(whole, method):
    dataset = Latents(str(whole)).open()
    expected = dataset[10]
    assert len(pickle.dumps(dataset)) < 4096 and from_data(to_data(Latents("x")), {"Latents": Latents}) == Latents("x")
    with ProcessPoolExecutor(1, multiprocessing.get_context(method)) as pool:
        assert pool.submit(dataset.name, 10).result() == dataset.name(10)
        assert torch.equal(pool.submit(dataset.__getitem__, 10).result().image, expected.image)


def test_batches_are_sampled_afresh_by_position_and_half_are_mirrored(vae, whole):
    dataset, rng, data = Latents(str(whole)).open(), Rng(3), Data(Latents(str(whole)))
    order = Shuffled(np.arange(len(dataset)), rng)
    stream = batches(Positions(dataset, order, data, (16, 16), rng), 0, 11, CPU)
    first, second = next(stream), next(stream)
    stream.close()
    assert first.images.shape == (11, 8, 8, 8) and not first.bad
    x = {i: to_model_space(raw, data, vae, rng, CPU).x for i, raw in enumerate((first, second))}
    assert x[0].shape == (11, 4, 8, 8) and sorted(first.ids) == sorted(second.ids)
    assert torch.equal(x[0], to_model_space(first, data, vae, rng, CPU).x)
    same = {int(i): row for i, row in zip(first.ids, x[0], strict=True)}
    assert not any(torch.equal(same[int(i)], row) for i, row in zip(second.ids, x[1], strict=True))
    plain = [torch.equal(row, dataset[int(i)].image) for i, row in zip(first.ids, first.images, strict=True)]
    assert 0 < sum(plain) < 11


def test_a_damaged_sample_is_replaced_and_reported(copy):
    dataset = Latents(str(copy)).open()
    begin = dataset._table(1).begins["moments"]
    with shard_path(copy, 1).open("r+b") as file:
        file.seek(begin + 100)
        file.write(b"\xff\xff")
    data, rng = Data(Latents(str(copy)), flip=False), Rng(0)
    stream = batches(Positions(dataset, Shuffled(np.arange(11), rng), data, (16, 16), rng), 0, 11, CPU)
    (name, reason), *_ = next(stream).bad
    stream.close()
    assert name == "sample 4" and "shard-00001.safetensors: sample 4 is damaged" in reason
