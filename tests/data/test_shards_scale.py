"""Many samples in a hundred tar shards: prepared, trained on, killed and resumed, always the same in the same order."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pixelspace.cli import main
from pixelspace.data.shards import Shards
from tests.data.shards_trained import BATCH, STEPS, train

SHARDS = 100
# The header of an 8x8 bitmap of 24 bits; any 192 bytes are its pixels.
BITMAP = b"BM" + np.array([246, 0, 54, 40, 8, 8], "<u4").tobytes() + b"\1\0\x18\0" + bytes(24)


def member(name: str, data: bytes) -> bytes:
    """A tar's header and data; the standard library takes ten times as long."""
    header = bytearray(name.encode().ljust(100, b"\0") + b"0000644\0" + b"0000000\0" * 2)
    header += b"%011o\0" % len(data) + b"0" * 11 + b"\0" + b" " * 8 + b"0" + bytes(100) + b"ustar\00000" + bytes(247)
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + data + bytes(-len(data) % 512)


def write_many(folder: Path, count: int) -> Path:
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (count, 192), dtype=np.uint8)
    for shard in range(SHARDS):
        with (folder / f"{shard:05d}.tar").open("wb") as file:
            for i in range(shard * count // SHARDS, (shard + 1) * count // SHARDS):
                key, text = f"{i:09d}", f"caption of {i}"
                file.write(member(f"{key}.bmp", BITMAP + pixels[i].tobytes()))
                file.write(member(f"{key}.txt", text.encode()))
                file.write(member(f"{key}.json", b'{"score": %d, "caption": "%s"}' % (i % 100, text.encode())))
            file.write(bytes(1024))
    return folder


Steps = list[list[list[int]]]


def trained(tmp_path: Path, run: str, workers: int) -> Steps:
    """Positions and samples of the steps of a training."""
    steps: Steps = []
    train(tmp_path / "in", tmp_path / "cache", tmp_path / run, workers, steps.append)
    return steps


def killed(tmp_path: Path, run: str, workers: int, at: int) -> Steps:
    """The same of one that is killed when it is handed the position `at`."""
    program = Path(__file__).with_name("shards_trained.py")
    command = [sys.executable, program, tmp_path / "in", tmp_path / "cache", tmp_path / run, str(workers), str(at)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == -signal.SIGKILL, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def weights(folder: Path) -> dict[str, bytes]:
    """What the last checkpoint of a run holds of the model."""
    last = max((folder / "00-train" / "checkpoints").glob("step-*"))
    return {path.name: path.read_bytes() for path in last.glob("*.safetensors")}


@pytest.mark.parametrize("count", [5_000, pytest.param(100_000, marks=pytest.mark.slow)])
def test_a_killed_training_goes_on_with_the_same_samples_for_any_number_of_workers(
    tmp_path, monkeypatch, capsys, count
):
    write_many(tmp_path / "in", count)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert main(["prepare", str(tmp_path / "in"), "--workers", "2"]) == 0
    assert f"{count:,} good samples in 100 shards, 0 bad" in capsys.readouterr().out
    (tmp_path / "pixelspace").rename(tmp_path / "cache")
    dataset = Shards(str(tmp_path / "in")).open(tmp_path / "cache")
    assert len(dataset) == count and dataset.texts(count - 1) == (f"caption of {count - 1}",)
    assert np.array_equal(dataset.column("score"), np.arange(count) % 100)
    assert len(np.unique(dataset.keys())) == count

    whole = trained(tmp_path, "whole", workers=0)
    assert [p for step, _ in whole for p in step] == list(range(BATCH * STEPS))
    assert len({i for _, ids in whole for i in ids}) == BATCH * STEPS
    first = killed(tmp_path, "killed", workers=3, at=3 * BATCH + 5)
    second = killed(tmp_path, "killed", workers=1, at=5 * BATCH)
    third = trained(tmp_path, "killed", workers=0)
    assert (first, second, third) == (whole[:4], whole[2:6], whole[4:])
    assert weights(tmp_path / "whole")["model.safetensors"] and weights(tmp_path / "killed") == weights(
        tmp_path / "whole"
    )
