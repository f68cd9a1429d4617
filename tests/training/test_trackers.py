import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pixelspace.errors import ResourceError, UserError
from pixelspace.training.trackers import tracking


def test_unknown_and_absent_trackers_are_refused(tmp_path, monkeypatch):
    with (
        pytest.raises(UserError, match="no tracker 'wandbb'; did you mean 'wandb'"),
        tracking(["wandbb"], tmp_path, "r"),
    ):
        pass
    for package in ("wandb", "trackio"):
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(ResourceError, match=rf"pip install 'pixelspace\[{package}\]'"):
            with tracking([package], tmp_path, "run"):
                pass


def test_tensorboard_has_the_numbers_and_pictures_of_every_attempt_by_images(tmp_path):
    picture = tmp_path / "grid.png"
    Image.new("RGB", (6, 4), (10, 200, 30)).save(picture)
    for images in (8, 16):
        with tracking(["tensorboard"], tmp_path, "run") as (tracker,):
            tracker.log({"train/loss": 1 / images}, images)
            tracker.picture("samples", picture, images)
    found = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in found.Scalars("train/loss")] == [(8, 1 / 8), (16, 1 / 16)]
    assert [(event.step, event.width, event.height) for event in found.Images("samples")] == [(8, 6, 4), (16, 6, 4)]


def test_a_run_is_followed_with_its_pictures(tiny, train, tmp_path):
    train(tiny, tmp_path, trackers=("tensorboard",))
    found = EventAccumulator(str(tmp_path / "00-train" / "tensorboard")).Reload()
    tags = found.Tags()
    assert {"train/loss", "train/grad_norm", "validation/loss"} <= set(tags["scalars"]) and tags["images"] == [
        "samples"
    ]


@pytest.mark.parametrize("package", ["wandb", "trackio"])
def test_the_others_keep_a_record_without_a_network(package, tmp_path):
    """In a process of its own, since they leave threads behind."""
    pytest.importorskip(package)
    picture = tmp_path / "grid.png"
    Image.new("RGB", (6, 4)).save(picture)
    program = f"""
from pathlib import Path
from pixelspace.training.trackers import tracking
for images in (8, 16):
    with tracking([{package!r}], Path({str(tmp_path)!r}), "run") as (tracker,):
        tracker.log({{"train/loss": 0.5}}, images)
        tracker.picture("samples", Path({str(picture)!r}), images)
"""
    environment = {"WANDB_MODE": "offline", "TRACKIO_DIR": str(tmp_path / "trackio"), "HOME": str(tmp_path)}
    ran = subprocess.run(
        [sys.executable, "-c", program], env={**environment, "PYTHONPATH": ":".join(sys.path)}, capture_output=True
    )
    assert ran.returncode == 0, ran.stderr
    kept = {"wandb": "wandb/offline-run-*/*.wandb", "trackio": "trackio/*.db"}[package]
    assert list(Path(tmp_path).glob(kept))
