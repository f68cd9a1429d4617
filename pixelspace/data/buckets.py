"""Batches of one shape each, near the images' own: less of an image is cut away than by one size for all.

Which batch has which shape, and which samples, is a function of the data set's numbers, the seed and the epoch.
"""

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from itertools import accumulate
from typing import Any

import numpy as np

from pixelspace.config import value
from pixelspace.data.dataset import Dataset
from pixelspace.data.order import Order, Runs, compact, recalled
from pixelspace.errors import DataError, UserError
from pixelspace.random import Rng, permuted

Size = tuple[int, int]  # height, width


@value
class Buckets:
    """Sizes of up to the stage's area, with sides that are multiples of `multiple`, the longer at most `max_aspect`
    times the shorter."""

    multiple: int = 64
    max_aspect: float = 2.0

    def __post_init__(self) -> None:
        if self.multiple < 1:
            raise ValueError(f"Buckets: multiple must be at least 1, found {self.multiple}")
        if self.max_aspect < 1:
            raise ValueError(f"Buckets: max_aspect must be at least 1, found {self.max_aspect}")

    def sizes(self, size: Size) -> tuple[Size, ...]:
        """All (height, width) of a stage of `size`, which is one of them, from the widest to the tallest: for each side
        the longest other one that stays within the area, and each size also turned.

        Raises:
            UserError: a stage's size that is not such a size.
        """
        (height, width), step = size, self.multiple
        if height % step or width % step:
            raise UserError(
                f"data.buckets: the stage's size {height}x{width} needs sides that are multiples of {step}; "
                f"set data.buckets.multiple to {math.gcd(height, width)} or a divisor of it"
            )
        if max(size) > self.max_aspect * min(size):
            raise UserError(
                f"data.buckets: the stage's size {height}x{width} is beyond max_aspect {self.max_aspect:g}; raise it"
            )
        area = height * width
        sides = range(step, math.isqrt(int(area * self.max_aspect)) + 1, step)
        pairs = [(side, area // side // step * step) for side in sides]
        pairs = [pair for pair in (*pairs, size) if max(pair) <= self.max_aspect * min(pair)]
        found = sorted({*pairs, *((b, a) for a, b in pairs)})  # of one shape the largest comes last
        of_shape = {Fraction(a, b): (a, b) for a, b in found}
        return tuple(of_shape[shape] for shape in sorted(of_shape))


def nearest_size(sizes: Sequence[Size], height: np.ndarray, width: np.ndarray) -> np.ndarray:
    """(n,) which of `sizes` is nearest in the logarithm of its aspect to images of such heights and widths (n,)."""
    table = np.array(sizes, dtype=np.float64)
    # Squares and quotients are the same on every machine, logarithms need not be: between two sizes lies the root of
    # the product of their aspects.
    tall, wide = (table[:-1] * table[1:]).T
    return np.searchsorted(tall / wide, (height * height) / (width * width))


def joined(sizes: Sequence[Size], counts: Sequence[int], batch: int) -> list[int]:
    """Which size each size's samples are cut to: another one's, the nearest in aspect, where they do not fill a
    batch."""
    to, counts = list(range(len(sizes))), list(counts)
    aspect = [Fraction(*size) for size in sizes]
    there = [i for i, count in enumerate(counts) if count]
    while len(there) > 1 and min(counts[i] for i in there) < batch:
        at = min(range(len(there)), key=lambda at: counts[there[at]])
        i, beside = there[at], [there[j] for j in (at - 1, at + 1) if 0 <= j < len(there)]
        into = min(beside, key=lambda j: max(aspect[i] / aspect[j], aspect[j] / aspect[i]))
        to = [into if j == i else j for j in to]
        counts[into] += counts[i]
        there.remove(i)
    return to


@dataclass(frozen=True, eq=False)
class Bucketed(Order):
    """Whole batches of samples `ids[i]`, cut to `sizes[i]`, in a new order every epoch. What does not fill a batch is
    left out for the epoch; in the next these are others."""

    sizes: tuple[Size, ...]
    ids: tuple[Runs | np.ndarray, ...]
    batch: int
    rng: Rng
    _epochs: dict[int, Any] = field(default_factory=dict, repr=False)

    @cached_property
    def _ends(self) -> list[int]:
        """Batches of an epoch up to the last of each size."""
        return list(accumulate(len(ids) // self.batch for ids in self.ids))

    def _keys(self, epoch: int) -> list[int]:
        sizes = [self.rng.key("bucket", epoch, height, width) for height, width in self.sizes]
        return [*sizes, self.rng.key("batches", epoch)]

    def _place(self, p: int) -> tuple[int, int, list[int]]:
        """Of position p the number of its size, how many samples of it come before in the epoch, and the keys."""
        batch, row = divmod(p, self.batch)
        epoch, k = divmod(batch, self._ends[-1])
        keys = recalled(self._epochs, epoch, self._keys)
        k = permuted(k, self._ends[-1], keys[-1])
        i = bisect_right(self._ends, k)
        return i, (k - (self._ends[i - 1] if i else 0)) * self.batch + row, keys

    def at(self, p: int) -> int:
        i, k, keys = self._place(p)
        return int(self.ids[i][permuted(k, len(self.ids[i]), keys[i])])

    def instead(self, p: int, tries: int) -> int:
        ids = self.ids[self._place(p)[0]]
        return int(ids[self.rng.key("substitute", p, tries) % len(ids)])

    def size(self, p: int) -> Size:
        return self.sizes[self._place(p)[0]]


def bucketed(
    dataset: Dataset,
    start: int,
    ids: np.ndarray,
    sizes: tuple[Size, ...],
    batch: int,
    rng: Rng,
    say: Callable[[str], None],
) -> Bucketed:
    """Samples `ids` in batches of one of `sizes` each; the first sample of `dataset` has the number `start`.

    Raises:
        UserError: the data set does not know how large its images are.
        DataError: it does not know it of some, or there are fewer samples than one batch.
    """
    try:
        height, width = (dataset.column(name)[ids - start] for name in ("height", "width"))
    except UserError as error:
        raise UserError(f"data.buckets needs the height and width of every image: {error}") from error
    if unknown := len(ids) - int(np.sum((height > 0) & (width > 0))):
        raise DataError(
            f"data.buckets: {unknown:,} of {len(ids):,} samples have no height and width; "
            f"leave them out by Keep('side', low=1) in data.keep"
        )
    if len(ids) < batch:
        raise DataError(f"data.buckets: {len(ids)} samples do not fill one batch of {batch}")
    nearest = nearest_size(sizes, height, width)
    counts = np.bincount(nearest, minlength=len(sizes)).tolist()
    to = joined(sizes, counts, batch)
    named = [f"{height}x{width}" for height, width in sizes]
    parts = [f"{named[i]} {count:,}" for i, count in enumerate(counts) if count and to[i] == i]
    parts += [f"{named[i]} {count:,} joins {named[to[i]]}" for i, count in enumerate(counts) if count and to[i] != i]
    say(f"buckets of height x width, samples nearest in aspect: {', '.join(parts)}")
    target = np.array(to)[nearest]
    used = sorted({to[i] for i, count in enumerate(counts) if count})
    return Bucketed(tuple(sizes[i] for i in used), tuple(compact(ids[target == i]) for i in used), batch, rng)
