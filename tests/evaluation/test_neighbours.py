from pathlib import Path

import numpy as np
import pytest
import torch

from pixelspace.errors import DataError, UserError
from pixelspace.evaluation import neighbours
from pixelspace.evaluation.neighbours import Manifolds, authenticity, manifolds, realism

METRICS = Path(__file__).parents[1] / "goldens/metrics"
FEATURES = {name: torch.from_numpy(rows) for name, rows in np.load(METRICS / "features.npz").items()}
REAL, FAKE, SMALL = FEATURES["real"], FEATURES["fake"], FEATURES["fake_small"]


def written_out(generated, reference, k) -> Manifolds:
    """By double loops over distances from the differences of rows."""
    made, real = generated.double(), reference.double()

    def distance(a, b):
        return float(((a - b) ** 2).sum()) ** 0.5

    def radii(rows):
        return [sorted(distance(a, b) for j, b in enumerate(rows) if j != i)[k - 1] for i, a in enumerate(rows)]

    of_real, of_made = radii(real), radii(made)
    across = [[distance(r, g) for g in made] for r in real]
    precision = sum(any(across[i][j] <= of_real[i] for i in range(len(real))) for j in range(len(made)))
    recall = sum(any(across[i][j] <= of_made[j] for j in range(len(made))) for i in range(len(real)))
    inside = sum(across[i][j] < of_real[i] for i in range(len(real)) for j in range(len(made)))
    covered = sum(min(across[i]) < of_real[i] for i in range(len(real)))
    return Manifolds(precision / len(made), recall / len(real), inside / (k * len(made)), covered / len(real))


def close(a: Manifolds, b: Manifolds, tolerance=1e-12):
    for name in ("precision", "recall", "density", "coverage"):
        assert getattr(a, name) == pytest.approx(getattr(b, name), abs=tolerance), name


@pytest.mark.parametrize("k", [1, 3, 5])
def test_equal_sets_cover_each_other_wholly(k):
    close(manifolds(REAL, REAL, k), Manifolds(1, 1, 1, 1))


def test_sets_far_apart_do_not_touch():
    close(manifolds(FAKE + 100, REAL), Manifolds(0, 0, 0, 0))


def test_points_on_a_line_meet_the_closed_form():
    reference = torch.tensor([[0.0], [1.0], [3.0], [7.0]])  # radii for k = 1: 1, 1, 2, 4
    generated = torch.tensor([[2.0], [-1.0], [20.0]])  # radii 3, 3, 18
    # 2 is on the surface of 1's ball and inside those of 3 (1 < 2) but not of 7 (5 > 4); -1 on the surface of 0's.
    close(manifolds(generated, reference, 1), Manifolds(2 / 3, 1, 1 / 3, 1 / 4))


@pytest.mark.parametrize("k", [1, 3, 5])
def test_manifolds_are_the_loops_written_out_for_sets_of_unequal_size(k):
    close(manifolds(FAKE[:31], REAL[:24], k), written_out(FAKE[:31], REAL[:24], k))


@pytest.mark.parametrize("k", [3, 5])
@pytest.mark.parametrize("name, generated", [("fake", FAKE), ("fake_small", SMALL)])
def test_manifolds_meet_the_goldens(golden_json, k, name, generated):
    found = manifolds(generated, REAL, k)
    stored = [r for r in golden_json("metrics/prdc")["results"] if r["settings"].startswith(f"k={k}, {name},")]
    assert len(stored) >= 2
    for result in stored:
        for metric in {"precision", "recall", "density", "coverage"} & result.keys():
            assert getattr(found, metric) == pytest.approx(result[metric], abs=1e-12), result["impl"]
        if "realism_mean" in result:
            assert float(realism(generated, REAL, k).mean()) == pytest.approx(result["realism_mean"], abs=1e-12)


