"""Drawing shared out over processes: the same pictures as of one, whichever dies, comes late or is asked for more."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

from pixelspace.cli import main
from tests.cli.conftest import WEIGHTS, as_files, refused, report_of, squares

DRAW = ("--steps", "6", "--exact", "--batch", "2", "--seed", "3", "--label", "1", "--device", "cpu")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("drawn") / "model"
    assert main(["import", str(WEIGHTS), str(folder)]) == 0
    return folder


def same_threads() -> dict[str, str]:
    """The environment of a process with as many threads as this one: another number rounds otherwise."""
    return {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}


def started(*arguments, rank: int, world: int) -> subprocess.Popen:
    """A process that is one of several, as torchrun starts them."""
    ranks = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world)}
    command = [sys.executable, "-m", "pixelspace", *map(str, arguments)]
    return subprocess.Popen(command, env={**same_threads(), **ranks}, stdout=-1, stderr=-1, text=True)


def pictures_in(folder: Path) -> dict[str, bytes]:
    """All files but the one that says what is drawn."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "drawn.begun.json"}


def test_two_processes_draw_what_one_does_and_one_of_them_shows_it(cli, model):
    assert cli("sample", model, "-n", "7", "--out", "one", "--quiet", *DRAW)[0] == 0
    both = [started("sample", model, "-n", "7", "--out", "two", *DRAW, rank=rank, world=2) for rank in (0, 1)]
    said = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert pictures_in(Path("two")) == pictures_in(Path("one")) and len(pictures_in(Path("one"))) == 8
    assert any(out == "7 images: two/grid.png\n" for out, _ in said)
    assert "sampling" in said[0][1] and said[1][1] == ""


def test_what_a_killed_rank_left_is_said_and_finished_by_any_number_of_processes(cli, model, monkeypatch):
    draw = ("sample", model, "-n", "12", "--quiet", *DRAW, "--out")
    assert cli(*draw, "one")[0] == 0
    draw = (*draw, "shared")
    killed = started(*draw, rank=1, world=2)
    end, first = time.monotonic() + 120, Path("shared/000001.png")
    while not first.exists():
        assert time.monotonic() < end and killed.poll() is None
        time.sleep(0.0002)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    drawn = first.stat().st_mtime_ns

    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    code, out, err = cli(*draw)
    assert code == 0 and out.startswith("rank 0 of 2: its share is done; shared is complete when the others are"), err
    missing = {f"{number:06d}" for number in range(12)} - {path.stem for path in Path("shared").glob("0*.png")}
    assert missing and f"of 12 images {len(missing)} are missing yet, {min(missing)} first" in out
    assert not Path("shared/grid.png").exists()
    refused(cli(*draw, "--seed", "4"), 2, "shared: was begun with other settings: seed: 3 -> 4")

    monkeypatch.setenv("WORLD_SIZE", "3")  # the others' share by ranks that are another number
    for rank in "210":
        monkeypatch.setenv("RANK", rank)
        code, out, err = cli(*draw)
        assert code == 0, err
    assert out == "12 images: shared/grid.png\n"
    assert pictures_in(Path("shared")) == pictures_in(Path("one"))
    assert first.stat().st_mtime_ns == drawn


def test_more_processes_than_images_have_nothing_to_do_in_any_order(cli, model, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    said = []
    for rank in "102":
        monkeypatch.setenv("RANK", rank)
        code, out, err = cli("sample", model, "-n", "1", "--out", "few", "--quiet", *DRAW)
        assert code == 0, err
        said.append(out)
    assert "of 1 images 1 are missing yet, 000000 first" in said[0] and said[1] == said[2] == "1 images: few/grid.png\n"


def test_a_stopped_drawing_goes_on_alone_and_a_damaged_picture_is_named(cli, model, monkeypatch):
    draw = ("sample", model, "-n", "4", "--out", "o", "--quiet", *DRAW)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert cli(*draw)[0] == 0
    assert sorted(path.name for path in Path("o").iterdir()) == ["000000.png", "000002.png", "drawn.begun.json"]
    refused(cli(*draw, "--overwrite"), 2, "--overwrite: one of several processes", "empty --out")
    monkeypatch.delenv("WORLD_SIZE")
    picture = Path("o/000002.png")
    whole = picture.read_bytes()
    picture.write_bytes(whole[:60])
    refused(cli(*draw), 3, "o/000002.png: ", "delete it and run the same command again")
    picture.unlink()
    assert cli(*draw)[0] == 0
    assert picture.read_bytes() == whole and len(list(Path("o").iterdir())) == 5
    refused(cli(*draw), 2, "o: is not empty", "--overwrite")
    Path("o/notes.txt").write_text("mine")
    assert cli(*draw, "--overwrite", "--seed", "5")[0] == 0
    with Image.open(picture) as image:
        assert image.size == (16, 16)
    assert picture.read_bytes() != whole and Path("o/notes.txt").read_text() == "mine"


@pytest.mark.slow
def test_torchrun_shares_every_command_out_with_the_results_of_one(cli, model, golden, tmp_path):
    torch.save({k[3:]: v for k, v in golden("maskdit/vae_tiny").items() if k[:3] == "sd."}, tmp_path / "vae.pth")
    images = as_files(squares(24, 3), Path("images"))
    known = as_files(squares(24, 4), Path("known"))
    (images / "metadata.jsonl").write_text(
        "".join(f'{{"file_name": "{i:03d}.png", "text": "picture {i}"}}\n' for i in range(24))
    )
    commands = {
        "sample": ("sample", model, "-n", "5", *DRAW, "--quiet", "--out", "OUT"),
        "encode": ("encode", images, "OUT", "--vae", "vae.pth", "--size", "16", "--shard", "5", "--quiet"),
        "embed": ("embed", images, "OUT", "--encoder", "bytes", "--quiet"),
        "evaluate": ("evaluate", images, "--count", "24", "--reference", known, "--quiet", "--out", "OUT"),
    }
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    for name, command in commands.items():

        def into(out: Path, command: tuple = command) -> list[str]:
            return [str(out if word == "OUT" else word) for word in command]

        one, two = Path(f"{name}-one"), Path(f"{name}-two")
        code, _, err = cli(*into(one))
        assert code == 0, err
        shared = [*torchrun, "-m", "pixelspace", *into(two)]
        ran = subprocess.run(shared, capture_output=True, text=True, env=same_threads())
        assert ran.returncode == 0, ran.stderr
        if name == "evaluate":
            assert report_of(two)["numbers"] == report_of(one)["numbers"]
        else:
            assert pictures_in(two) == pictures_in(one), name
