import numpy as np
import pytest
import torch

from pixelspace.random import Rng, permutation, permuted

RNG = Rng(7)


@pytest.mark.parametrize("n", [1, 2, 3, 5, 16, 17, 167, 1000])
def test_an_epoch_holds_each_sample_once_in_a_new_order(n):
    first, second = ([RNG.sample_id(p, n) for p in range(e * n, (e + 1) * n)] for e in (0, 1))
    assert sorted(first) == sorted(second) == list(range(n))
    if n > 16:
        assert first != second != list(range(n))


def test_a_huge_set_is_random_access():
    assert len({permuted(k, 10**9, 5) for k in range(1000)}) == 1000


@pytest.mark.parametrize("n", [*range(1, 70), 1000, 4097])
def test_a_whole_permutation_is_that_of_each_number(n):
    for key in (0, 5, 2**63 - 1):
        assert permutation(n, key).tolist() == [permuted(k, n, key) for k in range(n)]


def test_keys_of_many_numbers_are_those_of_each():
    numbers = np.array([0, 3, 70_000, 12_000_000_000])
    assert RNG.keys(numbers).tolist() == [RNG.key(int(i)) for i in numbers]
    many = np.arange(70_000)  # more than are hashed at once
    assert RNG.keys(many)[[0, 65_535, 65_536, 69_999]].tolist() == [RNG.key(i) for i in (0, 65_535, 65_536, 69_999)]


def test_order_and_draws_are_the_same_on_every_platform():
    assert [RNG.sample_id(p, 10) for p in range(10)] == [2, 7, 6, 8, 3, 5, 0, 9, 4, 1]
    assert RNG.key("noise", 3) == 601459279464130007
    assert RNG.uniform("u", torch.arange(2))[:, 0].tolist() == [0.004581463998587831, 0.42794870537161944]


def test_draws_do_not_depend_on_how_a_batch_is_split():
    pos = torch.arange(100, 117)
    for draw in (
        lambda p: RNG.noise("noise", p, (3, 5, 7)),
        lambda p: RNG.uniform("crop", p, 3),
        lambda p: RNG.normal("scale", p),
        lambda p: RNG.stratified("sigma", p, 17),
    ):
        whole = draw(pos)
        parts = torch.cat([draw(pos[:4]), draw(pos[4:5]), draw(pos[5:])])
        assert torch.equal(whole, parts)


def test_purposes_and_seeds_give_unrelated_draws():
    pos = torch.arange(1000)
    a, b, c = RNG.uniform("a", pos)[:, 0], RNG.uniform("b", pos)[:, 0], Rng(8).uniform("a", pos)[:, 0]
    assert torch.corrcoef(torch.stack([a, b, c])).fill_diagonal_(0).abs().max() < 0.12  # 3.8 sigma


def test_draws_have_their_distribution():
    pos = torch.arange(20000)
    u, n = RNG.uniform("u", pos, 2).flatten(), RNG.normal("n", pos, 2).flatten()
    noise = RNG.noise("x", pos[:2000], (10,)).flatten().double()
    assert 0 < u.min() and u.max() < 1
    for sample, cdf in ((u, lambda x: x), (n, torch.special.ndtr), (noise, torch.special.ndtr)):
        ranks = (torch.arange(len(sample), dtype=torch.float64) + 0.5) / len(sample)
        assert (cdf(sample.sort().values) - ranks).abs().max() < 2.0 / len(sample) ** 0.5  # Kolmogorov-Smirnov


def test_a_global_batch_has_one_draw_in_every_stratum():
    for step in range(3):
        u = RNG.stratified("sigma", torch.arange(step * 64, (step + 1) * 64), 64)
        assert torch.equal((u * 64).long().sort().values, torch.arange(64))
