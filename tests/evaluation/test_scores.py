import math
from pathlib import Path

import numpy as np
import pytest
import torch

from pixelspace.errors import DataError
from pixelspace.evaluation.scores import (
    adm_splits,
    clipscore,
    cosines,
    inception_score,
    proportional_splits,
    ref_clipscore,
    vendi_of,
    vendi_score,
)

METRICS = Path(__file__).parents[1] / "goldens/metrics"
LOGITS, ORDER = (torch.from_numpy(np.load(METRICS / "logits.npz")[name]) for name in ("logits", "perm"))
EMBEDDINGS = {name: torch.from_numpy(rows) for name, rows in np.load(METRICS / "embeddings.npz").items()}
IMAGES, TEXTS, REFERENCES = (EMBEDDINGS[name] for name in ("clip_image", "clip_text", "clip_refs"))
FAKE = torch.from_numpy(np.load(METRICS / "features.npz")["fake"])
CONVENTIONS = {  # by the number of the golden's result
    0: {"splits": proportional_splits(1003), "order": ORDER},
    1: {"splits": proportional_splits(1003)},
    2: {"splits": [slice(None)]},
    3: {"splits": [slice(100 * i, 100 * i + 100) for i in range(10)], "order": ORDER},
    4: {"splits": proportional_splits(1003)},
    5: {"splits": adm_splits(1003, 101), "order": ORDER, "correction": 1},
    6: {"splits": adm_splits(1003, 100)},
    7: {"splits": adm_splits(1003)},
}


@pytest.mark.parametrize("number", CONVENTIONS)
def test_inception_scores_of_all_conventions_meet_the_goldens(golden_json, number):
    stored = golden_json("metrics/inception_score")["results"]
    assert len(stored) == len(CONVENTIONS)
    found = inception_score(LOGITS, **CONVENTIONS[number])
    assert found.mean == pytest.approx(stored[number]["mean"], rel=1e-12)
    if stored[number]["std"] is not None:
        assert found.std == pytest.approx(stored[number]["std"], rel=1e-11, abs=1e-12)


def test_the_score_is_the_sums_written_out():
    rows = LOGITS[:9].double().tolist()
    p = [[math.exp(z) / sum(map(math.exp, row)) for z in row] for row in rows]
    marginal = [sum(column) / 9 for column in zip(*p, strict=True)]
    divergence = sum(a * math.log(a / m) for row in p for a, m in zip(row, marginal, strict=True)) / 9
    assert inception_score(LOGITS[:9], [slice(None)]).mean == pytest.approx(math.exp(divergence), rel=1e-12)


@pytest.mark.parametrize("factor", [60.0, 1e4])
def test_sure_and_balanced_answers_score_the_number_of_classes(factor):
    sure = torch.eye(24).repeat(5, 1) * factor
    assert inception_score(sure, [slice(None)]).mean == pytest.approx(24, rel=1e-12)
    # In order of classes each split sees few of them: why ADM's convention wants shuffled samples.
    assert inception_score(sure.sort(0).values, adm_splits(120, 5)).mean < 24
    assert inception_score(torch.eye(24).repeat_interleave(5, 0) * factor, adm_splits(120, 5)).mean == pytest.approx(1)


def test_answers_that_are_all_equal_score_1():
    assert inception_score(LOGITS[:1].expand(50, -1), proportional_splits(50)).mean == pytest.approx(1, rel=1e-12)


def test_splits_cover_all_rows_once():
    for splits in (adm_splits(12_003), proportional_splits(1003)):
        numbers = [i for split in splits for i in range(12_003)[split]]
        assert numbers == list(range(len(numbers)))
    assert [s.stop - s.start for s in adm_splits(12_003)] == [5000, 5000, 2003]
    assert {s.stop - s.start for s in proportional_splits(1003)} == {100, 101}


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"splits": proportional_splits(5)}, r"none empty, found sizes \[0, 1, 0"),
        ({"splits": []}, "more than 0 splits"),
        ({"splits": [slice(None)], "correction": 1}, "more than 1 splits"),
        ({"splits": [slice(None)], "order": torch.zeros(5, dtype=torch.int64)}, "not a permutation of the 5 rows"),
    ],
)
def test_an_inception_score_without_meaning_is_refused(settings, message):
    with pytest.raises(DataError, match=message):
        inception_score(LOGITS[:5], **settings)


