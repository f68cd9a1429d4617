import pickle
import random
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
import torch

from pixelspace.data.order import Interleaved, Runs, Shuffled, Windowed, compact
from pixelspace.random import Rng

RNG = Rng(5)


def some_ids(n, seed=0, of=3):
    """n ascending numbers with gaps, from 10 on."""
    steps = np.random.default_rng(seed).integers(1, of, n)
    return 10 + steps.cumsum()


def windowed(ids, per_file=7, window=3, rng=RNG):
    return Windowed.of(ids, np.arange(0, ids[-1] + 50, per_file), window, rng)


def interleaved(sizes, weights, unit=1, rng=RNG):
    starts = np.cumsum([0, *sizes[:-1]])
    parts = (Shuffled(np.arange(n) + start, Rng(i)) for i, (n, start) in enumerate(zip(sizes, starts, strict=True)))
    return Interleaved(tuple(parts), tuple(map(Fraction, weights)), rng, unit)


ORDERS = {
    "uniform": lambda: Shuffled(compact(some_ids(150)), RNG),
    "files": lambda: windowed(some_ids(150)),
    "mixture": lambda: interleaved([40, 7, 90], [0.5, 0.3, 1.7]),
    "mixture of batches": lambda: interleaved([40, 7, 90], [3, 1, 2], unit=8),
}
GOLDEN = {
    "uniform": [209, 60, 114, 188, 170, 77],
    "files": [171, 58, 60, 56, 243, 170],
    "mixture": [110, 92, 114, 62, 87, 79],
    "mixture of batches": [110, 92, 114, 62, 60, 14],
}


@pytest.mark.parametrize("ids", [np.arange(5), np.arange(7, 3000), some_ids(1000), some_ids(1000, of=60)[:1]])
def test_compact_numbers_are_the_numbers(ids):
    few_gaps = np.delete(np.arange(50, 5000), [0, 1, 17, 1000, 4949])
    for numbers in (ids, few_gaps):
        found = compact(numbers)
        assert len(found) == len(numbers) and [int(found[k]) for k in range(len(numbers))] == numbers.tolist()
    assert isinstance(compact(few_gaps), Runs)


def test_numbers_with_few_gaps_cost_little_to_send():
    ids = np.delete(np.arange(1_000_000), np.arange(500, 1_000_000, 1000))
    assert len(pickle.dumps(compact(ids))) < 20_000
    assert len(pickle.dumps(compact(np.arange(12_000_000)))) < 1000
    assert len(pickle.dumps(compact(np.arange(0, 100_000, 2)))) < 210_000  # 4 bytes each


@pytest.mark.parametrize("kind", ["uniform", "files"])
def test_each_sample_stands_once_in_an_epoch_of_any_size(kind):
    for n in range(1, 201):
        ids = some_ids(n, seed=n)
        window = 1 + n % 5
        order = Shuffled(compact(ids), RNG) if kind == "uniform" else windowed(ids, 1 + n % 11, window)
        first, second = ([order.at(p) for p in range(e * n, (e + 1) * n)] for e in (0, 1))
        assert sorted(first) == sorted(second) == ids.tolist()
        assert n < 16 or first != second


@pytest.mark.parametrize("make", ORDERS.values(), ids=ORDERS)
def test_what_stands_at_a_position_depends_on_nothing_that_was_asked_before(make):
    whole = make()
    expected = [whole.at(p) for p in range(4000)]
    positions = list(range(0, 4000, 7))
    random.Random(0).shuffle(positions)
    sent = pickle.loads(pickle.dumps(whole))
    assert [sent.at(p) for p in positions] == [expected[p] for p in positions]
    assert [make().at(p) for p in positions[:50]] == [expected[p] for p in positions[:50]]


