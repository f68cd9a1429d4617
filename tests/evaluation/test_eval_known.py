"""What generated images are compared with: files of ours and of others, images, and what does not fit."""

from pathlib import Path

import numpy as np
import pytest

from pixelspace.errors import UserError
from pixelspace.evaluation.custom import Custom
from pixelspace.evaluation.evaluate import evaluate
from pixelspace.evaluation.frechet import frechet_distance
from pixelspace.evaluation.metrics import Frechet, InceptionScore, PrecisionRecall
from pixelspace.evaluation.neighbours import manifolds
from pixelspace.evaluation.reference_making import reference_of
from pixelspace.evaluation.references import read_reference
from pixelspace.evaluation.stats import moments
from tests.evaluation.judged import (
    KNOWN,
    PIXELS,
    Projected,
    X,
    Y,
    close,
    computing,
    judged,
    made,
    noise,
    noted,
    projection,
    protocol,
)


@pytest.fixture
def own(tmp_path) -> Path:
    """Statistics and features of the known images in our own format."""
    small = protocol(Projected().extractor)
    path = tmp_path / "known.safetensors"
    assert reference_of(made(KNOWN, "known"), small, path, computing(), crop="center", features=True) == path
    return path


def test_a_reference_file_gives_the_numbers_of_its_images(usual, own, tmp_path):
    projected = Projected()
    report = judged(tmp_path / "out", projected=projected, reference=read_reference(own))
    close(report, usual)
    assert projected.seen == 608 and report is not None and report.data["notes"] == []
    assert report.data["reference"]["source"] == "known.safetensors"
    assert report.data["reference"]["header"]["count"] == 700
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["out"], "nothing else is left"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"crop": "adm"}, "crop is 'center', expected 'adm'"),
        ({"sha256": "cd"}, f"weights is {'ab' * 32}, expected cd"),
        ({"shape": (3, 8, 6)}, r"size is \(6, 8\), expected \(8, 6\)"),
    ],
    ids=["crop", "weights", "size"],
)
def test_a_mismatching_reference_is_refused_and_with_trust_noted(own, tmp_path, changes, said):
    extractor = Projected(sha256=changes.pop("sha256", "ab" * 32)).extractor
    images = made(PIXELS.reshape(-1, *changes.pop("shape", PIXELS.shape[1:])))
    small, known = protocol(extractor, **changes), read_reference(own)
    with pytest.raises(UserError, match=f"{own}: .*{said}; take another reference, or add --trust-reference"):
        evaluate(small, [images], tmp_path / "out", computing(), reference=known)
    trusted = evaluate(small, [images], tmp_path / "out", computing(trust=True), reference=known)
    assert any(note.startswith("reference: ") and said.replace("\\", "") in note for note in noted(trusted))


def test_untagged_statistics_are_taken_with_trust_only(tmp_path):
    known = moments([Y])
    np.savez(tmp_path / "known.npz", mu=known.mean.numpy(), sigma=known.cov.numpy())
    reference, metrics = read_reference(tmp_path / "known.npz"), protocol(Projected().extractor).metrics[:1]
    with pytest.raises(UserError, match=r"untagged: extractor is not stated, .*crop and size are not"):
        judged(tmp_path / "out", reference=reference, metrics=metrics)
    small = protocol(Projected().extractor)
    report = evaluate(
        small, [made(PIXELS)], tmp_path / "out", computing(trust=True), metrics=metrics, reference=reference
    )
    assert report is not None and len(report.data["notes"]) == 2
    assert report.numbers["FD"] == pytest.approx(frechet_distance(moments([X]), known), abs=1e-9)


def test_untagged_statistics_of_another_width_are_not_there(tmp_path):
    np.savez(tmp_path / "known.npz", mu=np.zeros(9), sigma=np.eye(9))
    with pytest.raises(UserError, match=r"has no statistics of projection/pixels.projected for FD, only untagged"):
        judged(
            tmp_path / "out",
            reference=read_reference(tmp_path / "known.npz"),
            metrics=protocol(Projected().extractor).metrics[:1],
        )


ADM = "Inception-2015-12-05, resize tf1"
POOL = "inception.pool"


@pytest.fixture
def adm(tmp_path) -> Path:
    """A file of ADM's layout, about a network of 8 features that goes by Inception's name: its images are others than
    those its statistics are of."""
    known, path = moments([Y]), tmp_path / "VIRTUAL.npz"
    np.savez(
        path,
        arr_0=noise(100, seed=2).permute(0, 2, 3, 1).numpy(),
        **{"mu": known.mean.numpy(), "sigma": known.cov.numpy(), "mu_s": np.zeros(3), "sigma_s": np.eye(3)},
    )
    return path


def test_adms_statistics_are_of_all_and_its_images_for_precision_and_recall(adm, tmp_path):
    projected = Projected(name=ADM, output=POOL)
    metrics = (Frechet("FID", projected.extractor, POOL), PrecisionRecall(projected.extractor, POOL))
    small = protocol(projected.extractor, metrics=metrics, crop="adm")
    report = evaluate(small, [made(PIXELS)], tmp_path / "out", computing(), reference=read_reference(adm))
    assert report is not None and report.data["notes"] == [] and projected.seen == 608 + 128
    expected = manifolds(X, projection(noise(100, seed=2)), 3)
    assert report.numbers == pytest.approx(
        {
            "FID": frechet_distance(moments([X]), moments([Y])),
            **{"precision": expected.precision, "recall": expected.recall},
        },
        abs=1e-9,
    )
    about = report.data["reference"]
    assert (about["source"], about["format"], about["images"]) == ("VIRTUAL.npz", "adm", 100)


def test_adms_images_alone_can_be_the_reference(adm, tmp_path):
    projected = Projected(name=ADM, output=POOL)
    small = protocol(projected.extractor, metrics=(PrecisionRecall(projected.extractor, POOL),))
    report = evaluate(small, [made(PIXELS)], tmp_path / "out", computing(), reference=read_reference(adm))
    assert report is not None and list(report.numbers) == ["precision", "recall"]


def test_a_score_of_images_alone_leaves_adms_file_alone(adm, tmp_path):
    extractor = Custom(projection, name=ADM, output="inception.logits", width=8, sha256="")
    small = protocol(extractor, metrics=(InceptionScore(extractor),))
    report = evaluate(small, [made(PIXELS)], tmp_path / "out", computing(), reference=read_reference(adm))
    assert report is not None and list(report.numbers) == ["IS"] and report.data["reference"] is None


def test_one_file_is_held_against_each_network_that_reads_it(adm, tmp_path):
    """Of two resizes of one network the file can be right for one only, whichever comes last."""
    known = read_reference(adm)
    networks = [Projected(name=name, output=POOL).extractor for name in ("Inception-2015-12-05, resize clean", ADM)]
    for ordered in (networks, networks[::-1]):
        metrics = tuple(Frechet(f"FID {network.name}", network, POOL) for network in ordered)
        small = protocol(networks[0], metrics=metrics, crop="adm")
        with pytest.raises(UserError, match=f"extractor is {ADM}, expected Inception-2015-12-05, resize clean; take"):
            evaluate(small, [made(PIXELS)], tmp_path / "out", computing(), reference=known)


# Captions.
