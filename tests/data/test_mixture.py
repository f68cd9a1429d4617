import pickle
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from pixelspace.config import from_data, to_data, value
from pixelspace.data.buckets import Buckets
from pixelspace.data.codec import Codec, Pixels
from pixelspace.data.dataset import Dataset, Sample, Source
from pixelspace.data.emoji import Emoji
from pixelspace.data.keep import Keep
from pixelspace.data.loader import Data, Positions, batches, divide, ordered
from pixelspace.data.mixture import Mixture, MixtureDataset, Part
from pixelspace.data.transforms import Cut
from pixelspace.errors import DataError, UserError
from pixelspace.random import Rng
from tests.data.number_tables import Table

RNG = Rng(2)
CPU = torch.device("cpu")
FOOD, ANIMALS = Emoji(("food",)), Emoji(("animals",))
BOTH = Mixture((Part(FOOD, 3), Part(ANIMALS, 1)))


@value
class Numbers(Source):
    """A table of numbers, scored by multiples of `score` if that is given."""

    count: int
    score: float | None = None
    latent: bool = False

    def open(self, cache: Path | None = None) -> Dataset:
        numbers = {} if self.score is None else {"score": np.arange(self.count) * self.score}
        return (Latent if self.latent else Table)(numbers, self.count, 10, f"{self.count}-")


@dataclass(frozen=True)
class Latent(Table):
    holds_images = False

    def check(self, size: tuple[int, int], flip: bool, codec: Codec) -> None:
        raise UserError("latents of another size")


def order_of(dataset, ids=None, **given):
    data = Data(Emoji(), **given)
    return ordered(dataset, data, np.arange(len(dataset)) if ids is None else ids, RNG, (8, 8), 4)


def test_a_mixture_holds_all_samples_of_its_parts_in_order():
    mixed, food, animals = BOTH.open(), FOOD.open(), ANIMALS.open()
    assert len(mixed) == len(food) + len(animals) and mixed.classes == () and mixed.holds_images
    for index, part, number, i in ((0, food, 0, 0), (len(food), animals, 1, 0), (len(mixed) - 1, animals, 1, -1)):
        i = i % len(part)
        assert mixed.name(index) == f"{number}:{part.name(i)}" and mixed.texts(index) == part.texts(i)
        assert torch.equal(mixed[index].image, part[i].image) and mixed[index].label == -1
        cut = Cut((20, 30), "random", (0.2, 0.7), True)
        assert torch.equal(mixed.cut(index, cut).image, part.cut(i, cut).image)
        assert mixed.cut(index, cut)[2:] == part.cut(i, cut)[2:]
    assert np.array_equal(mixed.keys(), np.concatenate([food.keys(), animals.keys()]))
    for beyond in (len(mixed), -len(mixed) - 1):
        with pytest.raises(IndexError):
            mixed[beyond]


def test_classes_stay_where_all_parts_have_the_same():
    same = Mixture((Part(FOOD, 1), Part(FOOD, 2))).open()
    assert same.classes == ("food",) and same[len(same) - 1].label == 0
    assert same.shares[0].dataset is same.shares[1].dataset


def test_a_mixture_of_one_is_its_source():
    alone, food = Mixture((Part(FOOD, 0.3),)).open(), FOOD.open()
    data = Data(FOOD, holdout=0.1)
    assert [alone.name(i) for i in range(9)] == [food.name(i) for i in range(9)] and alone.classes == food.classes
    ids = [divide(dataset, data, RNG) for dataset in (alone, food)]
    assert all(np.array_equal(*pair) for pair in zip(*ids, strict=True))
    orders = [order_of(dataset, train) for dataset, (train, _) in zip((alone, food), ids, strict=True)]
    assert len({tuple(order.at(p) for p in range(500)) for order in orders}) == 1


