import io
import os
import pickle
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pixelspace.errors import DataError, UserError
from pixelspace.evaluation.reference_file import OutputHeader, ReferenceHeader
from pixelspace.evaluation.references import UNTAGGED, read_reference
from pixelspace.evaluation.stats import Moments, moments
from tests.mutants import mutants

GOLDENS = Path(__file__).parents[1] / "goldens" / "metrics" / "stats_formats"
FRECHET = 0.2594651329240252  # README.json there
FILES = {
    "adm_reference.npz": ("adm", "inception.pool"),
    "pytorch_fid_or_edm.npz": ("mu and sigma", UNTAGGED),
    "cleanfid_kid.npz": ("clean-fid features", UNTAGGED),
    "cmmd_embeddings.npy": ("rows (CMMD)", UNTAGGED),
    "edm2.pkl": ("edm2", "inception.pool"),
    "stylegan_featurestats.pkl": ("stylegan", UNTAGGED),
    "torch_fidelity_features-2048.pt": ("torch-fidelity features", UNTAGGED),
    "torch_fidelity_stat-fid-2048.pt": ("torch-fidelity statistics", UNTAGGED),
}
INCEPTION = OutputHeader("inception.pool", "Inception-2015-12-05, resize tf1", "aa")
EXPECTED = ReferenceHeader((INCEPTION,), "round", "adm", (8, 8), "samples", "ff", 30)


def frechet(a: Moments, b: Moments) -> float:
    """By the general square root of the product's eigenvalues: slow, and plainly the definition."""
    roots = torch.linalg.eigvals(a.cov @ b.cov).sqrt().sum().real
    return float((a.mean - b.mean).square().sum() + a.cov.trace() + b.cov.trace() - 2 * roots)


def test_a_file_is_refused_only_if_it_is_not_one_of_the_goldens():
    statistics = {path.name for path in GOLDENS.iterdir()} - {"README.json", "generated_features.npy"}
    assert statistics == FILES.keys() | {"adm_samples.npz"}
    with pytest.raises(DataError, match=r"adm_samples.npz: holds images \(arr_0\) and no statistics"):
        read_reference(GOLDENS / "adm_samples.npz")


@pytest.mark.parametrize("file", FILES)
def test_every_format_gives_the_golden_distance(file):
    reference = read_reference(GOLDENS / file)
    form, output = FILES[file]
    assert reference.format == form and output in {*reference.moments, *reference.features}
    generated = moments([torch.from_numpy(np.load(GOLDENS / "generated_features.npy"))])
    assert frechet(reference.moments_of("inception.pool"), generated) == pytest.approx(FRECHET, abs=1e-6)
    assert len(reference.sha256) == 64


def test_counts_are_read_where_a_file_has_them():
    counts = {file: read_reference(GOLDENS / file).moments_of("inception.pool").count for file in FILES}
    unknown = {"adm_reference.npz", "pytorch_fid_or_edm.npz", "torch_fidelity_stat-fid-2048.pt"}
    assert counts == {file: 0 if file in unknown else 40 for file in FILES}


def test_adms_other_outputs_and_images_are_there():
    reference = read_reference(GOLDENS / "adm_reference.npz")
    assert reference.moments.keys() == {"inception.pool", "inception.spatial"}
    assert reference.images is not None and len(reference.images) == 6 and reference.images.shape == (3, 8, 8)
    stored = torch.from_numpy(np.load(GOLDENS / "adm_reference.npz")["arr_0"])
    assert torch.equal(reference.images.read(range(2, 5)), stored[2:5].permute(0, 3, 1, 2))
    assert read_reference(GOLDENS / "edm2.pkl").moments.keys() == {"inception.pool", "dinov2.cls"}


def test_adms_images_are_not_read_for_its_statistics(tmp_path):
    path = tmp_path / "damaged.npz"
    stored: Any = {**np.load(GOLDENS / "adm_reference.npz"), "arr_0": np.full((3, 512, 512, 3), 7, np.uint8)}
    np.savez(path, **stored)
    data = bytearray(path.read_bytes())
    data[data.index(b"mu.npy") - 100] ^= 1  # in the last image
    path.write_bytes(data)
    reference = read_reference(path)
    assert torch.equal(reference.moments_of("inception.pool").cov, torch.from_numpy(stored["sigma"]))
    assert reference.images is not None and reference.images.shape == (3, 512, 512)
    with pytest.raises(DataError, match=r"damaged.npz: arr_0.npy: damaged: CRC-32"):
        _ = reference.images.fingerprint


