from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from pixelspace.errors import DataError, ResourceError, UserError
from pixelspace.evaluation.reference_file import OutputHeader, ReferenceHeader, read_own, write_reference
from pixelspace.evaluation.references import read_reference
from pixelspace.evaluation.stats import Moments, moments

POOL = OutputHeader("inception.pool", "Inception-2015-12-05, resize tf1", "ab" * 32)
CLS = OutputHeader("dinov2.cls", "DINOv2 facebook/dinov2-large, resize pil_bicubic 224", "cd" * 32)
HEADER = ReferenceHeader((POOL, CLS), "round", "adm", (64, 64), "images/train", "ef" * 32, 9)
ROWS = {"inception.pool": torch.randn(9, 4), "dinov2.cls": torch.randn(9, 3)}
MOMENTS = {name: moments([rows]) for name, rows in ROWS.items()}


@pytest.fixture
def path(tmp_path):
    write_reference(tmp_path / "r.safetensors", HEADER, MOMENTS, {"inception.pool": ROWS["inception.pool"].half()})
    return tmp_path / "r.safetensors"


def test_what_is_written_is_read(path):
    reference = read_reference(path)
    assert reference.format == "pixelspace" and reference.header == HEADER
    for name, found in MOMENTS.items():
        read = reference.moments_of(name)
        assert read.count == 9 and torch.equal(read.mean, found.mean) and torch.equal(read.cov, found.cov)
    assert torch.equal(reference.features_of("inception.pool"), ROWS["inception.pool"].half())
    assert [file.name for file in path.parent.iterdir()] == ["r.safetensors"]
    assert reference.mismatches(HEADER) == []


@pytest.mark.parametrize(
    ("expected", "phrase"),
    [
        (
            replace(HEADER, outputs=(replace(POOL, extractor="Inception-2015-12-05, resize clean"),)),
            "inception.pool: extractor is Inception-2015-12-05, resize tf1, "
            "expected Inception-2015-12-05, resize clean",
        ),
        (
            replace(HEADER, outputs=(replace(POOL, weights="other"),)),
            f"inception.pool: weights is {'ab' * 32}, expected other",
        ),
        (replace(HEADER, crop="center"), "crop is 'adm', expected 'center'"),
        (replace(HEADER, size=(32, 32)), "size is (64, 64), expected (32, 32)"),
        (
            replace(HEADER, outputs=(replace(POOL, output="lite0.pool"),)),
            "lite0.pool: is not there, only dinov2.cls, inception.pool",
        ),
    ],
)
def test_each_difference_that_matters_is_a_phrase(path, expected, phrase):
    assert read_reference(path).mismatches(expected) == [phrase]


def test_other_images_of_the_same_making_match(path):
    assert read_reference(path).mismatches(replace(HEADER, source="samples", fingerprint="00", count=50_000)) == []


def test_every_flipped_bit_is_refused_or_changes_nothing(path):
    whole, before = path.read_bytes(), read_own(path)
    refused = 0
    for i in range(0, 8 * len(whole), 7):
        data = bytearray(whole)
        data[i // 8] ^= 1 << i % 8
        path.write_bytes(data)
        try:
            header, found, features = read_reference(path).header, *read_own(path)[1:]
        except DataError as error:
            refused += 1
            assert str(error).startswith(str(path)) and "\n" not in str(error)
        else:
            assert header == before[0] and features.keys() == before[2].keys()
            assert all(torch.equal(found[name].cov, before[1][name].cov) for name in before[1])
    assert refused > len(whole)


@pytest.mark.parametrize("name", ["inception.pool.mean", "dinov2.cls.cov", "inception.pool.features"])
def test_a_flipped_bit_is_named_by_its_tensor(path, name):
    data = bytearray(path.read_bytes())
    data[data.index(load_file(path)[name].numpy().tobytes())] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match=rf"{name}: is damaged: not what its SHA-256 says"):
        read_reference(path)


@settings(deadline=None, max_examples=50)
@given(cut=st.integers(0, 1000))
def test_a_file_cut_short_is_refused(tmp_path_factory, cut):
    path = tmp_path_factory.mktemp("cut") / "r.safetensors"
    write_reference(path, HEADER, MOMENTS)
    whole = path.read_bytes()
    path.write_bytes(whole[: cut * len(whole) // 1001])
    with pytest.raises(DataError, match=r"r.safetensors: "):
        read_reference(path)


def test_another_safetensors_is_refused(tmp_path):
    save_file({"w": torch.ones(3)}, tmp_path / "w.safetensors")
    with pytest.raises(DataError, match=r"w.safetensors: a .safetensors without our description"):
        read_reference(tmp_path / "w.safetensors")


NAN = replace(MOMENTS["inception.pool"], mean=torch.full((4,), torch.nan, dtype=torch.float64))


@pytest.mark.parametrize(
    ("found", "features", "said"),
    [
        ({"inception.pool": MOMENTS["inception.pool"]}, {}, r"dinov2.cls.cov: expected a mean and a covariance"),
        ({**MOMENTS, "lite0.pool": MOMENTS["dinov2.cls"]}, {}, "lite0.pool.cov: expected a mean and a covariance"),
        ({**MOMENTS, "inception.pool": NAN}, {}, "inception.pool: mean or covariance has numbers that are not finite"),
        (
            {**MOMENTS, "dinov2.cls": Moments(9, torch.zeros(3), torch.eye(3))},
            {},
            "dinov2.cls: expected float64, found torch.float32",
        ),
        (
            {**MOMENTS, "dinov2.cls": replace(MOMENTS["dinov2.cls"], count=8)},
            {},
            "moments of 8 rows, the header says 9",
        ),
        (MOMENTS, {"lite0.pool": torch.ones(9, 4)}, "features of an output that the header does not have"),
        (MOMENTS, {"dinov2.cls": torch.ones(9, 4)}, "expected width 3 and at most 9 rows"),
        (MOMENTS, {"dinov2.cls": torch.ones(10, 3)}, "expected width 3 and at most 9 rows"),
        (MOMENTS, {"dinov2.cls": torch.ones(9, 3).double()}, "expected float32 or float16, found torch.float64"),
        (MOMENTS, {"dinov2.cls": torch.full((9, 3), torch.inf)}, "dinov2.cls.features: row 0 is not finite"),
    ],
)
def test_what_does_not_fit_is_not_written(tmp_path, found, features, said):
    with pytest.raises(DataError, match=said):
        write_reference(tmp_path / "r.safetensors", HEADER, found, features)
    assert not list(tmp_path.iterdir())


def test_nothing_is_overwritten_or_half_written(path, tmp_path):
    with pytest.raises(UserError, match=r"r.safetensors: exists already, and is not overwritten"):
        write_reference(path, HEADER, MOMENTS)
    with pytest.raises(UserError, match=r"are written as .safetensors, not .npz"):
        write_reference(tmp_path / "r.npz", HEADER, MOMENTS)
    with pytest.raises(ResourceError, match=r"below a file: cannot be made: Not a directory"):
        write_reference(path / "below a file" / "x.safetensors", HEADER, MOMENTS)
    assert [file.name for file in tmp_path.iterdir()] == ["r.safetensors"]


@pytest.mark.parametrize("wrong", [{"outputs": ()}, {"outputs": (POOL, POOL)}, {"count": 1}, {"size": (8,)}])
def test_a_header_checks_itself(wrong):
    with pytest.raises(ValueError, match="ReferenceHeader"):
        replace(HEADER, **wrong)