def test_numbers_and_files_of_all_parts():
    mixed = Mixture((Part(Numbers(30, 0.5), 1), Part(Numbers(25), 1))).open()
    score = mixed.column("score")
    assert score[:30].tolist() == [i / 2 for i in range(30)] and np.isnan(score[30:]).all() and len(score) == 55
    assert mixed.column("captions").tolist() == [1] * 55 and mixed.columns() == ("captions", "caption_length", "score")
    assert mixed.files().tolist() == [0, 10, 20, 30, 40, 50]
    with pytest.raises(UserError, match="no sample has 'scores'; did you mean 'score'"):
        mixed.column("scores")


@pytest.mark.parametrize("order", ["uniform", "files"])
def test_what_is_drawn_is_in_proportion_and_each_part_has_its_epochs(order):
    mixed = Mixture((Part(Numbers(30), 3), Part(Numbers(200), 1), Part(Numbers(7), 0.25))).open()
    drawn = order_of(mixed, order=order, window=2)
    ids = np.array([drawn.at(p) for p in range(5 * 1024)])
    for start, n, weight in ((0, 30, 3), (30, 200, 1), (230, 7, 0.25)):
        mine = ids[(ids >= start) & (ids < start + n)]
        assert abs(len(mine) - 5 * 1024 * weight / 4.25) < 1
        whole = mine[: len(mine) // n * n].reshape(-1, n)
        assert (np.sort(whole, 1) == np.arange(start, start + n)).all() and len(whole) > 5
        assert len({tuple(epoch) for epoch in whole.tolist()}) == len(whole)
        if order == "files" and n == 200:
            windows = ((whole - start) // 10).reshape(-1, 20)
            assert all(len(set(window)) == 2 for window in windows.tolist())


def test_filters_and_the_split_apply_to_every_part():
    scored = Numbers(400, 0.5)
    mixed = Mixture((Part(scored, 1, (Keep("score", 50),)), Part(Numbers(300, 1.0), 2))).open()
    said: list[str] = []
    data = Data(Emoji(), holdout=0.1, keep=(Keep("score", high=150),))
    train, held = divide(mixed, data, RNG, said.append)
    assert sorted([*train, *held]) == [*range(100, 301), *range(400, 551)] and (np.diff(train) > 0).all()
    assert [(held < 400).sum(), (held >= 400).sum()] == [20, 15]
    assert said == [
        "part 0: keep score >= 50: 100 of 400 left out",
        "part 0: keep score <= 150: 99 of 300 left out",
        "part 1: keep score <= 150: 149 of 300 left out",
    ]
    assert [int((held[:n] >= 400).sum()) for n in (3, 6, 12)] == [2, 4, 8]  # by weight, in any first ones


def test_the_same_source_in_two_parts_has_one_validation_set_by_key():
    mixed = Mixture((Part(FOOD, 1), Part(FOOD, 5, (Keep("caption_length", high=25),)))).open()
    n = len(mixed) // 2
    train, held = divide(mixed, Data(FOOD, holdout=0.2, split="key"), RNG)
    assert not set(train % n) & set(held % n) and (held >= n).any()


def test_a_part_of_which_nothing_is_kept_is_named():
    mixed = Mixture((Part(Numbers(9), 1), Part(Numbers(400, 0.5), 1, (Keep("score", 1e6),)))).open()
    with pytest.raises(DataError, match=r"^part 1: keep score >= 1000000: 400 of 400 left out"):
        divide(mixed, Data(Emoji()), RNG)
    with pytest.raises(UserError, match=r"^part 0: Table: no sample has 'score'"):
        divide(mixed, Data(Emoji(), keep=(Keep("score", 1),)), RNG)


def test_a_mixture_in_a_mixture_keeps_its_weights():
    inner = Mixture((Part(Numbers(30), 3), Part(Numbers(40), 1, (Keep("captions", 1),))))
    mixed = Mixture((Part(Numbers(50), 1), Part(inner, 2, (Keep("caption_length", 1),)))).open()
    assert [share.weight for share in mixed.parts()] == [1, Fraction(3, 2), Fraction(1, 2)]
    assert [share.start for share in mixed.parts()] == [0, 50, 80] and mixed.name(85) == "1:1:40-5"
    assert mixed.parts()[2].keep == (Keep("caption_length", 1), Keep("captions", 1))


@dataclass(frozen=True)
class Flawed(Table):
    """Samples of which every third cannot be read."""

    def __getitem__(self, index: int) -> Sample:
        if index % 3 == 0:
            raise DataError(f"{self.name(index)}: cut short")
        return super().__getitem__(index)


def test_what_cannot_be_read_is_named_with_its_part_and_replaced_from_it():
    opened = Mixture((Part(Numbers(20), 1), Part(Numbers(90), 1))).open()
    mixed = replace(
        opened, shares=[share._replace(dataset=Flawed(count=len(share.dataset))) for share in opened.shares]
    )
    positions = Positions(mixed, order_of(mixed), Data(Emoji(), flip=False), (8, 8), RNG)
    (raw,) = islice(batches(positions, 0, 64, CPU), 1)
    drawn = [positions.order.at(p) for p in range(64)]
    assert [i < 20 for i in drawn] == [int(i) < 20 for i in raw.ids]
    first = next(i for i in drawn if (i if i < 20 else i - 20) % 3 == 0)
    assert raw.bad[0] == (mixed.name(first), "cut short")


def test_a_mixture_by_buckets_has_one_part_and_shape_in_a_batch():
    numbers = {"height": np.where(np.arange(400) % 3, 24.0, 16.0), "width": np.full(400, 16.0)}
    tables = (Table({k: v[:100] for k, v in numbers.items()}), Table(numbers))
    opened = Mixture((Part(Numbers(100), 1), Part(Numbers(400), 3))).open()
    shares = [share._replace(dataset=table) for share, table in zip(opened.shares, tables, strict=True)]
    mixed = replace(opened, shares=shares)
    order = order_of(mixed, buckets=Buckets(8, 3.0))
    part = np.array([order.at(p) >= 100 for p in range(4 * 1024)]).reshape(-1, 4)
    sizes = [{order.size(4 * b + j) for j in range(4)} for b in range(1024)]
    assert (part == part[:, :1]).all() and part[:, 0].sum() == 768 and all(len(size) == 1 for size in sizes)


def test_parts_must_go_together():
    latent = Mixture((Part(Numbers(5), 1), Part(Numbers(5, latent=True), 1)))
    with pytest.raises(UserError, match="parts with images and parts with latents or clips"):
        latent.open()
    stored = Mixture((Part(Numbers(5, latent=True), 1), Part(Numbers(6, latent=True), 1))).open()
    assert not stored.holds_images
    with pytest.raises(UserError, match="latents of another size"):
        stored.check((8, 8), False, Pixels())
    with pytest.raises(UserError, match="less than one of 1,048,576 samples"):
        Mixture((Part(FOOD, 1), Part(FOOD, 5e-7))).open()


def test_mixtures_are_values():
    mixture = Mixture((Part(FOOD, 0.5, (Keep("caption_length", 5),)), Part(ANIMALS, 2)))
    assert from_data(to_data(mixture), {c.__name__: c for c in (Mixture, Part, Keep, Emoji)}) == mixture
    for weight in (0, -1, float("nan"), float("inf"), True):
        with pytest.raises(ValidationError):
            Part(FOOD, weight)
    with pytest.raises(ValidationError):
        Mixture(())


def test_a_mixture_is_the_data_of_its_parts():
    fingerprints = {
        mixture.open().fingerprint
        for mixture in (BOTH, Mixture(BOTH.parts[::-1]), Mixture(BOTH.parts[:1]), Mixture((*BOTH.parts, BOTH.parts[0])))
    }
    assert len(fingerprints) == 4
    mixed = BOTH.open()
    sent = pickle.loads(pickle.dumps(mixed))
    assert isinstance(sent, MixtureDataset) and sent.fingerprint == mixed.fingerprint and sent.name(9) == mixed.name(9)
