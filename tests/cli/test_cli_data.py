"""Data from disk to a trained model on the command line: every kind goes on where it stopped, and what cannot be used
is named in one line, counted against the budget, and leaves nothing outside the cache."""

import json
import os
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from pixelspace.training import loop
from tests.cli.conftest import as_files, refused, squares
from tests.data.moving_pictures import animation
from tests.data.tars import png, write_tar
from tests.text.text_models import MODELS

COUNT = 20
LAST = "00-train/checkpoints/step-00000008/model.safetensors"
CAPTIONS = [f"squares {i % 5}" for i in range(COUNT)]


def sidecars(root: Path) -> tuple[str, ...]:
    folder = as_files(squares(COUNT, 0), root / "data")
    for i, text in enumerate(CAPTIONS):
        (folder / f"{i:03d}.txt").write_text(text)
    return "--data", str(folder)


def shards(root: Path) -> tuple[str, ...]:
    for i, text in enumerate(CAPTIONS):
        write_tar(root / f"data/{i:05d}.tar", [(f"{i:03d}.png", png(i, 16, 16)), (f"{i:03d}.txt", text.encode())])
    return "--data", str(root / "data")


def parquet(root: Path) -> tuple[str, ...]:
    pytest.importorskip("pyarrow")
    import pyarrow as pa
    from pyarrow import parquet as files

    (root / "data").mkdir()
    rows = {"image": [png(i, 16, 16) for i in range(COUNT)], "text": CAPTIONS}
    files.write_table(pa.table(rows), root / "data/a.parquet", row_group_size=4, compression="none")
    return "--set", ""  # as `prepare` says


def coco(root: Path) -> tuple[str, ...]:
    as_files(squares(COUNT, 0), root / "data/val2014")
    images = [{"id": i, "file_name": f"{i:03d}.png"} for i in range(COUNT)]
    annotations = [{"image_id": i, "caption": text} for i, text in enumerate(CAPTIONS)]
    path = root / "data/annotations/captions_val2014.json"
    path.parent.mkdir()
    path.write_text(json.dumps({"images": images, "annotations": annotations}))
    return "--data", str(path)


def outside_the_cache(root: Path) -> dict[str, int]:
    """Every file below `root` and when it was written, but for those of the cache and what a run says of its end."""
    files = {str(path.relative_to(root)): path for path in root.rglob("*") if path.is_file()}
    own = ("cache/", "run/.lock", "run/recipe.json", "run/error.log")
    return {name: path.stat().st_mtime_ns for name, path in files.items() if not name.startswith(own)}


@pytest.fixture
def at_step(monkeypatch):
    """Has something done before a step is taken, counted from 0 in each command."""

    def arrange(step: int, do: Callable[[], object]) -> None:
        def interrupted(*arguments):
            stream: Any = batches(*arguments)
            try:
                for i, raw in enumerate(stream):
                    if i == step:
                        do()
                    yield raw
            finally:
                stream.close()

        monkeypatch.setattr(loop, "batches", interrupted)

    batches = loop.batches
    yield arrange


def stop() -> None:
    raise KeyboardInterrupt


def trained(cli, *arguments):
    return cli("train", "hdit-text-debug", "--set", "stages.0.data.holdout=0", "--quiet", *arguments)


