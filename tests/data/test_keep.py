import hashlib
import math

import numpy as np
import pytest
from pydantic import ValidationError

from pixelspace.config import from_data, to_data
from pixelspace.data.emoji import Emoji
from pixelspace.data.keep import Keep, kept, split_by_count, split_by_key
from pixelspace.data.loader import Data, divide
from pixelspace.errors import DataError, UserError
from pixelspace.random import Rng
from tests.data.number_tables import Table, sized

RNG = Rng(11)
DICE = np.random.default_rng(3)
N = 2000
NUMBERS = {name: DICE.integers(100, 1500, N).astype(float) for name in ("height", "width")}
NUMBERS["score"] = np.where(DICE.random(N) < 0.1, np.nan, DICE.normal(5, 1, N))
TABLE = Table(NUMBERS)


def number(name, i):
    height, width = NUMBERS["height"][i], NUMBERS["width"][i]
    return {"side": min(height, width), "aspect": max(height, width) / min(height, width)}.get(
        name, NUMBERS.get(name, [math.nan] * N)[i]
    )


def passes(keep, i):
    found = number(keep.column, i)
    low, high = (b if b is not None else d for b, d in ((keep.low, -math.inf), (keep.high, math.inf)))
    return low <= found <= high


@pytest.mark.parametrize(
    "filters",
    [
        (),
        (Keep("side", 512),),
        (Keep("score"),),
        (Keep("aspect", high=2), Keep("score", 4.5, 6)),
        (Keep("width", 300, 900), Keep("side", 512), Keep("score", high=5)),
    ],
    ids=lambda filters: ", ".join(map(str, filters)) or "all",
)
def test_what_is_kept_is_what_passes_every_filter(filters):
    ids, told = kept(TABLE, filters)
    assert ids.dtype == np.int64 and ids.tolist() == [i for i in range(N) if all(passes(f, i) for f in filters)]
    remain = range(N)
    for keep, left in zip(filters, told, strict=True):
        out = [i for i in remain if not passes(keep, i)]
        unknown = [i for i in remain if math.isnan(number(keep.column, i))]
        assert (left.keep, left.count, left.out, left.unknown) == (keep, len(remain), len(out), len(unknown))
        remain = [i for i in remain if passes(keep, i)]


def test_bounds_are_included_and_nan_is_not():
    table = Table({"score": np.array([1, 2, 3, np.nan, np.inf, -np.inf])})
    assert kept(table, (Keep("score", 2, 3),))[0].tolist() == [1, 2]
    assert kept(table, (Keep("score", 2),))[0].tolist() == [1, 2, 4]
    assert kept(table, (Keep("score", high=2),))[0].tolist() == [0, 1, 5]
    assert kept(table, (Keep("score"),))[0].tolist() == [0, 1, 2, 4, 5]


def test_captions_are_numbers_too():
    emoji = Emoji(("food",)).open()
    ids, _ = kept(emoji, (Keep("caption_length", high=40), Keep("captions", 1)))
    short = [i for i in range(len(emoji)) if max(map(len, emoji.texts(i))) <= 40]
    assert ids.tolist() == short and 0 < len(ids) < len(emoji)


def test_filters_say_what_they_left_out():
    table = sized(np.where(np.arange(12_000) < 4099, 100, 600), np.where(np.arange(12_000) < 11_997, 700, np.nan))
    said = []
    divide(table, Data(Emoji(), keep=(Keep("side", 512), Keep("aspect", high=1.5))), RNG, said.append)
    assert said == [
        "keep side >= 512: 4,102 of 12,000 left out, 3 of them without it",
        "keep aspect <= 1.5: 0 of 7,898 left out",
    ]
    assert str(Keep("score", 0.5, 2_000_000)) == "0.5 <= score <= 2000000" and str(Keep("score")) == "score"


def test_a_filter_that_leaves_nothing_is_named():
    with pytest.raises(DataError, match=r"^keep side >= 5000: 2,000 of 2,000 left out: no sample remains; widen"):
        kept(TABLE, (Keep("width", 0), Keep("side", 5000)))


