import multiprocessing
import os
from dataclasses import dataclass, fields, replace
from itertools import islice
from multiprocessing.util import Finalize

import numpy as np
import pytest
import torch

from pixelspace.backbones.unet_body import Micro
from pixelspace.data.codec import Pixels
from pixelspace.data.dataset import Dataset, Sample
from pixelspace.data.emoji import Emoji, EmojiDataset
from pixelspace.data.keep import Keep
from pixelspace.data.loader import Data, Positions, batches, divide, ordered, read, to_model_space
from pixelspace.data.mixture import Mixture, Part
from pixelspace.data.order import Shuffled
from pixelspace.errors import DataError
from pixelspace.random import Rng

CONDITIONS = {"label", "size", "corner", "scale"}
CPU = torch.device("cpu")
RNG = Rng(11)


@dataclass(frozen=True)
class Flawed(Dataset):
    """The packaged emoji, some of which cannot be read."""

    whole: EmojiDataset
    flawed: frozenset[int]

    classes = ()
    fingerprint = "flawed"

    def __len__(self) -> int:
        return len(self.whole)

    def name(self, index: int) -> str:
        return f"emoji {index}"

    def __getitem__(self, index: int) -> Sample:
        if index in self.flawed:
            raise DataError(f"emoji {index}: cut short")
        return self.whole[index]


def positions(workers=0, dataset=None, **given):
    dataset = dataset or Emoji(("food",)).open()
    data = Data(Emoji(), **{"crop": "random", "workers": workers, **given})
    return Positions(dataset, Shuffled(np.arange(len(dataset)), RNG), data, (40, 48), RNG)


def rows(found):
    return [
        (*map(int, row), image) for *row, image in zip(found.pos, found.ids, found.labels, found.images, strict=True)
    ]


def some(pos, count, start=0, batch=6):
    return [row for raw in islice(batches(pos, start, batch, CPU), count) for row in rows(raw)]


def assert_same(a, b):
    assert [row[:3] for row in a] == [row[:3] for row in b]
    assert all(torch.equal(x[3], y[3]) for x, y in zip(a, b, strict=True))


def test_the_scale_is_the_smaller_side_where_a_size_is_known():
    raw = replace(read(Emoji(("food",)).open(), [0, 1, 2], (8, 8)), sizes=torch.tensor([[40, 30], [0, 0], [7, 9]]))
    scale = to_model_space(raw, Data(Emoji()), Pixels(), RNG, CPU).cond["scale"]
    assert scale.tolist() == [30.0, float("inf"), 7.0]
    assert Micro("scale", 16.0)(scale).tolist() == [16.0, 16.0, 7.0]


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_hand_over_the_same_samples_cut_the_same_way(workers):
    assert_same(some(positions(workers), 4), some(positions(), 4))


class FailsOnExit(EmojiDataset):
    """The packaged emoji; a process that has read one of them fails when it ends."""

    def __getitem__(self, index: int) -> Sample:
        Finalize(None, os._exit, (3,), exitpriority=0)
        return super().__getitem__(index)


def test_workers_that_fail_while_they_are_ended_fail_nothing_else():
    emoji = Emoji(("food",)).open()
    stream = batches(positions(2, FailsOnExit(*(getattr(emoji, f.name) for f in fields(emoji)))), 0, 6, CPU)
    next(stream), next(stream)  # one of each worker
    workers = multiprocessing.active_children()
    stream.close()
    assert [worker.exitcode for worker in workers] == [3] * 2


def test_order_and_cuts_depend_on_the_position_alone():
    whole = some(positions(), 4)
    assert_same(some(positions(), 12, batch=2), whole)
    assert_same(some(positions(), 3, start=6), whole[6:])
    assert [row[0] for row in whole] == list(range(24))


def test_each_sample_stands_once_in_an_epoch():
    pos = positions()
    n = len(pos.dataset)
    ids = [row[1] for row in some(pos, 2, batch=n)]
    assert sorted(ids[:n]) == sorted(ids[n:]) == list(range(n)) and ids[:n] != ids[n:]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_sample_that_cannot_be_read_is_replaced_by_its_position_and_named(workers):
    food = Emoji(("food",)).open()
    dataset = Flawed(food, frozenset(range(0, len(food), 3)))
    found = list(islice(batches(positions(workers, dataset), 0, 16, CPU), 2))
    again = list(islice(batches(positions(0, dataset), 0, 8, CPU), 4))
    assert [int(i) for raw in found for i in raw.ids] == [int(i) for raw in again for i in raw.ids]
    bad = [entry for raw in found for entry in raw.bad]
    assert bad == [entry for raw in again for entry in raw.bad]
    assert bad and all(int(name.split()[1]) % 3 == 0 and "cut short" in reason for name, reason in bad)
    assert all(int(i) % 3 for raw in found for i in raw.ids)