@pytest.mark.parametrize("kind", [sidecars, shards, parquet, coco])
def test_training_from_captioned_data_goes_on_where_it_was_interrupted(cli, tmp_path, at_step, kind):
    given = kind(tmp_path)
    before = outside_the_cache(tmp_path)
    if given[0] == "--data":
        code, out, err = cli("prepare", given[1])
    else:
        code, out, err = cli("prepare", "data", "--text-key", "text", "--verify")
        assert f"verified: {COUNT} images are what was indexed" in out, err
        (line,) = (line for line in out.splitlines() if line.startswith("pixelspace train"))
        given = tuple(shlex.split(line)[3:])
    assert code == 0, err
    assert f"{COUNT} good" in out and f"captions: {COUNT} " in out and "0 none" in out
    assert outside_the_cache(tmp_path) == before
    whole = trained(cli, *given, "--out", "whole")
    assert whole[0] == 0, whole[2]
    at_step(5, stop)
    assert trained(cli, *given, "--out", "run")[0] == 130
    at_step(9, stop)
    code, _, err = trained(cli, *given, "--out", "run")
    assert code == 0, err
    one, other = (load_file(tmp_path / run / LAST) for run in ("whole", "run"))
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_shards_that_vanish_are_counted_until_too_many_did(cli, tmp_path, at_step):
    given = shards(tmp_path)
    whole = trained(cli, *given, "--out", "whole")
    assert whole[0] == 0, whole[2]
    (tmp_path / "away").mkdir()
    paths = sorted((tmp_path / "data").glob("*.tar"))

    def vanish() -> None:
        for path in paths[1:]:
            path.rename(tmp_path / "away" / path.name)

    at_step(1, vanish)
    result = trained(cli, *given, "--out", "run")
    refused(result, 3, "of the last 10,000 samples could not be read (10 allowed)", ".tar: vanished: No such file")
    assert "unreadable, replaced by another: 000" in result[2]
    refused(trained(cli, *given, "--out", "run"), 3, "00001.tar: is gone, although it is indexed", "prepare")
    for path in paths[1:]:
        (tmp_path / "away" / path.name).rename(path)
    at_step(9, stop)
    code, _, err = trained(cli, *given, "--out", "run")
    assert code == 0, err + Path("pixelspace-error.log").read_text()
    one, other = (load_file(tmp_path / run / LAST) for run in ("whole", "run"))
    assert all(torch.equal(one[name], other[name]) for name in one)
    write_tar(paths[3], [("003.png", png(99, 16, 16)), ("003.txt", b"another")])
    refused(trained(cli, *given, "--out", "run3"), 3, "00003.tar: changed since it was indexed", "prepare")


@pytest.mark.parametrize(
    ("text", "reason"),
    [(b"caf\xe9", "not UTF-8 at byte 3"), (b"x" * 100_000, "over 8192 bytes"), (b"a\0b", "holds a NUL")],
)
def test_a_caption_that_cannot_be_used_is_counted_and_named(cli, tmp_path, text, reason):
    sidecars(tmp_path)
    (tmp_path / "data/003.txt").write_bytes(text)
    before = outside_the_cache(tmp_path)
    code, out, _ = cli("prepare", "data")
    assert code == 0 and f"bad: 003.png: its caption 003.txt: {reason}" in out.splitlines()
    (path,) = (line.partition(": ")[2] for line in out.splitlines() if line.startswith("all that is bad: "))
    (row,) = map(json.loads, Path(path).read_text().splitlines())
    assert row == {"file": "003.png", "reason": f"its caption 003.txt: {reason}"}
    refused(cli("prepare", "data", "--max-bad-share", "0.01"), 3, "1 of 20 image files are bad", f"003.txt: {reason}")
    assert outside_the_cache(tmp_path) == before
    (tmp_path / "data/003.txt").write_bytes(b"mended")
    assert cli("prepare", "data")[0] == 0 and Path(path).read_text() == ""


