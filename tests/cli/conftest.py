"""What tests of the command line share: a way to run it, images to run it on, and what a refusal looks like."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pixelspace.cli import main
from tests.conftest import GOLDENS

WEIGHTS = GOLDENS / "hdit/nbhd_class_2lvl.weights.safetensors"
DEBUG = "hdit-imagenet128-debug"


@pytest.fixture
def cli(capsys, monkeypatch, tmp_path):
    """Runs a command in an empty folder and returns (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def run(*arguments: str | Path) -> tuple[int, str, str]:
        try:
            code = main([str(one) for one in arguments])
        except SystemExit as stop:
            code = stop.code
        out, err = capsys.readouterr()
        return code, out, err

    return run


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    assert main(["train", DEBUG, "--out", str(folder), "--quiet"]) == 0
    return folder


def squares(count: int, seed: int, side: int = 16) -> np.ndarray:
    """uint8 (count, side, side, 3): images of coloured squares, four pixels wide."""
    coarse = np.random.default_rng(seed).integers(0, 256, (count, side // 4, side // 4, 3), np.uint8)
    return coarse.repeat(4, 1).repeat(4, 2)


def as_files(images: np.ndarray, folder: Path) -> Path:
    """The images as PNG files `000.png` and on."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{i:03d}.png")
    return folder


@pytest.fixture(scope="module")
def judged_run(tmp_path_factory):
    """A trained debug run on 2 classes of 16 images, in `data` beside it, that are few enough to be judged."""
    folder = tmp_path_factory.mktemp("judged")
    for i, name in enumerate("ab"):
        as_files(squares(16, i), folder / "data" / name)
    settings = ("--set", "stages.0.backbone.num_classes=2", "stages.0.data.holdout=0")
    assert (
        main(["train", DEBUG, "--data", str(folder / "data"), "--out", str(folder / "run"), "--quiet", *settings]) == 0
    )
    return folder / "run"


def report_of(folder: Path) -> dict:
    """The report in a folder, its numbers by name."""
    report = json.loads((folder / "report.json").read_text())
    return {**report, "numbers": {row["name"].partition(" (")[0]: row["value"] for row in report["numbers"]}}


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        (folder / name).mkdir(parents=True)
        for i in range(8):
            Image.fromarray(rng.integers(0, 255, (24, 40, 3), np.uint8)).save(folder / name / f"{i}.png")
    return folder


def refused(result, code, *words):
    """One line on the terminal, the right exit code, no traceback."""
    found, _, err = result
    lines = [line for line in err.splitlines() if line.startswith("error:")]
    assert found == code, err
    assert len(lines) == 1 and "Traceback" not in err
    for word in words:
        assert word in lines[0], lines[0]