@pytest.mark.parametrize("workers", [0, 1])
def test_nothing_readable_is_an_error_of_one_line(workers):
    food = Emoji(("food",)).open()
    stream = batches(positions(workers, Flawed(food, frozenset(range(len(food))))), 0, 4, CPU)
    with pytest.raises(DataError, match=r"^16 samples in a row cannot be read; the last: emoji \d+: cut short$"):
        next(stream)


def test_half_of_the_images_are_mirrored_unless_told_otherwise():
    straight = some(positions(crop="center", flip=False), 20)
    mixed = some(positions(crop="center"), 20)
    mirrored = [not torch.equal(a[3], b[3]) for a, b in zip(straight, mixed, strict=True)]
    for a, b, flipped in zip(straight, mixed, mirrored, strict=True):
        assert torch.equal(a[3].flip(2), b[3]) or not flipped
    assert 0.3 < sum(mirrored) / len(mirrored) < 0.7


def test_a_batch_in_model_space_has_its_conditions():
    raw = read(Emoji(("food",)).open(), list(range(8)), (32, 32))
    plain = to_model_space(raw, Data(Emoji()), Pixels(), RNG, CPU)
    assert torch.equal(plain.x, Pixels().encode(raw.images, RNG, raw.pos)) and plain.cond.keys() == CONDITIONS
    moved = to_model_space(raw, Data(Emoji(), augment=0.5), Pixels(), RNG, CPU)
    assert moved.cond["aug"].shape == (8, 9) and torch.equal(moved.pos, raw.pos)
    part = to_model_space(raw.part(3, 5), Data(Emoji(), augment=0.5), Pixels(), RNG, CPU)
    assert torch.equal(part.x, moved.x[3:5]) and torch.equal(part.cond["aug"], moved.cond["aug"][3:5])


@pytest.mark.parametrize("crop", ["center", "random", "adm"])
def test_the_corner_of_a_mirrored_image_is_where_the_mirrored_image_was_cut(crop):
    pos = positions(crop=crop)
    pos.size = (40, 64)  # no resizing, so that what is cut can be found again
    mirrored = 0
    for p in range(60):
        sample, _, _, index, _ = pos[p]
        (top, left), whole = sample.corner, pos.dataset[index].image
        straight, turned = (
            torch.equal(sample.image, image[:, top : top + 40, left : left + 64]) for image in (whole, whole.flip(2))
        )
        mirrored += turned
        assert straight or turned
    assert 15 < mirrored < 60
    pos.size = (64, 40)
    lefts = {flip: set() for flip in (False, True)}
    for p in range(60):
        sample, _, _, index, _ = pos[p]
        left, whole = sample.corner[1], pos.dataset[index].image
        straight, turned = (torch.equal(sample.image, i[:, :, left : left + 40]) for i in (whole, whole.flip(2)))
        assert straight or turned
        lefts[turned].add(left)
    assert all(len(found) > 5 if crop == "random" else found == {12} for found in lefts.values())


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_hand_over_a_mixture_of_files_with_filters_as_one_process_does(workers):
    mixture = Mixture((Part(Emoji(("food",)), 2), Part(Emoji(("animals",)), 1, (Keep("caption_length", 12),))))
    data = Data(mixture, keep=(Keep("caption_length", high=40),), holdout=0.1, split="key", order="files", window=2)
    dataset = mixture.open()
    train, _ = divide(dataset, data, RNG)
    found = []
    for number in (0, workers):
        order = ordered(dataset, data, train, RNG, (16, 16), 8)
        pos = Positions(dataset, order, replace(data, workers=number), (16, 16), RNG)
        found.append(some(pos, 6, start=4096, batch=8))
    assert_same(*found)
    assert [row[1] for row in found[0]] == [order.at(p) for p in range(4096, 4096 + 48)]
    assert {row[1] for row in found[0]} <= set(train.tolist())


@pytest.mark.parametrize(
    "bad",
    [
        {"augment": 1.5},
        {"holdout": 1.0},
        {"workers": -1},
        {"crop": "left"},
        {"split": "name"},
        {"order": "shards"},
        {"window": 0},
    ],
)
def test_senseless_settings_are_refused(bad):
    with pytest.raises(ValueError):
        Data(Emoji(), **bad)
