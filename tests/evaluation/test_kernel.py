import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from pixelspace.errors import DataError, UserError
from pixelspace.evaluation import kernel
from pixelspace.evaluation.kernel import cmmd, kid, kid_of, polynomial_mmd, rbf_mmd

METRICS = Path(__file__).parents[1] / "goldens/metrics"
FEATURES = {name: torch.from_numpy(rows) for name, rows in np.load(METRICS / "features.npz").items()}
REAL, FAKE, SMALL = FEATURES["real"], FEATURES["fake"], FEATURES["fake_small"]
EMBEDDINGS = {name: torch.from_numpy(rows) for name, rows in np.load(METRICS / "embeddings.npz").items()}
X, Y = EMBEDDINGS["cmmd_x"], EMBEDDINGS["cmmd_y"]


def written_out(x, y, k, biased) -> float:
    """MMD² by double loops over pairs of rows."""
    x, y = x.double().tolist(), y.double().tolist()

    def mean_within(rows):
        pairs = [k(a, b) for i, a in enumerate(rows) for j, b in enumerate(rows) if biased or i != j]
        return sum(pairs) / len(pairs)

    return mean_within(x) + mean_within(y) - 2 * sum(k(a, b) for a in x for b in y) / (len(x) * len(y))


def cubic(a, b):
    return (sum(p * q for p, q in zip(a, b, strict=True)) / len(a) + 1) ** 3


def wide(a, b):
    return math.exp(-sum((p - q) ** 2 for p, q in zip(a, b, strict=True)) / (2 * 10.0**2))


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("found, k", [(polynomial_mmd, cubic), (rbf_mmd, wide)])
def test_mmd_is_the_sums_written_out_for_sets_of_unequal_size(found, k, biased):
    x, y = REAL[:23], FAKE[:17]
    assert found(x, y, biased=biased) == pytest.approx(written_out(x, y, k, biased), rel=1e-10, abs=1e-13)


@pytest.mark.parametrize("found", [polynomial_mmd, rbf_mmd, cmmd])
def test_equal_sets_are_at_distance_0_and_sets_may_change_places(found):
    assert found(REAL, REAL, biased=True) == pytest.approx(0, abs=1e-9)
    assert found(REAL, SMALL) == pytest.approx(found(SMALL, REAL), rel=1e-12)


def test_the_widest_kernel_is_the_squared_gap_of_means_though_it_is_1_to_rounding():
    gap = float((REAL.double().mean(0) - FAKE.double().mean(0)).square().sum())
    assert rbf_mmd(FAKE, REAL, sigma=1e7, biased=True) * 1e14 == pytest.approx(gap, rel=1e-9)


@pytest.mark.parametrize("found", [polynomial_mmd, rbf_mmd, cmmd])
@pytest.mark.parametrize("biased", [True, False])
def test_tiles_do_not_change_mmd(monkeypatch, found, biased):
    whole = found(REAL, SMALL, biased=biased)
    monkeypatch.setattr(kernel, "TILE", 37)
    assert found(REAL, SMALL, biased=biased) == pytest.approx(whole, rel=1e-10)


def test_the_unbiased_mmd_is_0_in_the_mean_over_draws_of_one_law():
    generator = torch.Generator().manual_seed(0)
    draws = [torch.randn(2, 20, 4, generator=generator) for _ in range(400)]
    values = torch.tensor([polynomial_mmd(x, y) for x, y in draws])
    assert abs(values.mean()) < 3 * values.std() / 20
    assert min(polynomial_mmd(x, y, biased=True) for x, y in draws) > 0


def test_mmd_meets_the_goldens(golden_json):
    stored = golden_json("metrics/kid")
    assert polynomial_mmd(FAKE, REAL, biased=True) == pytest.approx(stored["biased_full_set"]["value"], abs=1e-12)
    assert polynomial_mmd(FAKE, REAL) == pytest.approx(stored["unbiased_full_set"]["value"], abs=1e-12)
    assert polynomial_mmd(SMALL, REAL) == pytest.approx(stored["unequal_sizes"]["value"], abs=1e-12)
    assert rbf_mmd(FAKE, REAL) == pytest.approx(stored["rbf_sigma10"]["value"], abs=1e-12)


def test_k_diffusions_contiguous_parts_meet_the_golden(golden_json):
    bounds = [round(i * 512 / 3) for i in range(4)]
    parts = [slice(a, b) for a, b in itertools.pairwise(bounds)]
    mean = sum(polynomial_mmd(FAKE[part], REAL[part]) for part in parts) / 3
    assert mean == pytest.approx(golden_json("metrics/kid")["k_diffusion_partition"]["value"], abs=1e-12)


def test_kid_of_stored_subsets_meets_the_golden(golden_json):
    stored = golden_json("metrics/kid")
    found = kid_of(FAKE, REAL, (FEATURES["kid_idx_fake"].long(), FEATURES["kid_idx_real"].long()))
    assert found.mean == pytest.approx(stored["recommended_mean"], abs=1e-12)
    assert found.std == pytest.approx(stored["recommended_std"], abs=1e-12)
    per_subset = stored["per_subset"]["torchmetrics 1.9.0 poly_mmd float64"]
    assert found.subsets == pytest.approx(per_subset, abs=1e-12)