@pytest.mark.parametrize(("keep", "hint"), [(Keep("scor", 5), "did you mean 'score'"), (Keep("x"), "known here: ")])
def test_a_number_that_no_sample_has_is_refused(keep, hint):
    with pytest.raises(UserError, match=f"no sample has '{keep.column}'; .*{hint}"):
        kept(TABLE, (keep,))
    with pytest.raises(UserError, match="no sample has 'height'"):
        kept(Emoji(("food",)).open(), (Keep("side", 5),))


def test_filters_are_values():
    data = (Keep("side", 512), Keep("score", high=3.5))
    assert from_data(to_data(data), {"Keep": Keep}) == data
    for bad in ({"low": 3, "high": 2}, {"low": math.nan}, {"low": "3"}):
        with pytest.raises(ValidationError):
            Keep("side", **bad)


def split(n, share, rng=RNG):
    return tuple(ids.tolist() for ids in split_by_count(np.arange(n), share, rng))


def test_the_split_by_count_is_whole_stable_and_never_empty():
    train, held = split(100, 0.1)
    assert len(held) == 10 and sorted(train + held) == list(range(100))
    assert split(100, 0.1) == (train, held) and split(100, 0.1, Rng(12)) != (train, held)
    assert split(1, 0.9) == ([0], []) and split(5, 0.0) == ([0, 1, 2, 3, 4], [])


@pytest.mark.parametrize(
    ("n", "share", "seed", "first", "digest"),
    [
        (1000, 0.1, 11, [15, 17, 28, 32, 66, 74, 78, 85], "6c9306dfaafcd3b4"),
        (5000, 0.02, 3, [76, 77, 125, 163, 211, 251, 292, 301], "589d166e85aab5d5"),
    ],
)
def test_the_split_by_count_is_that_of_runs_begun_before(n, share, seed, first, digest):
    train, held = divide(Table(count=n), Data(Emoji(), holdout=share), Rng(seed))
    assert held[:8].tolist() == first and hashlib.sha256(held.astype("<i8").tobytes()).hexdigest()[:16] == digest
    assert train.dtype == held.dtype == np.int64 and sorted({*train, *held}) == list(range(n))


def test_a_split_by_key_depends_on_the_sample_alone():
    data = Data(Emoji(), holdout=0.1, split="key")
    train, held = divide(TABLE, data, RNG)
    keys = TABLE.keys()
    assert held.tolist() == [i for i in range(N) if int(keys[i]) < int(0.1 * 2**64)]
    assert sorted([*train, *held]) == list(range(N)) and abs(len(held) - N / 10) < 4 * (N * 0.09) ** 0.5
    for other in (divide(TABLE, data, Rng(99))[1], divide(Table(count=N), data, RNG)[1]):
        assert np.array_equal(other, held)
    few = Data(Emoji(), holdout=0.1, split="key", keep=(Keep("side", 512),))
    passed = set(kept(TABLE, few.keep)[0].tolist())
    assert divide(TABLE, few, RNG)[1].tolist() == [i for i in held if i in passed]
    assert set(divide(Table(count=500), data, RNG)[1]) == {i for i in held if i < 500}


def test_a_split_by_key_may_hold_out_none_but_never_all():
    ids = np.arange(3)
    high, low = (np.array(keys, dtype=np.uint64) for keys in ([2**64 - 1] * 3, [5, 7, 6]))
    assert [part.tolist() for part in split_by_key(ids, 0.999, high)] == [[0, 1, 2], []]
    assert [part.tolist() for part in split_by_key(ids, 0.001, low)] == [[1], [0, 2]]


def test_filters_come_before_the_exact_count():
    train, held = divide(TABLE, Data(Emoji(), holdout=0.1, keep=(Keep("side", 512),)), RNG)
    passed, _ = kept(TABLE, (Keep("side", 512),))
    assert len(held) == round(len(passed) / 10) and sorted([*train, *held]) == passed.tolist()
