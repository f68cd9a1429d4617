"""Embeddings on disk: those of the encoder rounded to bfloat16, the same whoever writes them, never read damaged."""

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

import pytest
import torch
from safetensors.torch import load_file, save_file

from pixelspace.config import from_data, to_data
from pixelspace.errors import DataError, NumericalError, ResourceError, UserError
from pixelspace.text.bytes import Bytes
from pixelspace.text.cache import BEGUN, MANIFEST, Cached, embed_captions, is_embeddings, part_path
from pixelspace.text.encoder import Encoded
from pixelspace.text.minilm import MiniLM
from pixelspace.text.named import encoder_of
from pixelspace.text.pretrained import Pretrained

CPU = torch.device("cpu")
SAMPLES = [
    (f"a {colour} cat {'on a mat ' * (i % 7)}{i}", "two red cats") for i, colour in enumerate(["red", "blue"] * 20)
]
SAMPLES += [("",), (), ("Katze № 🐈", "Katze № 🐈")]
CAPTIONS = sorted({text for texts in SAMPLES for text in texts})


def embed(out: Path, encoder, samples=SAMPLES, **settings):
    return embed_captions(samples.__getitem__, len(samples), out, encoder, **{"device": CPU, "part": 16, **settings})


@pytest.fixture(scope="module")
def t5(models) -> Pretrained:
    return Pretrained(str(models / "t5"), 24)


@pytest.fixture(scope="module")
def whole(t5, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("embeddings")
    assert embed(out, t5).reader
    return out


@pytest.fixture
def copied(whole, tmp_path) -> Path:
    return shutil.copytree(whole, tmp_path / "copy")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def rounded(found: Encoded) -> tuple[torch.Tensor, ...]:
    return found.tokens.bfloat16().float(), found.mask, found.pooled.bfloat16().float()


@pytest.mark.parametrize("fill", [True, False])
@pytest.mark.parametrize("settings", [{}, {"precision": "fp32"}])
def test_what_is_looked_up_is_the_encoders_in_bfloat16(t5, tmp_path, fill, settings):
    encoder = replace(t5, fill=fill, **settings)
    embed(tmp_path / "out", encoder)
    direct, cached = encoder.open(CPU), Cached(encoder, str(tmp_path / "out")).open(CPU)
    assert (cached.width, cached.pooled_width, cached.identity) == (16, 16, direct.identity)
    for texts in ([""], CAPTIONS[:5], CAPTIONS[::-3], [CAPTIONS[7]] * 3, CAPTIONS):
        found, expected = cached(texts), direct(texts)
        for ours, theirs in zip((found.tokens, found.mask, found.pooled), rounded(expected), strict=True):
            assert torch.equal(ours, theirs) and ours.dtype == theirs.dtype
        assert cached.lengths(texts) == direct.lengths(texts)
    assert cached([]).tokens.shape == (0, 24 if fill else 1, 16) and cached.lengths([]) == []


def test_each_caption_is_kept_once_without_padding(t5, whole, tmp_path):
    done = embed(tmp_path, t5)
    assert done.captions == sum(map(len, SAMPLES)) and done.distinct == len(CAPTIONS) == 43 and done.reader
    lengths = t5.open(CPU).lengths(CAPTIONS)
    assert done.reader.cut == sum(n > 24 for n in lengths) > 0
    kept = sum(min(n, 24) for n in lengths)
    assert kept == sum(part.tokens for part in done.reader.manifest.parts)
    assert abs(done.reader.bytes - done.reader.manifest.plan.bytes(kept / 43)) < 3 * 1024  # three headers
    assert contents(tmp_path) == contents(whole)


@pytest.mark.parametrize("settings", [{"batch": 1}, {"batch": 7}])
def test_the_files_are_the_same_whatever_the_batch(t5, whole, tmp_path, settings):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for out, given in (("a", {}), ("b", settings)):
        embed(tmp_path / out, t5, **given)
    torch.set_num_threads(threads)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_processes_share_the_parts_out_and_what_stands_is_left(t5, whole, tmp_path):
    assert embed(tmp_path, t5, rank=1, world=2).reader is None
    assert {path.name for path in tmp_path.iterdir()} == {BEGUN, "part-00001.safetensors"}
    with pytest.raises(DataError, match=r"1 of 3 parts are there and no embeddings.json yet; run the same `pixelspace"):
        Cached(t5, str(tmp_path)).open(CPU)
    before = part_path(tmp_path, 1).stat().st_mtime_ns
    assert embed(tmp_path, t5, rank=0, world=2).reader and embed(tmp_path, t5).reader
    assert part_path(tmp_path, 1).stat().st_mtime_ns == before and contents(tmp_path) == contents(whole)


def test_no_kill_loses_or_changes_anything(tmp_path):
    root = Path(__file__).parents[2]
    run = [sys.executable, "-m", "tests.text.embeddings_killed", str(tmp_path)]
    done = subprocess.run(run, cwd=root, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(root)})
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 20


