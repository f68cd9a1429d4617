from pathlib import Path

import numpy as np
import pytest
import torch

from pixelspace.errors import DataError
from pixelspace.evaluation.sliced import mind, sliced_wasserstein

METRICS = Path(__file__).parents[1] / "goldens/metrics"
FEATURES = {name: torch.from_numpy(rows) for name, rows in np.load(METRICS / "features.npz").items()}
REAL, FAKE, SMALL = FEATURES["real"], FEATURES["fake"], FEATURES["fake_small"]


def test_both_meet_the_goldens(golden_json):
    stored = golden_json("metrics/vendi_misc")
    assert sliced_wasserstein(FAKE, REAL) == pytest.approx(stored["sliced_w_approx"]["value"], abs=1e-9)
    reference = stored["mind"]["value"]["monge_inception_distance"]
    assert mind(FAKE, REAL, projections=64) == pytest.approx(reference, rel=1e-6)  # float32 there


@pytest.mark.parametrize("found", [mind, sliced_wasserstein])
def test_a_set_is_at_distance_0_of_itself_in_any_order(found):
    assert found(REAL, REAL.flip(0)) == pytest.approx(0, abs=1e-12)


def test_one_feature_is_the_mean_squared_gap_of_sorted_numbers():
    x, y = torch.tensor([[3.0], [1.0], [2.0]]), torch.tensor([[2.0], [7.0], [5.0]])
    assert mind(x, y, projections=5) == pytest.approx(3 * (1 + 9 + 16) / 3, rel=1e-12)


def test_a_shift_is_three_times_its_squared_length():
    shift = torch.linspace(-1, 1, 64, dtype=torch.float64)
    assert mind(REAL + shift, REAL, projections=20_000) == pytest.approx(3 * float(shift @ shift), rel=0.03)
    assert sliced_wasserstein(REAL + shift, REAL) == pytest.approx(float(shift.square().mean()) ** 0.5, rel=1e-9)


def test_sizes_must_be_equal_for_mind_only():
    with pytest.raises(DataError, match="found 300 and 512"):
        mind(SMALL, REAL)
    assert sliced_wasserstein(SMALL, REAL) > 0