@pytest.mark.parametrize("blank", [b"", b" \n", None])
def test_captions_that_are_empty_or_missing_are_counted(cli, tmp_path, blank):
    given, path = sidecars(tmp_path), tmp_path / "data/003.txt"
    path.unlink() if blank is None else path.write_bytes(blank)
    code, out, _ = cli("prepare", given[1])
    assert code == 0
    assert "captions: 19 images have one, 1 none; 14 repeat another; the longest has 9 characters" in out.splitlines()
    before = outside_the_cache(tmp_path)
    refused(trained(cli, *given, "--out", "run"), 3, "1 of 20 training samples have no caption")
    assert outside_the_cache(tmp_path) == before


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ([("../003.png", png(1)), ("../003.txt", b"out")], "00003.tar:../003"),
        ([("/etc/003.png", png(1)), ("/etc/003.txt", b"root")], "00003.tar:/etc/003"),
        ([("003.png", png(1)), ("003.txt", b"caf\xe9")], "00003.tar:003: 003.txt: not UTF-8 at byte 3"),
        ([("003.png", png(1)), ("003.txt", b"x" * 100_000)], "00003.tar:003: 003.txt"),
        ([("003.png", png(1)), ("a.png", png(2)), ("003.txt", b"x"), ("003.png", png(3))], "00003.tar:003"),
    ],
    ids=["dots", "absolute", "latin", "long", "twice"],
)
def test_what_a_tar_should_not_hold_is_counted_and_named(cli, tmp_path, members, words):
    shards(tmp_path)
    write_tar(tmp_path / "data/00003.tar", [*members, ("good.png", png(7)), ("good.txt", b"fine")])
    before = outside_the_cache(tmp_path)
    code, out, err = cli("prepare", "data", "--max-bad-share", "0.3")
    assert code == 0, err
    named = [line for line in out.splitlines() if line.startswith(f"bad: {words}")]
    assert len(named) == 1, out
    refused(cli("prepare", "data", "--max-bad-share", "0.01"), 3, "samples are bad, more than the 1% allowed", words)
    assert outside_the_cache(tmp_path) == before
    assert not (tmp_path.parent / "003.png").exists() and not Path("/etc/003.png").exists()


def test_a_truncated_tar_is_counted_and_named(cli, tmp_path):
    shards(tmp_path)
    path = tmp_path / "data/00003.tar"
    path.write_bytes(path.read_bytes()[:700])
    before = outside_the_cache(tmp_path)
    code, out, err = cli("prepare", "data")
    assert code == 0 and "damaged: 00003.tar: " in out and "cut short" in out, (out, err)
    refused(
        cli("prepare", "data", "--max-bad-share", "0.01"),
        3,
        "1 of 20 samples are bad",
        "00003.tar:003: 003.png: cut short",
    )
    assert outside_the_cache(tmp_path) == before


def test_wrong_caption_files_are_refused_with_their_line(cli, tmp_path):
    folder = as_files(squares(4, 0), tmp_path / "data")
    for text, words in [
        (b'{"file_name": "000.png", "text": "a"}\n{"file_name": "nine.png", "text": "b"}\n', "metadata.jsonl:2"),
        (b'{"file_name": "000.png", "text": 7}\n', "metadata.jsonl:1"),
        (b'{"file_name": "000.png", "text": "caf\xe9"}\n', "metadata.jsonl"),
        (b"000.png,a\n", "metadata.jsonl:1"),
    ]:
        (folder / "metadata.jsonl").write_bytes(text)
        for command in (("prepare", folder), ("embed", folder, "out", "--encoder", "bytes", "--quiet")):
            refused(cli(*command), 3, words)
    assert not (tmp_path / "out").exists()


def test_annotations_whose_images_lie_elsewhere_are_refused(cli, tmp_path):
    _, path = coco(tmp_path)
    images = tmp_path / "data/val2014"
    images.rename(tmp_path / "data/pictures")
    refused(cli("prepare", path), 2, "none of its 20 images lies in ", "val2014", "Coco(images, annotations)")
    for place in ("data/annotations/val2014", "data/val2014"):
        (tmp_path / "data/pictures").rename(tmp_path / place)
        code, out, err = cli("prepare", path)
        assert code == 0 and f"{tmp_path / place}: 20 good images" in out, err
        (tmp_path / place).rename(tmp_path / "data/pictures")
    for place in ("data/annotations", "data"):
        for file in sorted((tmp_path / "data").rglob("*.png")):
            file.rename(tmp_path / place / file.name)
        code, out, err = cli("prepare", path)
        assert code == 0 and f"{tmp_path / place}: 20 good images" in out, err
    Path(path).write_text('{"images": []}')
    refused(cli("prepare", path), 3, "captions_val2014.json: expected COCO's captions")