def test_samples_may_come_in_any_order_and_captions_in_any_samples(t5, whole, tmp_path):
    embed(tmp_path, t5, [(text,) for text in reversed(CAPTIONS)])
    assert contents(tmp_path) == contents(whole)


def _looked_up(reader, texts):
    return reader(texts).tokens.numpy()


def test_spawned_workers_look_up_the_same(t5, whole):
    reader = Cached(t5, str(whole)).open(CPU)
    here = _looked_up(reader, CAPTIONS)
    assert len(pickle.dumps(reader)) < 8192  # after parts were opened
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        assert (pool.submit(_looked_up, reader, CAPTIONS).result() == here).all()


def test_a_caption_that_is_not_there_is_named(t5, whole):
    reader = Cached(t5, str(whole)).open(CPU)
    for text in ("a red caT", "z" * 300, *(f"other {i}" for i in range(50))):
        with pytest.raises(
            DataError, match=rf"holds no embedding of the caption '{text[:60]}'; run `pixelspace embed`"
        ):
            reader([CAPTIONS[0], text])
    with pytest.raises(DataError, match="is not Unicode text"):
        reader(["\udc80"])


def test_embeddings_of_another_encoder_are_refused_by_name(models, t5, whole, tmp_path):
    others = (replace(t5, length=23), replace(t5, spaces="mdm"), Pretrained(str(models / "umt5"), 24), Bytes(24))
    for other in others:
        with pytest.raises(
            UserError, match=r"embeddings of Pretrained\(.*\(t5 up to 24 .*, the recipe's encoder is "
        ) as e:
            Cached(other, str(whole)).open(CPU)
        assert repr(other) in str(e.value) and str(other.identity()) in str(e.value)
    Cached(replace(t5, fill=False), str(whole)).open(CPU)


def test_embeddings_of_other_weights_in_the_same_place_are_refused(models, tmp_path):
    folder = shutil.copytree(models / "bert", tmp_path / "bert")
    encoder, out = Pretrained(str(folder), 24), tmp_path / "out"
    embed(out, encoder)
    assert Cached(Pretrained(str(models / "bert"), 24), str(out)).open(CPU)([""]).mask.any()  # a copy elsewhere
    weights = load_file(folder / "model.safetensors")
    name = next(iter(weights))
    save_file({**weights, name: weights[name] + 1}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"embeddings of .*, the recipe's encoder is .* up to 24 tokens"):
        Cached(encoder, str(out)).open(CPU)
    shutil.rmtree(folder)  # then only settings can be compared
    assert Cached(encoder, str(out)).open(CPU)([""]).mask.any()
    for other in (replace(encoder, length=23), replace(encoder, path=str(tmp_path / "elsewhere"))):
        with pytest.raises(UserError, match="not on this machine"):
            Cached(other, str(out)).open(CPU)


def test_a_folder_begun_otherwise_is_not_gone_on_with(t5, whole, copied):
    before = contents(copied)
    for encoder, samples in ((replace(t5, length=23), SAMPLES), (t5, SAMPLES[1:]), (Bytes(24), SAMPLES)):
        with pytest.raises(UserError, match=r"was begun with other settings: .*(identity|captions)"):
            embed(copied, encoder, samples)
    with pytest.raises(UserError, match="holds something else"):
        embed(Path(t5.path), t5)
    assert contents(copied) == before


def _flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


DAMAGES = {
    r"part-00001.safetensors: missing, embeddings.json lists it": lambda out: part_path(out, 1).unlink(),
    r"part-00001.safetensors: cut short: .* says ": lambda out: os.truncate(part_path(out, 1), 100),
    r"embeddings.json: is damaged": lambda out: (out / MANIFEST).write_text(
        (out / MANIFEST).read_text().replace('"count": 43', '"count": 42')
    ),
    r"embeddings.json: cannot be read": lambda out: (out / MANIFEST).write_text("{"),
    r"0 of 3 parts are there|3 of 3 parts are there": lambda out: (out / MANIFEST).unlink(),
    r"holds no embeddings: embeddings.json is missing": lambda out: shutil.rmtree(out),
    r"embeddings.json: format 2; this pixelspace reads format 1": lambda out: (out / MANIFEST).write_text(
        json.dumps({**json.loads((out / MANIFEST).read_text()), "format": 2})
    ),
}


@pytest.mark.parametrize("said", DAMAGES)
def test_a_folder_that_is_not_whole_is_refused(t5, copied, said):
    DAMAGES[said](copied)
    with pytest.raises(DataError, match=said) as error:
        Cached(t5, str(copied)).open(CPU)
    assert "\n" not in str(error.value)


