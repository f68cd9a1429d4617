"""The command line as people use it: what it prints, what it refuses and with which exit code."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pixelspace.data.pictures import settings_in
from tests.cli.conftest import DEBUG, WEIGHTS, refused


def test_recipes_are_listed_one_a_line(cli):
    code, out, _ = cli("recipes")
    assert code == 0 and any(line.startswith("hdit-demo ") for line in out.splitlines())


@pytest.mark.parametrize(
    "command", [[], ["train"], ["sample"], ["show"], ["import"], ["prepare"], ["encode"], ["recipes"], ["demo"]]
)
def test_help_is_everywhere(cli, command):
    code, out, _ = cli(*command, "--help")
    assert code == 0 and "usage: pixelspace" in out


def test_show_prints_the_tree_with_counts(cli):
    code, out, _ = cli("show", "hdit-imagenet256")
    assert code == 0
    assert "557,416,522 parameters" in out and "197.587 GMAC" in out and "mid_level" in out
    assert out.count("stage ") == 4 and "from batch-256 (raw weights)" in out


def test_show_prints_every_setting_as_json(cli):
    _, out, _ = cli("show", "hdit-demo", "--json", "--set", "stages.0.optimizer.lr=1e-3")
    assert json.loads(out)["stages"][0]["optimizer"]["lr"] == 1e-3


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("stages.0.optimizer.lerning_rate=1", ["lerning_rate", "known here", "lr"]),
        ("stages.0.batchh=1", ["did you mean 'batch'?"]),
        ("stages.0.batch=many", ["stages.0.batch", "integer", "'many'"]),
        ("stages.0.batch=true", ["stages.0.batch", "integer", "True"]),
        ("stages.0.optimizer.lr=NaN", ["stages.0.optimizer.lr", "'NaN'"]),
        ("stages.0.optimizer.lr=1e999", ["stages.0.optimizer.lr", "finite"]),
        ("stages.0.optimizer.lr=-1", ["must be positive"]),
        ("stages.0.backbone.levels.0.width=100", ["multiple of head_dim 32", "96 and 128"]),
        ("stages.0.size=[33,32]", ["image height 33", "32 and 36"]),
        ("stages.0.images=1000", ["not a multiple of batch 64", "960"]),
        ("stages.0.objective.levels.type=Karas", ["no such type 'Karas'", "'Karras'"]),
        ('stages.0.data.source.groups=["fod"]', ["no group 'fod'", "'food'"]),
        ("stages.5.batch=1", ["'5' is no index here"]),
        ("stages.0.batch", ["path=value"]),
    ],
)
def test_a_bad_setting_is_refused_in_one_line(cli, setting, words):
    refused(cli("train", "hdit-demo", "--set", setting, "--out", "r"), 2, *words)
    assert not Path("r").exists()


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("stages.0.objective.mask.ratio=1", ["stages.0.objective.mask", "ratio must be in [0, 1), found 1.0"]),
        ("stages.0.objective.mask.ratio=-0.5", ["ratio must be in [0, 1), found -0.5"]),
        ("stages.0.objective.patch=[2,2]", ["the network (MaskDiTConfig) has patches of (4, 4)"]),
        ("stages.0.objective.target=clear", ["'noisy' or 'clean'", "'clear'"]),
        ("stages.*.backbone.num_classes=0", ["drop_rate 0.1: the network has neither classes nor text to drop"]),
        ("stages.0.backbone.channels=4", ["4 channels", "(Pixels) 3"]),
    ],
)
def test_a_bad_mask_is_refused_in_one_line(cli, setting, words):
    refused(cli("train", "maskdit-emoji", "--set", setting, "--out", "r"), 2, *words)


def test_masking_a_network_that_needs_all_patches_is_refused(cli, tmp_path):
    (tmp_path / "mine.py").write_text(
        "from dataclasses import replace\n"
        "from pixelspace.recipes.hdit import imagenet128_debug\n"
        "from pixelspace.recipes.maskdit import emoji\n"
        "def made():\n"
        "    recipe = imagenet128_debug()\n"
        "    stage = replace(recipe.stages[0], objective=emoji().stages[0].objective)\n"
        "    return replace(recipe, stages=(stage,))\n"
    )
    refused(cli("show", f"{tmp_path}/mine.py:made"), 2, "HDiTConfig", "needs all patches", "take Denoising")


def test_maskdit_weights_are_imported(cli, golden, golden_json, tmp_path):
    torch.save({"ema": golden("maskdit/tiny_state_dict"), "model": {}}, tmp_path / "2075000.pt")
    config = golden_json("maskdit/tiny_state_dict")["config"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    given = ("import", tmp_path / "2075000.pt", "m", "--system", "maskdit", "--config", tmp_path / "config.json")
    code, out, _ = cli(*given)
    assert code == 0 and out.endswith("parameters: m\n")
    refused(cli("sample", "m", "-n", "1", "--out", "s", "--quiet"), 4, "autoencoder_kl.pth", "no such file")
    (tmp_path / "config.json").write_text(json.dumps({**config, "decoder_depth": 8}))
    refused(cli(*given), 4, "another network: decoder_depth is 2 in it, 8 in config")
    refused(cli("import", tmp_path / "2075000.pt", "m", "--system", "mask-dit"), 2, "did you mean 'maskdit'")


def test_unknown_recipes_stages_devices_and_trackers_are_refused(cli):
    refused(cli("train", "hdit-dmo"), 2, "hdit-dmo", "did you mean 'hdit-demo'?")
    refused(cli("train", DEBUG, "--stage", "trane"), 2, "did you mean 'train'?")
    refused(cli("train", DEBUG, "--device", "tpu"), 6, "'tpu' is not usable here")
    refused(cli("train", DEBUG, "--track", "mlflow"), 2, "'mlflow'", "tensorboard", "trackio", "wandb")
    refused(cli("train", "mine.py:cats"), 2, "mine.py: no such file")
    assert cli("train", DEBUG, "--nonsense")[0] == 2


def test_a_recipe_comes_from_a_file_or_a_function(cli, tmp_path):
    _, out, _ = cli("show", DEBUG, "--json")
    (tmp_path / "mine.json").write_text(out)
    (tmp_path / "mine.py").write_text("from pixelspace.recipes.hdit import imagenet128_debug as cats\n")
    assert cli("show", "mine.json")[1] == cli("show", "mine.py:cats")[1] == cli("show", DEBUG)[1]
    (tmp_path / "mine.json").write_text(out.replace('"seed": 0', '"seed": 0, "seed": 1'))
    refused(cli("show", "mine.json"), 2, "mine.json", "'seed' stands twice")
    (tmp_path / "mine.json").write_text("{")
    refused(cli("show", "mine.json"), 2, "mine.json", "not readable as JSON")


def test_training_on_a_folder_writes_a_run_that_samples(cli, pictures):
    code, _, err = cli(
        *("train", DEBUG, "--data", pictures, "--out", "run", "--quiet", "--set", "stages.0.backbone.num_classes=2")
    )
    assert code == 0, err
    assert cli("sample", "run", "-n", "3", "--label", "b", "--out", "images", "--steps", "2", "--quiet")[0] == 0
    assert sorted(path.name for path in Path("images").iterdir()) == [
        *(f"00000{i}.png" for i in range(3)),
        "grid.png",
    ]
    with Image.open("images/000002.png") as image:
        assert image.size == (16, 16)
    refused(cli("sample", "run", "--out", "images"), 2, "images: is not empty", "--overwrite")
    refused(cli("sample", "run", "--label", "c", "--out", "o"), 2, "no class 'c'", "a, b")
    refused(cli("sample", "run", "--label", "7", "--out", "o"), 2, "label 7 is out of range", "0 to 1")


def test_bad_folders_are_refused(cli, tmp_path, pictures):
    def train_on(folder):
        return cli("train", DEBUG, "--data", folder, "--out", "run", "--quiet")

    (tmp_path / "empty").mkdir()
    refused(train_on("empty"), 3, "empty: no image files", ".jpg", "found nothing")
    refused(train_on("nowhere"), 3, "nowhere: no such folder")
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "notes.txt").write_text("hello")
    refused(train_on("text"), 3, "no image files", "1 .txt")
    (tmp_path / "text" / "bad.png").write_bytes(b"")
    refused(train_on("text"), 3, "none of its 1 image files can be read", "bad.png: zero bytes")
    (pictures / "a" / "x.png").write_text("<html>")
    (pictures / "a" / "y.png").write_bytes((pictures / "a" / "1.png").read_bytes()[:60])
    (pictures / "labels.csv").write_text("file,label\nnothere.png,1\n")
    refused(train_on(pictures), 3, "labels.csv", "'nothere.png'")
    (pictures / "labels.csv").unlink()
    refused(train_on(pictures), 3, "2 of 18 image files are bad", "10% allowed", "an HTML page")


def test_prepare_says_what_is_in_a_folder(cli, pictures):
    code, out, _ = cli("prepare", pictures)
    assert code == 0 and "16 good images, 0 bad" in out and "2 classes: a 8, b 8" in out


def test_samples_are_the_same_as_in_python(cli, run_folder):
    import pixelspace as ps

    assert cli("sample", run_folder, "-n", "2", "--seed", "7", "--out", "images", "--quiet")[0] == 0
    expected = ps.load(run_folder).sample(2, seed=7, progress=False)
    for i in range(2):
        with Image.open(f"images/{i:06d}.png") as image:
            assert np.array_equal(np.array(image), expected[i].numpy())


def test_a_size_that_was_not_learnt_is_drawn_and_noted(cli):
    size = ("--size", "32", "--steps", "1", "-n", "1", "--quiet")
    code, _, err = cli("sample", WEIGHTS, *size, "--out", "large")
    assert code == 0 and err.startswith("note: 32x32 is more than the 16x16 that this model was trained at")
    code, _, err = cli("sample", WEIGHTS, *size, "--size", "16", "--out", "own")
    assert (code, err) == (0, "")


def test_imported_weights_sample_and_start_a_training(cli):
    assert cli("import", WEIGHTS, "model")[0] == 0
    assert cli("sample", "model", "-n", "1", "--steps", "2", "--out", "a", "--quiet")[0] == 0
    assert cli("sample", WEIGHTS, "-n", "1", "--steps", "2", "--out", "b", "--quiet")[0] == 0
    with Image.open("a/000000.png") as one, Image.open("b/000000.png") as other:
        assert one.tobytes() == other.tobytes()
    ours, theirs = (settings_in(Path(folder, "000000.png").read_bytes()) for folder in "ab")
    assert ours == {**theirs, "model": "model"} and theirs["model"] == WEIGHTS.name
    config = json.loads(Path("model/state.json").read_text())
    backbone = json.dumps(config["backbone"])
    settings = ["--set", f"stages.0.backbone={backbone}", "--set", "stages.0.images=4"]
    code, _, err = cli("train", DEBUG, "--from", "model", "--out", "run", "--quiet", *settings)
    assert code == 0, err
    refused(cli("train", DEBUG, "--from", "model", "--out", "other", "--quiet"), 4, "another architecture")


def test_a_damaged_or_absent_model_is_refused(cli, run_folder, tmp_path):
    refused(cli("sample", "nowhere", "--out", "o"), 4, "nowhere: no such file")
    refused(
        cli("sample", run_folder.parent, "--out", "o"),
        4,
        f"holds runs, and is none: give one of them: {run_folder.name}",
    )
    (tmp_path / "pictures").mkdir()
    refused(cli("sample", tmp_path / "pictures", "--out", "o"), 4, "pictures: holds no model: expected a run's folder")
    (tmp_path / "pictures/model_index.json").write_text("{}")
    refused(cli("sample", tmp_path / "pictures", "--out", "o"), 4, "is an export for other programs; give the run")
    copy = tmp_path / "copy"
    shutil.copytree(run_folder, copy)
    for path in copy.glob("*/checkpoints/*/ema.safetensors"):
        path.write_bytes(path.read_bytes()[:-1])
    refused(cli("sample", copy, "--out", "o"), 4, "ema.safetensors")
    (tmp_path / "evil.pth").write_bytes(b"cos\nsystem\n(S'touch canary'\ntR.")
    refused(cli("sample", "evil.pth", "--out", "o"), 4, "evil.pth")
    refused(cli("import", "evil.pth", "o"), 4, "evil.pth")
    assert not (tmp_path / "canary").exists() and not (tmp_path / "o").exists()


def test_a_changed_recipe_is_refused_on_resume_and_listed(cli, run_folder, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(run_folder, copy)
    again = ("train", DEBUG, "--out", copy, "--quiet")
    assert cli(*again)[0] == 0
    rate = ("--set", "stages.0.optimizer.lr=0.001")
    refused(cli(*again, *rate), 2, "stages.0.optimizer.lr: 0.0005 -> 0.001", "--accept-changes", "another --out")
    seed = ("--set", "seed=3")
    refused(cli(*again, *seed, "--accept-changes"), 2, "seed: 0 -> 3", "another --out")
    assert cli(*again, *rate, "--accept-changes")[0] == 0
    assert cli("train", copy, "--quiet", "--set", "stages.0.log_steps=5")[0] == 0


def test_a_folder_that_cannot_be_written_is_refused(cli, tmp_path):
    (tmp_path / "file").write_text("")
    refused(cli("train", DEBUG, "--out", "file/run"), 6, "file/run: cannot be written")
    refused(cli("sample", WEIGHTS, "--out", "file"), 2, "file: is a file")


def test_a_run_belongs_to_one_process_at_a_time(cli, tmp_path):
    import fcntl

    (tmp_path / "run").mkdir()
    with open(tmp_path / "run" / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        refused(cli("train", DEBUG, "--out", "run"), 2, "another process is training here")


def test_a_fault_of_ours_leaves_its_traceback_in_a_file(cli, monkeypatch, tmp_path):
    from pixelspace.cli import models

    monkeypatch.setattr(models, "recipe_of", lambda *given, **named: 1 / 0)
    code, _, err = cli("show", DEBUG)
    assert code == 70 and "ZeroDivisionError" in err and "Traceback" not in err
    log = tmp_path / "pixelspace-error.log"
    assert "Traceback" in log.read_text()
    log.unlink()
    log.mkdir()  # so that no file can be written there
    code, _, err = cli("show", DEBUG)
    assert code == 70 and "Traceback" in err and f"the traceback is above: {log}: Is a directory" in err


def start(folder: Path, *more: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "pixelspace", "train", DEBUG, "--out", str(folder), "--quiet"]
    settings = ["stages.0.images=40000", "stages.0.save_images=40"]
    return subprocess.Popen(
        [*command, "--set", *settings, *more],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def wait_for_checkpoints(folder: Path, count: int) -> None:
    end = time.monotonic() + 120
    while len(list(folder.glob("*/checkpoints/step-*"))) < count:
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_stopped_process_says_how_to_go_on_and_one_killed_loses_nothing(tmp_path):
    first = start(tmp_path)
    wait_for_checkpoints(tmp_path, 2)
    first.send_signal(signal.SIGTERM)
    _, err = first.communicate(timeout=60)
    assert first.returncode == 75 and err.startswith("stopped on request at ") and "error" not in err
    assert "the same command goes on from here" in err and not (tmp_path / "error.log").exists()
    newest = max(path.name for path in tmp_path.glob("*/checkpoints/step-*"))
    second = start(tmp_path, "stages.0.data.workers=1")
    end = time.monotonic() + 120
    while max(path.name for path in tmp_path.glob("*/checkpoints/step-*")) == newest:
        assert time.monotonic() < end
        time.sleep(0.05)
    workers = children_of(second.pid)
    second.kill()
    _, err = second.communicate(timeout=60)
    assert f"({newest})" in err
    while any(Path(f"/proc/{worker}").exists() for worker in workers):
        assert time.monotonic() < end, "a killed trainer leaves its workers behind"
        time.sleep(0.05)


def children_of(pid: int) -> list[int]:
    """Processes whose parent is `pid`, where the system lists them."""
    children = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # gone meanwhile
            if int(path.read_text().rpartition(")")[2].split()[1]) == pid:
                children.append(int(path.parent.name))
    return children