@pytest.mark.parametrize("tile", [37, 100, 300])
def test_tiles_do_not_change_what_is_found(monkeypatch, tile):
    before = manifolds(SMALL, REAL), realism(SMALL, REAL), authenticity(SMALL, REAL)
    monkeypatch.setattr(neighbours, "TILE", tile)
    close(manifolds(SMALL, REAL), before[0])
    torch.testing.assert_close(realism(SMALL, REAL), before[1], rtol=1e-12, atol=0)
    assert authenticity(SMALL, REAL) == before[2]


@pytest.mark.parametrize("factor", [1e-6, 1e-3, 1e4])
def test_scale_does_not_matter(factor):
    close(manifolds(FAKE.double() * factor, REAL.double() * factor), manifolds(FAKE, REAL))


def adm(golden_json, start):
    return next(
        r
        for r in golden_json("metrics/prdc")["results"]
        if r["impl"].startswith("guided-diffusion") and r["settings"].startswith(start)
    )


@pytest.mark.parametrize("name, generated", [("fake", FAKE), ("fake_small", SMALL)])
def test_adms_float16_is_near_its_evaluator(golden_json, name, generated):
    stored, found = adm(golden_json, f"{name}; as shipped"), manifolds(generated, REAL, arithmetic="adm")
    # TensorFlow's order of float16 sums on a CPU is its own: two points of 512, or of 300, fall otherwise.
    assert found.precision == pytest.approx(stored["precision"], abs=0.005)
    assert found.recall == pytest.approx(stored["recall"], abs=0.005)
    assert found != manifolds(generated, REAL)


@pytest.mark.parametrize("name, generated", [("fake", FAKE), ("fake_small", SMALL)])
def test_adms_overflow_falls_back_to_float32(golden_json, name, generated):
    stored = adm(golden_json, f"{name}; features*1024")
    found = manifolds(generated * 1024, REAL * 1024, arithmetic="adm")
    assert (found.precision, found.recall) == pytest.approx((stored["precision"], stored["recall"]), abs=1e-12)


def test_images_that_are_all_equal_lie_on_each_others_balls():
    same = REAL[:1].expand(9, -1)
    close(manifolds(same, same), Manifolds(1, 1, 0, 0))  # radii are 0: on the surface, not inside
    assert (realism(same, same) == 1).all()


def test_copies_are_at_distance_0():
    copies = REAL[:40].repeat(4, 1)
    assert manifolds(copies, copies).precision == 1  # balls have the radius 0
    assert manifolds(copies * 1.001, copies).precision == 0
    assert (realism(copies, copies) == 1).all()


def test_realism_is_the_ratio_written_out():
    made, real = FAKE[:20].double(), REAL[:31].double()
    radii = torch.cdist(real, real, compute_mode="donot_use_mm_for_euclid_dist").sort(1).values[:, 3]
    small = radii <= radii.sort().values[15]
    for row, found in zip(made, realism(made, real, 3), strict=True):
        ratios = [float(r / (row - c).norm()) for r, c in zip(radii[small], real[small], strict=True)]
        assert float(found) == pytest.approx(max(ratios), rel=1e-12)


def test_authenticity_meets_the_golden(golden_json):
    assert authenticity(FAKE, REAL) == golden_json("metrics/prdc")["authpct"]["value"]


def test_copies_are_not_authentic():
    assert authenticity(REAL[:100], REAL) == 0
    with pytest.raises(DataError, match="training features: 2 rows or more"):
        authenticity(REAL, REAL[:1])
    assert authenticity(torch.cat([REAL[:100], FAKE[:100] + 50]), REAL) == 50


@pytest.mark.parametrize("found", [manifolds, realism])
def test_what_cannot_be_compared_is_refused(found):
    bad = FAKE.clone()
    bad[9, 1] = float("inf")
    for generated, reference, message in (
        (FAKE[:3], REAL, "generated features: 4 rows or more are needed, found 3"),
        (FAKE, REAL[:3], "reference features: 4 rows or more are needed, found 3"),
        (bad, REAL, "generated features: row 9 is not finite"),
        (FAKE[:, :9], REAL, "9 wide, reference features 64"),
    ):
        with pytest.raises(DataError, match=message):
            found(generated, reference)
    with pytest.raises(UserError, match="k: expected"):
        found(FAKE, REAL, 0)
