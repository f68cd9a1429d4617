from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pixelspace.errors import DataError
from pixelspace.evaluation.frechet import frechet_distance, frechet_infinity, infinity_sizes
from pixelspace.evaluation.stats import Moments, moments

METRICS = Path(__file__).parents[1] / "goldens/metrics"
FEATURES = {name: torch.from_numpy(rows) for name, rows in np.load(METRICS / "features.npz").items()}
REAL, FAKE, SMALL = FEATURES["real"], FEATURES["fake"], FEATURES["fake_small"]
# The golden's factor: features scaled in float32 are rounded anew, so the value is not quite a millionth.
CASES = {
    "real_vs_fake": (REAL, FAKE, 1e-7),
    "real_vs_fake_small": (REAL, SMALL, 1e-7),
    "rank_deficient_n40": (REAL[:40], FAKE[:40], 1e-9),
    "scaled_1e-3": (REAL * 1e-3, FAKE * 1e-3, 1e-7),
}


def gaussian(mean, cov):
    return Moments(0, torch.tensor(mean, dtype=torch.float64), torch.as_tensor(cov, dtype=torch.float64))


def by_square_roots(a: Moments, b: Moments) -> float:
    values, vectors = torch.linalg.eigh(a.cov)
    root = vectors @ values.clamp(min=0).sqrt().diag() @ vectors.T
    inner = torch.linalg.eigvalsh(root @ b.cov @ root).clamp(min=0).sqrt().sum()
    return float((a.mean - b.mean).square().sum() + a.cov.trace() + b.cov.trace() - 2 * inner)


@pytest.mark.parametrize("rows", [REAL, REAL * 1e-3, REAL + 100, REAL[:40], REAL[:2], SMALL])
def test_equal_sets_are_at_distance_0(rows):
    found = moments([rows])
    assert abs(frechet_distance(found, found)) < 1e-8 * float(found.cov.trace())
    assert abs(frechet_distance(found, found)) < 1e-7


def test_diagonal_gaussians_meet_the_closed_form():
    generator = torch.Generator().manual_seed(0)
    (ma, mb), (sa, sb) = (torch.rand(2, 30, generator=generator, dtype=torch.float64) for _ in range(2))
    distance = frechet_distance(Moments(0, ma, (sa * sa).diag()), Moments(0, mb, (sb * sb).diag()))
    assert distance == pytest.approx(float((ma - mb).square().sum() + (sa - sb).square().sum()), rel=1e-9)


def test_one_feature_is_the_distance_of_two_bells():
    assert frechet_distance(gaussian([1.0], [[4.0]]), gaussian([-2.0], [[9.0]])) == pytest.approx(9 + 1, rel=1e-11)


def test_two_points_are_at_the_square_of_their_distance():
    point = gaussian([0.0, 0.0], torch.zeros(2, 2))
    assert frechet_distance(point, gaussian([3.0, 4.0], torch.zeros(2, 2))) == 25
    assert frechet_distance(point, gaussian([3.0, 4.0], torch.eye(2))) == 27
    assert frechet_distance(gaussian([3.0, 4.0], torch.eye(2)), point) == 27


def test_images_that_are_all_equal_have_a_distance():
    same = moments([REAL[:1].expand(9, -1)])
    real = moments([REAL])
    expected = float((same.mean - real.mean).square().sum() + real.cov.trace())
    assert frechet_distance(same, real) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(real, same) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(same, same) == 0


@pytest.mark.parametrize("case", CASES)
def test_distances_meet_the_goldens_both_ways_round(golden_json, case):
    stored = golden_json("metrics/fd")["cases"][case]["recommended"]
    real, fake, rel = CASES[case]
    assert frechet_distance(moments([real]), moments([fake])) == pytest.approx(stored, rel=rel)
    assert frechet_distance(moments([fake]), moments([real])) == pytest.approx(stored, rel=rel)


def test_stored_statistics_meet_the_golden(golden_json):
    stored = np.load(METRICS / "fd_stats.npz")
    real, fake = (gaussian(stored[f"{side}_mu"], stored[f"{side}_sigma"]) for side in ("real", "fake"))
    found = frechet_distance(real, fake)
    assert found == pytest.approx(golden_json("metrics/fd")["cases"]["real_vs_fake"]["recommended"], rel=1e-7)


def test_distances_are_those_by_square_roots():
    real, fake = moments([REAL]), moments([FAKE])
    assert frechet_distance(real, fake) == pytest.approx(by_square_roots(real, fake), rel=1e-7)