@pytest.mark.parametrize("make", ORDERS.values(), ids=ORDERS)
@pytest.mark.parametrize("world", [1, 2, 4])
def test_ranks_that_take_lanes_of_each_batch_see_what_one_sees(make, world):
    batch, lanes, steps = 24, 8, 20
    one = make()
    expected = [one.at(p) for p in range(steps * batch)]
    found = {}
    for rank in range(world):
        mine = make()
        for step in range(steps):
            rows = [j for j in range(batch) if (j * lanes // batch) * world // lanes == rank]
            found |= {step * batch + j: mine.at(step * batch + j) for j in rows}
    assert [found[p] for p in range(steps * batch)] == expected


def test_orders_are_the_same_on_every_platform():
    found = {name: [make().at(p) for p in (0, 1, 2, 3, 2000, 10**12)] for name, make in ORDERS.items()}
    assert found == GOLDEN


@pytest.mark.parametrize("kind", ["uniform", "files"])
def test_any_sample_stands_anywhere_as_often(kind):
    n, epochs = 12, 3000
    ids = np.arange(n)
    order = Shuffled(ids, RNG) if kind == "uniform" else windowed(ids, per_file=3, window=2)
    counts = torch.zeros(n, n, dtype=torch.float64)
    for p in range(n * epochs):
        counts[p % n, order.at(p)] += 1
    chi2 = ((counts - epochs / n) ** 2 / (epochs / n)).sum()
    freedom = torch.tensor((n - 1.0) ** 2, dtype=torch.float64)
    assert torch.special.gammaincc(freedom / 2, chi2 / 2) > 1e-3


def test_a_billion_samples_are_random_access():
    ids = Runs(np.array([10**9]), np.array([0]))
    order = Shuffled(ids, RNG)
    assert len({order.at(10**9 + p) for p in range(2000)}) == 2000
    order = Windowed(ids, np.arange(0, 10**9, 10**5), 64, RNG)
    assert len({order.at(10**9 + p) for p in range(2000)}) == 2000


@pytest.mark.parametrize(("per_file", "window"), [(10, 1), (10, 4), (7, 3), (1000, 2), (1, 5)])
def test_a_window_reads_its_files_only_and_shuffles_among_them(per_file, window):
    ids = some_ids(300)
    order = windowed(ids, per_file, window)
    for epoch in range(2):
        stands = [order.at(p) // per_file for p in range(epoch * 300, (epoch + 1) * 300)]
        held = Counter((ids // per_file).tolist())
        at, seen = 0, set()
        while at < 300:
            files = set(list(dict.fromkeys(stands[at:]))[:window])
            end = at + sum(held[file] for file in files)
            assert set(stands[at:end]) == files and not files & seen
            assert len(files) == 1 or end - at < 20 or stands[at:end] != sorted(stands[at:end], key=stands.index)
            at, seen = end, seen | files
        assert seen == set(held)


def test_files_come_in_another_order_every_epoch():
    order = windowed(np.arange(1000), per_file=10, window=1)
    first, second = ([order.at(p) // 10 for p in range(e, e + 1000, 10)] for e in (0, 1000))
    assert sorted(first) == sorted(second) == list(range(100)) and first != second


@pytest.mark.parametrize(
    "weights",
    [(1,), (1, 1), (0.7, 0.2, 0.1), (1e-3, 1, 1, 1e-3), (1, 2**-10.4), (3, 1e-5, 1e-5), (3e299, 1e300, 1e298)],
)
def test_each_part_has_its_share_to_within_one_after_every_block(weights):
    order = interleaved([5] * len(weights), weights)
    exact = [Fraction(weight) / sum(map(Fraction, weights)) for weight in weights]
    block, drawn = order._block, np.zeros(len(weights), dtype=int)
    assert block == 1024 or block * min(exact) >= 1 > block * min(exact) / 2
    for n in range(1, 6 if block > 1024 else 60):
        whose, earlier = order._turns(n - 1)
        for part in range(len(weights)):
            mine = earlier[whose == part]
            assert mine.tolist() == list(range(drawn[part], drawn[part] + len(mine)))
            drawn[part] += len(mine)
            assert abs(int(drawn[part]) - exact[part] * n * block) < 1
        assert drawn.sum() == n * block


def test_turns_of_a_block_are_shuffled():
    order = interleaved([5, 5], (1, 1))
    first, second = (order._turns(block)[0] for block in (0, 1))
    assert not np.array_equal(first, second)
    flips = int((first[1:] != first[:-1]).sum())
    assert 512 - 64 < flips < 512 + 64  # 4 sigma: as fair coins change


def test_each_part_of_a_mixture_keeps_its_own_epochs():
    sizes = [40, 7, 90]
    order = interleaved(sizes, [0.5, 0.3, 1.7])
    ids = np.array([order.at(p) for p in range(5000)])
    for number, (start, n) in enumerate(zip([0, 40, 47], sizes, strict=True)):
        mine = ids[(ids >= start) & (ids < start + n)]
        alone = Shuffled(np.arange(n) + start, Rng(number))
        assert mine.tolist() == [alone.at(p) for p in range(len(mine))] and len(mine) > n


def test_a_mixture_by_batches_has_one_part_in_each():
    order = interleaved([40, 7, 90], [3, 1, 2], unit=8)
    part = np.array([np.searchsorted([40, 47], order.at(p), side="right") for p in range(8 * 1024)]).reshape(-1, 8)
    assert (part == part[:, :1]).all()
    assert abs(np.bincount(part[:, 0]) - np.array([512, 1024 / 6, 1024 / 3])).max() < 1


@pytest.mark.parametrize("make", ORDERS.values(), ids=ORDERS)
def test_what_comes_instead_is_of_the_same_samples_and_differs_by_try(make):
    order = make()
    stands = {order.at(p) for p in range(3000)}
    for p in (3, 500):
        instead = [order.instead(p, tries) for tries in range(1, 16)]
        assert set(instead) <= stands and len(set(instead)) > 3
        assert instead == [make().instead(p, tries) for tries in range(1, 16)]


def test_what_comes_instead_in_a_mixture_is_of_the_same_part():
    order = interleaved([40, 7, 90], [3, 1, 2])
    for p in range(200):
        of = [np.searchsorted([40, 47], index, side="right") for index in (order.at(p), order.instead(p, 1))]
        assert of[0] == of[1]