def test_kid_of_torch_fidelitys_own_subsets_meets_the_golden(golden_json):
    stored = golden_json("metrics/kid")["torch_fidelity_own_sampling"]
    state = np.random.RandomState(2020)
    draws = [torch.from_numpy(state.choice(512, 100, replace=False)) for _ in range(40)]
    found = kid_of(REAL, FAKE, (torch.stack(draws[::2]), torch.stack(draws[1::2])))
    assert found.mean == pytest.approx(stored["kernel_inception_distance_mean"], abs=1e-5)  # float32 there
    assert found.std == pytest.approx(stored["kernel_inception_distance_std"], abs=1e-5)


def test_kid_is_a_function_of_the_seed():
    found = kid(FAKE, REAL, subsets=6, size=50, seed=4)
    assert kid(FAKE, REAL, subsets=6, size=50, seed=4).subsets == pytest.approx(found.subsets, rel=1e-9)
    assert kid(FAKE, REAL, subsets=3, size=50, seed=4).subsets == pytest.approx(found.subsets[:3], rel=1e-9)
    values = found.subsets + kid(FAKE, REAL, subsets=6, size=50, seed=5).subsets
    assert min(abs(a - b) for a, b in itertools.combinations(values, 2)) > 1e-6


def test_kid_of_all_rows_is_the_unbiased_mmd():
    found = kid(SMALL, SMALL + 0.1, subsets=3, size=300)
    assert found.mean == pytest.approx(polynomial_mmd(SMALL, SMALL + 0.1), rel=1e-12)
    assert found.std < 1e-12


@pytest.mark.parametrize("sets, name", [((SMALL, REAL), "generated"), ((REAL, SMALL), "reference")])
def test_kid_needs_a_subset_of_each_set(sets, name):
    with pytest.raises(DataError, match=f"{name} features: 400 rows or more are needed, found 300"):
        kid(*sets, size=400)


@pytest.mark.parametrize("settings", [{"subsets": 0}, {"size": 1}])
def test_kid_needs_subsets_with_pairs(settings):
    with pytest.raises(UserError, match="KID"):
        kid(FAKE, REAL, **settings)


def test_cmmd_meets_the_goldens(golden_json):
    stored = golden_json("metrics/cmmd")
    assert cmmd(X, Y) == pytest.approx(stored["recommended"], abs=1e-9)
    assert cmmd(X[:128], X[128:]) == pytest.approx(stored["half_vs_half_null"]["value"], abs=1e-9)
    trap = 1000 * rbf_mmd(X, Y, biased=True)
    assert trap == pytest.approx(stored["unnormalised_trap"]["value"], abs=1e-9)


def test_cmmd_is_ten_times_the_squared_gap_of_means_to_first_order(golden_json):
    x, y = (torch.nn.functional.normalize(rows.double()) for rows in (X, Y))
    gap = 10 * float((x.mean(0) - y.mean(0)).square().sum())
    assert gap == pytest.approx(golden_json("metrics/cmmd")["sanity_10_times_mean_gap"]["value"], abs=1e-7)
    assert cmmd(X, Y) == pytest.approx(gap, rel=5e-3)


def test_cmmd_knows_directions_only():
    scale = torch.linspace(0.1, 9, len(X), dtype=torch.float64)[:, None]
    assert cmmd(X * scale, Y) == pytest.approx(cmmd(X, Y), abs=1e-12)


def test_the_unbiased_cmmd_of_one_law_is_nearer_0():
    assert abs(cmmd(X[:128], X[128:], biased=False)) < 0.1 * cmmd(X[:128], X[128:])


def with_nan(rows):
    rows = rows.clone()
    rows[7, 2] = float("nan")
    return rows


@pytest.mark.parametrize("found", [polynomial_mmd, rbf_mmd, cmmd, kid])
@pytest.mark.parametrize(
    "x, y, message",
    [
        (REAL[:1], REAL, "rows or more are needed, found 1"),
        (REAL, X.repeat(4, 1), "64 wide, reference features 48"),
        (with_nan(REAL).repeat(2, 1), REAL.repeat(2, 1), "generated features: row 7 is not finite"),
        (REAL.repeat(2, 1), with_nan(REAL).repeat(2, 1), "reference features: row 7 is not finite"),
        (REAL[0], REAL, r"found the shape \(64,\)"),
    ],
)
def test_what_cannot_be_compared_is_refused(found, x, y, message):
    with pytest.raises(DataError, match=message):
        found(x, y) if found is not kid else found(x, y, size=512)


def test_a_row_of_zeros_has_no_direction():
    rows = X.clone()
    rows[3] = 0
    with pytest.raises(DataError, match="reference features: row 3 is all zeros"):
        cmmd(X, rows)
