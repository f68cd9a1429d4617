import math
from collections import Counter
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from pixelspace.config import from_data, to_data
from pixelspace.data.buckets import Bucketed, Buckets, bucketed, joined, nearest_size
from pixelspace.data.emoji import Emoji
from pixelspace.data.folder import Folder
from pixelspace.data.keep import Keep
from pixelspace.data.loader import Data, Positions, batches, divide, ordered, read
from pixelspace.data.transforms import Cut, fit
from pixelspace.errors import DataError, UserError
from pixelspace.random import Rng
from tests.data.image_folders import draw
from tests.data.number_tables import Table, sized

RNG = Rng(4)
CPU = torch.device("cpu")
DICE = np.random.default_rng(8)
SIZES = Buckets().sizes((256, 256))


def planned(heights, widths, batch=8, rng=RNG):
    table = sized(heights, widths)
    return bucketed(table, 0, np.arange(len(table)), SIZES, batch, rng, lambda line: None)


def test_sizes_are_the_longest_sides_within_the_area():
    assert SIZES == ((192, 320), (256, 256), (320, 192))
    assert Buckets(8, 3.0).sizes((16, 24)) == ((16, 24), (24, 16)) and Buckets(16, 1.0).sizes((48, 48)) == ((48, 48),)
    assert Buckets(64, 2.0).sizes((512, 512)) == ((384, 640), (448, 576), (512, 512), (576, 448), (640, 384))


