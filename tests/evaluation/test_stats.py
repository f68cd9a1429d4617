from pathlib import Path

import numpy as np
import pytest
import torch

from pixelspace.errors import DataError
from pixelspace.evaluation.frechet import frechet_distance
from pixelspace.evaluation.stats import Accumulator, moments

METRICS = Path(__file__).parents[1] / "goldens/metrics"
FEATURES = {name: torch.from_numpy(rows) for name, rows in np.load(METRICS / "features.npz").items()}
ROWS = torch.randn(101, 7, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 3 + 2


def close(a, b):
    torch.testing.assert_close(a.mean, b.mean, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(a.cov, b.cov, rtol=1e-12, atol=1e-12)
    assert a.count == b.count


def test_moments_are_the_sums_written_out():
    found = moments([ROWS])
    mean = [sum(float(row[i]) for row in ROWS) / 101 for i in range(7)]
    for i in range(7):
        assert float(found.mean[i]) == pytest.approx(mean[i], rel=1e-13)
        for j in range(7):
            products = [(float(row[i]) - mean[i]) * (float(row[j]) - mean[j]) for row in ROWS]
            assert float(found.cov[i, j]) == pytest.approx(sum(products) / 100, rel=1e-12, abs=1e-13)


@pytest.mark.parametrize("side", ["real", "fake"])
def test_moments_meet_the_golden(side):
    stored = np.load(METRICS / "fd_stats.npz")
    found = moments([FEATURES[side]])
    torch.testing.assert_close(found.mean, torch.from_numpy(stored[f"{side}_mu"]), rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(found.cov, torch.from_numpy(stored[f"{side}_sigma"]), rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize("batch", [1, 2, 10, 100, 101, 1000])
def test_batches_and_empty_ones_do_not_change_moments(batch):
    close(moments([ROWS[:0], *ROWS.split(batch), ROWS[:0]]), moments([ROWS]))


def test_the_order_does_not_change_moments():
    order = torch.randperm(101, generator=torch.Generator().manual_seed(2))
    close(moments(ROWS[order].split(13)), moments([ROWS]))


@pytest.mark.parametrize("world", [2, 3, 8, 150])
def test_ranks_that_share_rows_out_merge_to_all_of_them(world):
    whole = Accumulator()
    for rank in reversed(range(world)):
        own = Accumulator()
        for part in ROWS[rank::world].split(4):
            own.add(part)
        whole.merge(own)
    close(whole.moments(), moments([ROWS]))


def test_merging_leaves_the_other_as_it_was():
    one, other, alone = Accumulator(), Accumulator(), Accumulator()
    other.add(ROWS[:50])
    alone.add(ROWS[:50])
    one.merge(other)
    one.add(ROWS[50:])
    close(other.moments(), alone.moments())


def test_an_offset_of_100_in_float32_costs_nothing(golden_json):
    stored = golden_json("metrics/fd")["offset_100"]
    real, fake = (moments((FEATURES[side] + 100).split(33)) for side in ("real", "fake"))
    assert frechet_distance(real, fake) == pytest.approx(stored["two_pass_float64"], rel=1e-7)
    assert abs(frechet_distance(real, fake) - stored["raw_moment_stream_float32_BAD"]) > 0.05


def test_a_nan_is_refused_by_the_number_of_its_row():
    sums = Accumulator()
    sums.add(ROWS[:60])
    bad = ROWS[60:].clone()
    bad[5, 3] = float("nan")
    with pytest.raises(DataError, match="row 65 is not finite"):
        sums.add(bad)
    sums.add(ROWS[60:])
    close(sums.moments(), moments([ROWS]))


@pytest.mark.parametrize("rows", [ROWS[:, :1], ROWS[:, :3], ROWS[0], ROWS[:, :0]], ids=lambda r: str(tuple(r.shape)))
def test_rows_of_another_shape_are_refused(rows):
    sums = Accumulator()
    sums.add(ROWS)
    with pytest.raises(DataError, match="features"):
        sums.add(rows)


def test_sums_of_another_width_are_not_merged():
    sums, other = Accumulator(), Accumulator()
    sums.add(ROWS)
    other.add(ROWS[:, :1])
    with pytest.raises(DataError, match="rows of 1 numbers after rows of 7"):
        sums.merge(other)


@pytest.mark.parametrize("count", [0, 1])
def test_a_covariance_needs_two_rows(count):
    with pytest.raises(DataError, match=f"two rows or more, found {count}"):
        moments([ROWS[:count]])