def test_adms_clip_statistics_keep_a_name_of_their_own(tmp_path):
    stored = dict(np.load(GOLDENS / "adm_reference.npz"))
    np.savez(tmp_path / "a.npz", **stored, mu_clip=np.zeros(3), sigma_clip=np.eye(3))
    assert read_reference(tmp_path / "a.npz").moments["clip.image"].cov.equal(torch.eye(3, dtype=torch.float64))


def test_stylegans_features_are_read_where_it_kept_them(tmp_path):
    rows = np.random.default_rng(0).normal(size=(7, 3)).astype(np.float32)
    stats = {"num_items": 7, "all_features": [rows[:4], rows[4:]], "raw_mean": None, "raw_cov": None}
    (tmp_path / "s.pkl").write_bytes(pickle.dumps(stats))
    reference = read_reference(tmp_path / "s.pkl")
    assert torch.equal(reference.features_of("i3d.logits"), torch.from_numpy(rows))
    assert reference.moments_of("i3d.logits").count == 7


def test_what_is_not_there_is_named():
    with pytest.raises(DataError, match=r"edm2.pkl: has no lite0.pool; there is dinov2.cls, inception.pool"):
        read_reference(GOLDENS / "edm2.pkl").moments_of("lite0.pool")
    with pytest.raises(DataError, match=r"adm_reference.npz: has no inception.pool; there is nothing of the kind"):
        read_reference(GOLDENS / "adm_reference.npz").features_of("inception.pool")


@pytest.mark.parametrize(
    ("file", "phrases"),
    [
        ("adm_reference.npz", []),
        ("edm2.pkl", []),
        (
            "pytorch_fid_or_edm.npz",
            [
                "inception.pool: extractor, weights and resize are not stated, "
                "expected Inception-2015-12-05, resize tf1",
                "crop and size are not stated, expected 'adm' and (8, 8)",
            ],
        ),
    ],
)
def test_mismatches_say_what_cannot_be_known(file, phrases):
    assert read_reference(GOLDENS / file).mismatches(EXPECTED) == phrases


def test_mismatches_hold_projects_to_their_conventions():
    clean = OutputHeader("inception.clean.pool", "Inception-2015-12-05, resize clean", "aa")
    pil = OutputHeader("dinov2.cls", "DINOv2 facebook/dinov2-large, resize pil_bicubic 224", "aa")
    of = ReferenceHeader((clean, pil), "round", "adm", (256, 256), "samples", "ff", 30)
    assert read_reference(GOLDENS / "adm_reference.npz").mismatches(of) == [
        "inception.clean.pool: is not there, only inception.pool, inception.spatial",
        "dinov2.cls: is not there, only inception.pool, inception.spatial",
        "size is (8, 8), expected (256, 256)",
    ]
    assert read_reference(GOLDENS / "edm2.pkl").mismatches(of)[1] == (
        "dinov2.cls: extractor is DINOv2 facebook/dinov2-large, resize edm2_bicubic, "
        "expected DINOv2 facebook/dinov2-large, resize pil_bicubic 224"
    )


class Evil:
    def __init__(self, canary: Path):
        self.canary = canary

    def __reduce__(self):
        return os.system, (f"touch {self.canary}",)


@pytest.mark.parametrize("name", ["evil.pkl", "evil.pt", "evil.npz", "evil.npy"])
def test_a_hostile_file_runs_nothing(tmp_path, name):
    path, canary = tmp_path / name, tmp_path / "canary"
    data = {"num_images": 40, "fid": {"mu": Evil(canary), "sigma": np.eye(2)}}
    if path.suffix == ".pkl":
        path.write_bytes(pickle.dumps(data))
    elif path.suffix == ".pt":
        torch.save(data, path)
    else:
        objects = np.array([Evil(canary)], dtype=object)
        np.savez(path, mu=objects, sigma=objects) if path.suffix == ".npz" else np.save(path, objects)
    with pytest.raises(DataError, match=r"evil.*(so it is not read: .*system|expected plain numbers)") as error:
        read_reference(path)
    assert "\n" not in str(error.value) and not canary.exists()