def test_clipscores_meet_the_goldens(golden_json):
    stored = golden_json("metrics/clipscore")
    paper, percent, cosine, clipped, percent_clipped, references = (r["value"] for r in stored["results"])
    found = cosines(IMAGES, TEXTS)
    torch.testing.assert_close(
        found, torch.tensor(stored["per_sample_cosine"], dtype=torch.float64), rtol=0, atol=1e-12
    )
    assert int((found < 0).sum()) == stored["n_negative"]
    assert float(clipscore(IMAGES, TEXTS).mean()) == pytest.approx(paper, abs=1e-12)
    assert max(0.0, 100 * float(found.mean())) == pytest.approx(percent, abs=1e-9)
    assert float(found.mean()) == pytest.approx(cosine, abs=1e-12)
    assert float(clipscore(IMAGES, TEXTS).mean()) / 2.5 == pytest.approx(clipped, abs=1e-12)
    assert float(found.clamp(min=0).mean()) * 100 == pytest.approx(percent_clipped, abs=1e-9)
    released = ref_clipscore(IMAGES, TEXTS, REFERENCES, clipped=False)
    assert float(released.mean()) == pytest.approx(references[0], abs=1e-12)


def test_an_image_beside_its_text_scores_one_and_against_it_minus_one():
    assert cosines(TEXTS * 3, TEXTS).tolist() == pytest.approx([1.0] * 64, abs=1e-12)
    assert cosines(-TEXTS, TEXTS * 0.1).tolist() == pytest.approx([-1.0] * 64, abs=1e-12)
    assert clipscore(-TEXTS, TEXTS).sum() == 0


def test_ref_clipscore_is_the_harmonic_mean_and_0_where_either_is():
    image, text = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.6, 0.8]])
    near, far = torch.tensor([[[0.0, 1.0], [-1.0, 0.0]]]), torch.tensor([[[0.0, -1.0], [-1.0, 0.0]]])
    harmonic = 2 / (1 / (2.5 * 0.6) + 1 / 0.8)  # CLIP-S 1.5, the best reference's cosine 0.8
    assert float(ref_clipscore(image, text, near)) == pytest.approx(harmonic, rel=1e-6)
    assert float(ref_clipscore(image, text, far)) == 0
    assert float(ref_clipscore(-image, text, near)) == 0


@pytest.mark.parametrize(
    "images, texts, message",
    [
        (IMAGES[:9], TEXTS, "9 images and 64 texts"),
        (IMAGES[:, :9], TEXTS, "embeddings of images are 9 wide, embeddings of texts 32"),
        (torch.zeros_like(IMAGES), TEXTS, "embeddings of images: row 0 is all zeros"),
    ],
)
def test_what_has_no_cosine_is_refused(images, texts, message):
    for found in (cosines, clipscore):
        with pytest.raises(DataError, match=message):
            found(images, texts)


@pytest.mark.parametrize("references", [REFERENCES[:9], REFERENCES[:, :, :5], REFERENCES[:, :0], TEXTS])
def test_references_of_another_shape_are_refused(references):
    with pytest.raises(DataError, match="embeddings of references: expected"):
        ref_clipscore(IMAGES, TEXTS, references)


def test_vendi_scores_meet_the_goldens(golden_json):
    *linear, polynomial = (r["value"] for r in golden_json("metrics/vendi_misc")["results"])
    for stored in linear:
        assert vendi_score(FAKE) == pytest.approx(stored, abs=1e-9)
    units = torch.nn.functional.normalize(FAKE.double())
    assert vendi_of((units @ units.T / 64 + 1) ** 3 / 512) == pytest.approx(polynomial, abs=1e-9)


def test_vendi_counts_different_directions():
    assert vendi_score(torch.eye(7).repeat(5, 1)) == pytest.approx(7, rel=1e-12)
    assert vendi_score(torch.eye(7)[:4]) == pytest.approx(4, rel=1e-12)
    assert vendi_score(FAKE[:1].expand(30, -1)) == pytest.approx(1, abs=1e-9)


def test_vendi_is_the_same_by_rows_and_by_features():
    units = torch.nn.functional.normalize(FAKE.double())
    assert vendi_of(units @ units.T / 512) == pytest.approx(vendi_of(units.T @ units / 512), rel=1e-9)
    wide = torch.nn.functional.normalize(FAKE[:20].double())
    assert vendi_score(FAKE[:20]) == pytest.approx(vendi_of(wide.T @ wide / 20), rel=1e-9)
