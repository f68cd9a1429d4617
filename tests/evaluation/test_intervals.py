import math

import pytest
import torch

from pixelspace.errors import DataError, UserError
from pixelspace.evaluation.intervals import bootstrap, repeats, wilson

VALUES = torch.randn(400, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2 + 5


def test_a_bootstrap_of_the_mean_is_that_of_the_normal_law():
    found = bootstrap(VALUES, repeats=4000)
    half = 1.96 * float(VALUES.std(correction=0)) / 20
    assert found.value == pytest.approx(float(VALUES.mean()), rel=1e-12)
    assert found.low == pytest.approx(found.value - half, abs=0.1 * half)
    assert found.high == pytest.approx(found.value + half, abs=0.1 * half)


def test_a_bootstrap_is_a_function_of_the_seed():
    assert bootstrap(VALUES, seed=3, repeats=50) == bootstrap(VALUES, seed=3, repeats=50)
    assert bootstrap(VALUES, seed=3, repeats=50) != bootstrap(VALUES, seed=4, repeats=50)


def test_values_that_are_all_equal_leave_no_doubt():
    found = bootstrap(torch.full((9,), 0.25), repeats=20)
    assert (found.value, found.low, found.high) == (0.25, 0.25, 0.25)


def test_a_higher_level_is_wider():
    narrow, wide = (bootstrap(VALUES, repeats=500, level=level) for level in (0.5, 0.99))
    assert wide.low < narrow.low < narrow.high < wide.high


def test_items_are_drawn_whole():
    # The images of a prompt agree, so that there is no more to be known from four of them than from one.
    grouped = VALUES[:100, None].expand(100, 4)
    one, four = bootstrap(VALUES[:100], repeats=300), bootstrap(grouped, repeats=300)
    assert (four.low, four.high) == pytest.approx((one.low, one.high), rel=1e-12)
    loose = bootstrap(grouped.reshape(-1), repeats=300)
    assert loose.high - loose.low < 0.7 * (one.high - one.low)


def test_any_statistic_may_be_drawn():
    found = bootstrap(VALUES, torch.median, repeats=200)
    assert found.value == float(VALUES.median()) and found.low < found.value < found.high


def test_the_interval_holds_the_truth_as_often_as_it_says():
    generator = torch.Generator().manual_seed(7)
    held = 0
    for trial in range(150):
        values = torch.randn(50, generator=generator, dtype=torch.float64)
        found = bootstrap(values, seed=trial, repeats=100, level=0.8)
        held += found.low <= 0 <= found.high
    assert wilson(held, 150, 0.999).low < 0.8 < wilson(held, 150, 0.999).high


@pytest.mark.parametrize("successes, trials", [(0, 10), (1, 10), (5, 10), (10, 10), (300, 1000)])
@pytest.mark.parametrize("level, z", [(0.95, 1.959963984540054), (0.6826894921370859, 1.0)])
def test_wilsons_bounds_are_where_the_score_test_turns(successes, trials, level, z):
    found = wilson(successes, trials, level)
    for bound in (found.low, found.high):
        deviation = math.sqrt(bound * (1 - bound) / trials)
        assert abs(found.value - bound) == pytest.approx(z * deviation, rel=1e-9, abs=1e-9)
    assert 0 <= found.low <= found.value == successes / trials <= found.high <= 1
    assert found.low < found.high


def test_wilson_gives_newcombes_published_intervals():
    # Newcombe 1998, Table I, method 3 (score without continuity correction).
    for hits, n, low, high in ((81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0, 0.1611)):
        assert (wilson(hits, n).low, wilson(hits, n).high) == pytest.approx((low, high), abs=5e-5)


def test_repeats_are_summed_up():
    found = repeats([2.0, 5.0, 3.5])
    assert (found.mean, found.std, found.minimum, found.count) == (3.5, 1.5, 2.0, 3)


@pytest.mark.parametrize("level", [0.0, 1.0, 95.0])
def test_a_level_is_a_probability(level):
    with pytest.raises(UserError, match="level"):
        bootstrap(VALUES, level=level)
    with pytest.raises(UserError, match="level"):
        wilson(1, 2, level)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: bootstrap(VALUES[:1]), "two items or more are needed, found 1"),
        (lambda: bootstrap(VALUES[0]), "two items or more are needed, found 0"),
        (lambda: bootstrap(torch.tensor([1.0, 2.0, math.nan])), "item 2 is not finite"),
        (lambda: wilson(0, 0), "found 0 of 0"),
        (lambda: wilson(3, 2), "found 3 of 2"),
        (lambda: repeats([1.0]), "found 1"),
        (lambda: repeats([1.0, math.inf]), "must be finite"),
    ],
)
def test_too_little_is_refused(call, message):
    with pytest.raises(DataError, match=message):
        call()


def test_no_repeats_are_refused():
    with pytest.raises(UserError, match="repeats: expected 1 or more"):
        bootstrap(VALUES, repeats=0)