@pytest.mark.parametrize("file", FILES)
def test_nothing_but_the_one_error_comes_of_damaged_files(tmp_path, file):
    path = tmp_path / f"x{Path(file).suffix}"
    refused = 0
    for data in mutants((GOLDENS / file).read_bytes(), 150, file):
        path.write_bytes(data)
        try:
            read_reference(path)
        except DataError as error:
            refused += 1
            assert str(error).startswith(str(path)) and "\n" not in str(error)
    assert refused >= 30  # the 30 that were cut short, at least


EYE = np.eye(3)


@pytest.mark.parametrize(
    ("mu", "sigma", "said"),
    [
        (np.zeros(2), EYE, r"expected a mean \(D,\) and a covariance \(D, D\), found \[2\], \[3, 3\]"),
        (np.zeros((1, 3)), EYE, "expected a mean"),
        (np.array([0, np.nan, 0]), EYE, "not finite"),
        (np.zeros(3), np.full((3, 3), np.inf), "not finite"),
        (np.zeros(3), EYE + 1e-3 * np.eye(3, k=1), "not symmetric"),
        (np.zeros(3), -EYE, "negative variance"),
        (np.zeros(0), np.zeros((0, 0)), "expected a mean"),
    ],
)
def test_statistics_of_nothing_are_refused(tmp_path, mu, sigma, said):
    np.savez(tmp_path / "s.npz", mu=mu, sigma=sigma)
    with pytest.raises(DataError, match=f"s.npz: mu, sigma: .*{said}"):
        read_reference(tmp_path / "s.npz")


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ([1], "expected EDM2's fid, fd_dinov2 or StyleGAN's FeatureStats, found list"),
        ({"mu": 1}, "found a dictionary of"),
        ({"num_images": "many", "fid": {}}, "num_images: expected a count of 2 or more, found 'many'"),
        ({"num_images": 9, "fid": 3}, "fid: expected mu and sigma, found int"),
        ({"num_images": 9, "fid": {"mu": [0], "sigma": EYE}}, "fid: mu: expected an array of numbers, found list"),
        ({"num_items": 1}, "num_items: expected a count"),
        ({"num_items": 9}, "neither sums nor features"),
        ({"num_items": 9, "raw_mean": np.zeros(2), "raw_cov": EYE}, r"raw_mean is \[2\], raw_cov \[3, 3\]"),
        ({"num_items": 9, "all_features": [np.ones((2, 2)), np.ones((2, 3))]}, "different widths"),
    ],
)
def test_pickles_of_something_else_are_refused(tmp_path, data, said):
    (tmp_path / "s.pkl").write_bytes(pickle.dumps(data))
    with pytest.raises(DataError, match=f"s.pkl: .*{said}"):
        read_reference(tmp_path / "s.pkl")


def test_other_kinds_of_file_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"stats.json: expected statistics in .safetensors, .npz, .*found '?.json"):
        read_reference(tmp_path / "stats.json")
    for suffix in (".npz", ".npy", ".pkl", ".pt", ".safetensors"):
        with pytest.raises(DataError, match=f"no{suffix}: .*[nN]o such file"):
            read_reference(tmp_path / f"no{suffix}")
    with zipfile.ZipFile(tmp_path / "empty.npz", "w"):
        pass
    with pytest.raises(DataError, match=r"empty.npz: no mu in it, found nothing"):
        read_reference(tmp_path / "empty.npz")
    shutil.copy(GOLDENS / "edm2.pkl", tmp_path / "renamed.npz")
    with pytest.raises(DataError, match=r"renamed.npz: not readable as .npz: File is not a zip file"):
        read_reference(tmp_path / "renamed.npz")
    buffer = io.BytesIO()
    torch.save({"w": torch.ones(3)}, buffer)
    (tmp_path / "weights.pt").write_bytes(buffer.getvalue())
    with pytest.raises(DataError, match=r"weights.pt: expected mu and sigma, found dict"):
        read_reference(tmp_path / "weights.pt")