def test_a_listed_image_that_is_missing_is_counted_and_named(cli, tmp_path):
    _, path = coco(tmp_path)
    (tmp_path / "data/val2014/003.png").unlink()
    code, out, _ = cli("prepare", path)
    assert code == 0 and "bad: 003.png: no such image; captions_val2014.json lists it" in out
    code, _, err = cli("embed", path, "out", "--encoder", "bytes", "--quiet")
    assert code == 0, err


def test_folders_with_more_clips_than_images_are_of_clips(cli, tmp_path):
    clip = squares(20, 0)
    for i in range(3):
        animation(tmp_path / f"clips/{i}.gif", clip)
    as_files(squares(2, 1), tmp_path / "clips")
    code, out, err = cli("prepare", "clips", "--frames", "8", "--stride", "2")
    assert code == 0 and "3 good clips, 0 bad" in out and '"frames": 8, "stride": 2' in out, err
    refused(cli("prepare", "clips", "--frames", "30"), 3, "none of its 3 clip files can be read", "0.gif: 20 frames")
    refused(cli("prepare", "clips", "--frames", "0"), 2, "frames must be at least 1, found 0")
    refused(cli("prepare", "clips", "--text-key", "a"), 2, "--text-key is not for a folder of clips")
    as_files(squares(4, 1), tmp_path / "clips")
    code, out, _ = cli("prepare", "clips")
    assert code == 0 and "4 good images" in out
    (tmp_path / "clips/results_2M_val.csv").write_text("videoid,contentUrl,duration,page_dir,name\n0,u,1,p,a square\n")
    refused(cli("prepare", "clips"), 3, "p/0.mp4: no such file, and results_2M_val.csv:2 lists it")


def test_programs_share_parquet_files_by_rank(cli, tmp_path, monkeypatch):
    parquet(tmp_path)
    (tmp_path / "data/b.parquet").write_bytes((tmp_path / "data/a.parquet").read_bytes())
    monkeypatch.setenv("WORLD_SIZE", "2")
    said = []
    for rank in "01":
        monkeypatch.setenv("RANK", rank)
        code, out, err = cli("prepare", "data", "--text-key", "text", "--workers", "1")
        assert code == 0, err
        said.append(out)
    assert said[0].startswith("rank 0 of 2: its shards are done; ") and "40 good samples in 2 shards" in said[1]
    refused(cli("prepare", "data", "--out", "index"), 2, "--out is not for Parquet files")
    refused(cli("prepare", "data", "--text-key", "txet"), 3, "no column 'txet'", "did you mean 'text'")


def test_other_bytes_in_a_parquet_file_are_found_by_hashing_again(cli, tmp_path):
    parquet(tmp_path)
    path = tmp_path / "data/a.parquet"
    given = ("prepare", "data", "--text-key", "text", "--verify")
    assert cli(*given)[0] == 0
    status, data = path.stat(), path.read_bytes()
    path.write_bytes(data.replace(png(7, 16, 16), png(7, 16, 16)[:-1] + b"?"))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    refused(cli(*given), 3, "1 images are not what was indexed: a.parquet:7;")


def test_an_encoder_without_weights_is_refused_before_anything_is_written(cli, tmp_path):
    MODELS["t5"](tmp_path / "t5")
    for weights in (tmp_path / "t5").glob("*.safetensors"):
        weights.unlink()
    given = sidecars(tmp_path)
    before = outside_the_cache(tmp_path)
    refused(trained(cli, *given, "--text", "t5", "--out", "run"), 4, "t5: a folder without weights")
    refused(cli("embed", given[1], "out", "--encoder", "t5", "--quiet"), 4, "t5: a folder without weights")
    assert outside_the_cache(tmp_path) == before


def test_an_encoder_of_another_width_is_refused_before_anything_is_written(cli, tmp_path):
    MODELS["t5"](tmp_path / "t5")
    given = sidecars(tmp_path)
    before = outside_the_cache(tmp_path)
    refused(trained(cli, *given, "--text", "t5", "--out", "run"), 2, "tokens of width 16", "the network reads 256")
    assert outside_the_cache(tmp_path) == before