def test_no_flipped_bit_is_read(t5, copied):
    """One bit in each kilobyte of a part, and in every byte of its header."""
    path = part_path(copied, 1)
    good = path.read_bytes()
    known = Cached(t5, str(copied)).open(CPU)(CAPTIONS)
    header = 8 + int.from_bytes(good[:8], "little")
    for at in [*range(0, header, 7), *range(header, len(good), 211)]:
        path.write_bytes(good)
        _flip(path, at)
        reader = Cached(t5, str(copied)).open(CPU)
        try:
            found = reader(CAPTIONS)
        except DataError as error:
            assert "part-00001.safetensors" in str(error) and "pixelspace embed" in str(error)
            continue
        assert torch.equal(found.tokens, known.tokens) and torch.equal(found.pooled, known.pooled), at
    path.write_bytes(good)


def test_a_damaged_part_is_made_anew_when_its_tables_are(t5, whole, copied):
    os.truncate(part_path(copied, 1), 1000)
    assert embed(copied, t5).reader and contents(copied) == contents(whole)


def test_what_would_take_too_much_room_is_refused_before_anything_is_written(t5, tmp_path, monkeypatch):
    out = tmp_path / "out"
    whole = embed(tmp_path / "whole", t5).reader
    assert whole
    with pytest.raises(ResourceError, match=r"43 captions need about .* GiB, and may take .* \(--max-gib\)"):
        embed(out, t5, max_bytes=int(whole.bytes * 0.8))
    free = shutil.disk_usage(tmp_path)._replace(free=int(whole.bytes * 0.8))
    with monkeypatch.context() as patched, pytest.raises(ResourceError, match=r"the disk has .* GiB left"):
        patched.setattr(shutil, "disk_usage", lambda path: free)
        embed(out, t5)
    assert not out.exists()
    assert embed(out, t5, max_bytes=whole.bytes).reader


def test_what_cannot_be_embedded_is_refused(t5, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(DataError, match="none of 2 samples has a caption"):
        embed(out, t5, [(), ()])
    with pytest.raises(DataError, match="is not Unicode text"):
        embed(out, t5, [("a\udc80",)])
    for settings in ({"batch": 0}, {"part": 0}):
        with pytest.raises(UserError, match="must be at least 1, found 0"):
            embed(out, t5, **settings)
    assert not out.exists()


def test_embeddings_that_are_not_finite_are_refused(models, tmp_path):
    folder = shutil.copytree(models / "bert", tmp_path / "bert")
    weights = load_file(folder / "model.safetensors")
    name = next(name for name in weights if name.endswith("word_embeddings.weight"))
    weights[name][:] = torch.nan
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(NumericalError, match=r"the caption .* is not finite"):
        embed(tmp_path / "out", Pretrained(str(folder), 24))


def test_a_caption_that_changes_meanwhile_is_noticed(t5, tmp_path):
    seen = []

    def texts(index: int) -> tuple[str, ...]:
        seen.append(index)
        return (f"caption {index} {len(seen) > 5}",)

    with pytest.raises(DataError, match="is another than a moment ago"):
        embed_captions(texts, 5, tmp_path / "out", t5, device=CPU)


def test_a_cache_is_a_value_that_knows_its_encoder(t5, whole):
    cached = Cached(t5, str(whole))
    assert (cached.direct, cached.length, cached.fill, cached.identity()) == (t5, 24, True, t5.identity())
    types = {"Cached": Cached, "Pretrained": Pretrained}
    assert from_data(json.loads(json.dumps(to_data(cached))), types) == cached
    with pytest.raises(ValueError, match="encoder is itself a cache"):
        Cached(cached, str(whole))


def test_words_name_encoders(t5, whole, monkeypatch):
    assert is_embeddings(whole) and encoder_of(str(whole)) == Cached(t5, str(whole))
    assert encoder_of("minilm") == MiniLM() and encoder_of("bytes", 20) == Bytes(20)
    assert encoder_of("owner/name", 77) == Pretrained("owner/name", 77)
    monkeypatch.chdir(Path(t5.path).parent)
    assert encoder_of("t5", 24) == t5
    with pytest.raises(UserError, match="leave the length out"):
        encoder_of(str(whole), 24)


@pytest.mark.parametrize("fill", [True, False])
def test_bytes_fill_up_as_they_are_told(fill):
    found = Bytes(20, fill).open(CPU)(["ab", "", "x" * 40])
    assert found.mask.sum(1).tolist() == [3, 1, 20] and found.tokens.shape == (3, 20, 256)
    assert Bytes(20, fill).open(CPU)(["ab", ""]).tokens.shape[1] == (20 if fill else 3)
    with pytest.raises(DataError, match="is not Unicode text"):
        Bytes().open(CPU)(["\udc80"])