def test_distances_are_the_nuclear_norm_of_the_rows():
    x, y = REAL[:50].double(), FAKE[:80].double()
    across = torch.linalg.svdvals((x - x.mean(0)) @ (y - y.mean(0)).T).sum() / (49 * 79) ** 0.5
    spread = x.var(0).sum() + y.var(0).sum()
    expected = float((x.mean(0) - y.mean(0)).square().sum() + spread - 2 * across)
    assert frechet_distance(moments([x]), moments([y])) == pytest.approx(expected, rel=1e-6)  # x spans 49 of 64


def test_features_times_a_factor_are_at_its_square_times_the_distance():
    real, fake = REAL.double(), FAKE.double()
    whole = frechet_distance(moments([real]), moments([fake]))
    for factor in (1e-3, 1e-6, 1e4):
        scaled = frechet_distance(moments([real * factor]), moments([fake * factor]))
        assert scaled / factor**2 == pytest.approx(whole, rel=1e-8)


def test_a_covariance_that_rounding_made_indefinite_is_taken():
    rough = moments([REAL[:40]])
    rough = replace(rough, cov=rough.cov.float().double())  # as some statistics files keep it
    assert torch.linalg.eigvalsh(rough.cov)[0] < -1e-9
    exact, fake = frechet_distance(moments([REAL[:40]]), moments([FAKE])), moments([FAKE])
    assert frechet_distance(rough, fake) == pytest.approx(exact, rel=1e-4)
    assert frechet_distance(fake, rough) == pytest.approx(exact, rel=1e-4)


def test_fd_infinity_meets_the_golden(golden_json):
    stored = golden_json("metrics/fd")["fd_infinity"]
    found = frechet_infinity(FAKE, moments([REAL]), seed=None)
    assert list(found.sizes) == stored["batch_sizes"]
    assert found.distances == pytest.approx(stored["fd_n"], rel=2e-6)
    assert found.value == pytest.approx(stored["dgm_eval"], rel=2e-6)


def test_fd_infinity_is_a_function_of_the_seed():
    real = moments([REAL])
    found = frechet_infinity(FAKE, real, seed=1)
    assert frechet_infinity(FAKE, real, seed=1).distances == pytest.approx(found.distances, rel=1e-9)
    # All sizes but the last, which has all rows, see others.
    others = zip(frechet_infinity(FAKE, real, seed=2).distances, found.distances, strict=True)
    assert [abs(a - b) > 1e-3 for a, b in others] == [True] * 14 + [False]


def test_fd_infinity_takes_the_bias_of_few_rows_away():
    law = gaussian([0.0] * 8, torch.eye(8))
    sets = [torch.randn(1500, 8, generator=torch.Generator().manual_seed(i)) for i in range(30)]
    found = [frechet_infinity(rows, law, seed=i) for i, rows in enumerate(sets)]
    biased = sum(each.distances[-1] for each in found) / 30
    assert biased > 0.01  # though the rows are of the very law
    assert abs(sum(each.value for each in found) / 30) < 0.25 * biased


@pytest.mark.parametrize("count, first, second", [(50_000, 5000, 8214), (100_000, 5000, 11785), (3000, 300, 492)])
def test_sizes_go_from_a_tenth_or_5000_to_all(count, first, second):
    sizes = infinity_sizes(count)
    assert (len(sizes), sizes[0], sizes[1], sizes[-1]) == (15, first, second, count)


def test_fd_infinity_needs_rows():
    with pytest.raises(DataError, match="20 rows or more are needed, found 19"):
        frechet_infinity(FAKE[:19], moments([REAL]))


@pytest.mark.parametrize(
    "bad, message",
    [
        (gaussian([0.0], [[1.0]]), "1 and of 2 features"),
        (gaussian([0.0, 0.0], [[1.0]]), "expected a mean"),
        (gaussian([0.0, float("nan")], torch.eye(2)), r"the mean is not finite at \[1\]"),
        (gaussian([0.0, 0.0], [[1.0, 0.0], [float("inf"), 1.0]]), r"the covariance is not finite at \[1, 0\]"),
        (gaussian([0.0, 0.0], [[1.0, 0.5], [0.0, 1.0]]), "not symmetric"),
        (gaussian([0.0, 0.0], [[1.0, 0.0], [0.0, -1.0]]), "negative variances"),
    ],
)
def test_what_is_no_statistics_is_refused(bad, message):
    with pytest.raises(DataError, match=message):
        frechet_distance(bad, gaussian([0.0, 0.0], torch.eye(2)))