@pytest.mark.parametrize("size", [(256, 256), (512, 768), (768, 512), (1024, 1024), (64, 64), (128, 192)])
@pytest.mark.parametrize(("multiple", "aspect"), [(64, 2.0), (32, 4.0), (8, 1.5)])
def test_sizes_are_symmetric_near_the_area_and_hold_the_stage_s_own(size, multiple, aspect):
    sizes = Buckets(multiple, aspect).sizes(size)
    area, sides = size[0] * size[1], range(multiple, 4 * max(size), multiple)
    allowed = {
        (h, w)
        for h in sides
        for w in range(multiple, min(area // h, int(aspect * h)) + 1, multiple)
        if h <= aspect * w and area < max(h * (w + multiple), (h + multiple) * w)
    }
    largest = {h / w: (h, w) for h, w in sorted(allowed)}
    assert sizes == tuple(largest[shape] for shape in sorted(largest))
    assert size in sizes and {(w, h) for h, w in sizes} == set(sizes)


def test_a_stage_s_size_that_is_no_bucket_is_refused():
    with pytest.raises(UserError, match=r"100x260 needs sides that are multiples of 64; set .* to 20 or a divisor"):
        Buckets().sizes((100, 260))
    with pytest.raises(UserError, match="512x192 is beyond max_aspect 2; raise it"):
        Buckets().sizes((512, 192))


def test_an_image_goes_to_the_size_nearest_in_log_aspect():
    sizes = Buckets(32, 3.0).sizes((512, 512))
    heights, widths = DICE.integers(64, 4096, (2, 5000))
    found = nearest_size(sizes, heights.astype(float), widths.astype(float))
    far = np.abs(np.log(heights / widths)[:, None] - np.log([h / w for h, w in sizes]))
    best = far[np.arange(5000), found]
    assert np.allclose(best, far.min(1), rtol=0, atol=1e-12) and len(set(found.tolist())) == len(sizes)


def test_an_image_of_a_size_goes_to_that_size():
    sizes = Buckets(16, 4.0).sizes((256, 256))
    heights, widths = np.array(sizes, dtype=float).T
    assert nearest_size(sizes, 7 * heights, 7 * widths).tolist() == list(range(len(sizes)))


@pytest.mark.parametrize(
    ("counts", "batch", "to"),
    [
        ((9, 9, 9, 9, 9), 8, (0, 1, 2, 3, 4)),
        ((3, 9, 9, 9, 0), 8, (1, 1, 2, 3, None)),
        ((3, 0, 9, 0, 7), 8, (2, None, 2, None, 2)),
        ((3, 4, 1, 2, 3), 5, (1, 1, 1, 4, 4)),  # 1 to the left of two as near, then 2, then 3
        ((0, 0, 0, 0, 5), 8, (None, None, None, None, 4)),
    ],
)
def test_sizes_with_less_than_a_batch_join_the_nearest(counts, batch, to):
    found = joined(Buckets().sizes((512, 512)), counts, batch)
    assert tuple(into if count else None for into, count in zip(found, counts, strict=True)) == to


def plan_rows(order: Bucketed, epoch: int):
    """(batches, batch) ids of an epoch, and the size of each batch."""
    n = sum(len(ids) // order.batch for ids in order.ids)
    rows = [[order.at((epoch * n + b) * order.batch + j) for j in range(order.batch)] for b in range(n)]
    sizes = [{order.size((epoch * n + b) * order.batch + j) for j in range(order.batch)} for b in range(n)]
    assert all(len(size) == 1 for size in sizes)
    return np.array(rows), [size.pop() for size in sizes]


@pytest.mark.parametrize("n", [8, 9, 100, 333, 1000])
@pytest.mark.parametrize("batch", [1, 3, 8])
def test_every_batch_has_one_shape_and_no_sample_comes_twice_in_an_epoch(n, batch):
    heights, widths = DICE.integers(100, 900, (2, n))
    order = planned(heights, widths, batch)
    nearest = nearest_size(SIZES, heights.astype(float), widths.astype(float))
    epochs = [plan_rows(order, epoch) for epoch in range(3)]
    whole = sum(len(ids) // batch for ids in order.ids) * batch
    for rows, sizes in epochs:
        ids = rows.flatten().tolist()
        assert len(set(ids)) == len(ids) == whole > n - len(SIZES) * batch
        assert Counter(sizes) == {size: len(of) // batch for size, of in zip(order.sizes, order.ids, strict=True)}
        if len(order.sizes) == len(SIZES):
            assert all(SIZES[nearest[i]] == size for row, size in zip(rows, sizes, strict=True) for i in row)
    if n > 99:
        assert epochs[0][0].tolist() != epochs[1][0].tolist() and epochs[0][1] != epochs[1][1]


def test_what_is_left_out_is_left_out_for_one_epoch():
    order = planned(np.full(15, 300), np.full(15, 300), batch=8)
    left = [frozenset(range(15)) - frozenset(plan_rows(order, epoch)[0].flatten()) for epoch in range(40)]
    assert all(len(ids) == 7 for ids in left) and frozenset.union(*left) == set(range(15)) and len(set(left)) > 30


def test_a_plan_depends_on_the_data_the_seed_and_the_position_alone():
    heights, widths = DICE.integers(100, 900, (2, 500))
    order, again, other = (planned(heights, widths, rng=rng) for rng in (RNG, RNG, Rng(5)))
    expected = [(order.at(p), order.size(p)) for p in range(2000)]
    for p in DICE.permutation(2000).tolist():
        assert (again.at(p), again.size(p)) == expected[p]
    assert [other.at(p) for p in range(500)] != [i for i, _ in expected[:500]]


@pytest.mark.parametrize("world", [1, 2, 4])
def test_all_ranks_see_one_shape_in_each_step(world):
    heights, widths = DICE.integers(100, 900, (2, 300))
    ranks = [planned(heights, widths) for _ in range(world)]
    for step in range(60):
        lanes = [[rank.size(step * 8 + j) for j in range(8) if j * world // 8 == r] for r, rank in enumerate(ranks)]
        assert len({size for lane in lanes for size in lane}) == 1


def test_plans_are_the_same_on_every_platform():
    heights, widths = np.arange(100) % 17 * 40 + 100, np.arange(100) % 13 * 50 + 100
    order = planned(heights, widths)
    assert [(order.at(p), order.size(p)) for p in (0, 1, 8, 500, 10**12)] == [
        (20, (192, 320)),
        (17, (192, 320)),
        (40, (320, 192)),
        (59, (256, 256)),
        (19, (192, 320)),
    ]


def test_what_comes_instead_is_of_the_same_bucket():
    heights, widths = DICE.integers(100, 900, (2, 300))
    order = planned(heights, widths)
    of = {int(ids[k]): size for size, ids in zip(order.sizes, order.ids, strict=True) for k in range(len(ids))}
    for p in range(0, 400, 3):
        assert {of[order.instead(p, tries)] for tries in range(1, 5)} == {order.size(p)}


def test_buckets_are_told_and_small_ones_join():
    said: list[str] = []
    table = sized([320] * 5 + [256] * 20 + [100] * 30, [192] * 5 + [250] * 20 + [200] * 30)
    order = bucketed(table, 0, np.arange(55), SIZES, 8, RNG, said.append)
    assert said == [
        "buckets of height x width, samples nearest in aspect: 192x320 30, 256x256 20, 320x192 5 joins 256x256"
    ]
    assert order.sizes == ((192, 320), (256, 256)) and [len(ids) for ids in order.ids] == [30, 25]


def test_data_that_cannot_be_sorted_by_shape_are_refused():
    with pytest.raises(UserError, match=r"data.buckets needs the height and width of every image: .*no sample has"):
        bucketed(Table(count=9), 0, np.arange(9), SIZES, 2, RNG, print)
    with pytest.raises(DataError, match=r"2 of 9 samples have no height and width; .*Keep\('side', low=1\)"):
        planned([300] * 7 + [np.nan, 300], [300] * 8 + [0])
    with pytest.raises(DataError, match="7 samples do not fill one batch of 8"):
        planned([300] * 7, [300] * 7)


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    """A folder of 40 images of all shapes, one of which is cut short after it was indexed."""
    folder = tmp_path_factory.mktemp("shapes")
    for i in range(40):
        draw(folder / f"{i:02d}.png", 20 + i % 7 * 9, 20 + i % 5 * 11, seed=i)
    (folder / "metadata.jsonl").write_text(
        "".join(f'{{"file_name": "{i:02d}.png", "text": ["one {i}", "two {i}"]}}\n' for i in range(40))
    )
    dataset = Folder(str(folder)).open()
    (folder / "08.png").write_bytes(b"gone")
    return dataset


def seen(dataset, data, count, batch=4, **given):
    train, held = divide(dataset, data, RNG)
    order = ordered(dataset, data, train, RNG, (32, 32), batch)
    positions = Positions(dataset, order, replace(data, **given), (32, 32), RNG)
    stream = batches(positions, 0, batch, CPU)
    found = list(islice(stream, count))
    stream.close()
    return order, found, held


def test_batches_of_real_images_have_their_bucket_s_shape(shapes):
    data = Data(Emoji(), crop="random", keep=(Keep("side", 22),), holdout=0.1, split="key", buckets=Buckets(8, 2.0))
    order, found, held = seen(shapes, data, 30)
    for b, raw in enumerate(found):
        assert raw.images.shape == (4, 3, *order.size(4 * b))
        sizes = [tuple(shapes[int(i)].image.shape[1:]) for i in raw.ids]
        assert raw.sizes.tolist() == [list(size) for size in sizes] and min(min(size) for size in sizes) >= 22
        assert all(text in shapes.texts(int(i)) for text, i in zip(raw.texts, raw.ids, strict=True))
    assert len({raw.images.shape for raw in found}) > 2 and not {int(i) for raw in found for i in raw.ids} & set(held)
    assert {text[:3] for raw in found for text in raw.texts} == {"one", "two"}
    bad = [entry for raw in found for entry in raw.bad]
    assert bad and {name for name, _ in bad} == {"08.png"}
    assert read(shapes, held.tolist(), (32, 32)).images.shape[1:] == (3, 32, 32)


def test_workers_hand_over_the_same_batches_of_each_shape(shapes):
    data = Data(Emoji(), crop="random", buckets=Buckets(8, 2.0))
    (_, one, _), (_, many, _) = (seen(shapes, data, 12, workers=w) for w in (0, 2))
    for a, b in zip(one, many, strict=True):
        assert torch.equal(a.images, b.images) and torch.equal(a.ids, b.ids) and (a.texts, a.bad) == (b.texts, b.bad)
        assert torch.equal(a.corners, b.corners)


def test_less_is_cut_away_than_by_one_size_for_all(shapes):
    data = Data(Emoji(), crop="center", flip=False, buckets=Buckets(4, 4.0))
    order, found, _ = seen(shapes, data, 40, batch=1)

    def kept_share(size, cut):
        return math.exp(-abs(math.log(size[0] * cut[1] / (size[1] * cut[0]))))

    mine, square = (
        [kept_share(s, cut or raw.images.shape[2:]) for raw in found for s in raw.sizes.tolist()]
        for cut in (None, (32, 32))
    )
    assert sum(mine) / len(mine) > 0.9 > 0.8 > sum(square) / len(square)
    whole = shapes[int(found[0].ids[0])].image
    assert torch.equal(found[0].images[0], fit(whole, Cut(order.size(0))))


def test_buckets_are_values():
    assert from_data(to_data(Buckets(32, 1.5)), {"Buckets": Buckets}) == Buckets(32, 1.5)
    for bad in ({"multiple": 0}, {"max_aspect": 0.9}):
        with pytest.raises(ValidationError):
            Buckets(**bad)
    with pytest.raises(ValidationError, match="buckets have an order of their own"):
        Data(Emoji(), buckets=Buckets(), order="files")
