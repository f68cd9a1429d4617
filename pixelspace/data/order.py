"""Which sample stands at a global position: a pure function, the same for any number of processes and workers."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from itertools import accumulate
from math import lcm
from typing import Any

import numpy as np

from pixelspace.random import Rng, permutation, permuted

BLOCK, MAX_BLOCK = 1024, 1 << 20  # turns in which a mixture has its exact counts


@dataclass(frozen=True, eq=False)
class Runs:
    """Ascending numbers that mostly follow one another, as runs without a gap: how many up to each run's end (r,), and
    what to add to a place in the run to have the number (r,)."""

    ends: np.ndarray
    offsets: np.ndarray

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getitem__(self, k: int) -> int:
        return k + int(self.offsets[np.searchsorted(self.ends, k, side="right")])


def compact(ids: np.ndarray) -> Runs | np.ndarray:
    """Ascending `ids` in the least room, since every worker is sent them."""
    starts = np.append(0, np.flatnonzero(np.diff(ids) != 1) + 1)
    if 4 * len(starts) <= len(ids):
        return Runs(np.append(starts[1:], len(ids)), ids[starts] - starts)
    return ids.astype(np.int32) if ids[-1] < 1 << 31 else ids


def recalled(cache: dict[int, Any], number: int, make: Callable[[int], Any]) -> Any:
    """`make(number)`, which the cache keeps of the last two numbers."""
    if number not in cache:
        if len(cache) == 2:
            del cache[next(iter(cache))]
        cache[number] = make(number)
    return cache[number]


def spread(ids: Sequence[int] | np.ndarray, n: int) -> list[int]:
    """n of the samples `ids`, evenly over all of them, or all; neighbours are often of one kind."""
    n = min(n, len(ids))
    return [int(ids[i * len(ids) // n]) for i in range(n)]


class Order(ABC):
    """Samples by global position."""

    @abstractmethod
    def at(self, p: int) -> int:
        """The number, in the data set, of the sample at position p from 0 on."""

    @abstractmethod
    def instead(self, p: int, tries: int) -> int:
        """What takes the place of a sample at p that cannot be read, and of `tries` - 1 others after it."""

    def size(self, p: int) -> tuple[int, int] | None:
        """Height and width that the sample at p is cut to; None: the stage's."""
        return None


@dataclass(frozen=True, eq=False)
class Shuffled(Order):
    """The samples `ids`, each once an epoch, every epoch in a new order."""

    ids: Runs | np.ndarray
    rng: Rng

    def at(self, p: int) -> int:
        return int(self.ids[self.rng.sample_id(p, len(self.ids))])

    def instead(self, p: int, tries: int) -> int:
        return int(self.ids[self.rng.key("substitute", p, tries) % len(self.ids)])


@dataclass(frozen=True, eq=False)
class Windowed(Order):
    """The samples `ids`, each once an epoch, read from few files at a time: every epoch the files come in a new order,
    and the samples of each `window` of them in a row are shuffled together. `starts` (f,) says where in `ids` each
    file's begin; no file has none."""

    ids: Runs | np.ndarray
    starts: np.ndarray
    window: int
    rng: Rng
    _epochs: dict[int, Any] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, ids: np.ndarray, files: np.ndarray, window: int, rng: Rng) -> "Windowed":
        """Of ascending `ids`, given the first sample of each file, which may have none of them."""
        return cls(compact(ids), np.unique(np.searchsorted(ids, files[files <= ids[-1]])), window, rng)

    def _epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The files in order, how many samples up to the end of each, and how many up to the end of each window."""
        files = permutation(len(self.starts), self.rng.key("files", epoch))
        ends = np.diff(self.starts, append=len(self.ids))[files].cumsum()
        windows = np.append(ends[self.window - 1 : -1 : self.window], len(self.ids))
        return files, ends, windows

    def at(self, p: int) -> int:
        epoch, k = divmod(p, len(self.ids))
        files, ends, windows = recalled(self._epochs, epoch, self._epoch)
        window = int(np.searchsorted(windows, k, side="right"))
        start = int(windows[window - 1]) if window else 0
        k = start + permuted(k - start, int(windows[window]) - start, self.rng.key("window", epoch, window))
        place = int(np.searchsorted(ends, k, side="right"))
        before = int(ends[place - 1]) if place else 0
        return int(self.ids[int(self.starts[files[place]]) + k - before])

    def instead(self, p: int, tries: int) -> int:
        return int(self.ids[self.rng.key("substitute", p, tries) % len(self.ids)])


def block_of(weights: Sequence[Fraction]) -> int:
    """How many turns have exact counts of each part: enough that each has one among them."""
    least = sum(weights) / min(weights)
    return max(BLOCK, 1 << (-(-least.numerator // least.denominator) - 1).bit_length())


@dataclass(frozen=True, eq=False)
class Interleaved(Order):
    """Parts by turns of `unit` positions, each in its own order and epochs, in proportion to their weights.

    After n blocks of turns a part has had its share of them to within one; which turns of a block are its own is a
    permutation of the block.
    """

    parts: tuple[Order, ...]
    weights: tuple[Fraction, ...]
    rng: Rng
    unit: int = 1
    _blocks: dict[int, Any] = field(default_factory=dict, repr=False)

    @cached_property
    def _shares(self) -> tuple[int, ...]:
        """Sums of the weights before each part and after the last, as integers."""
        scale = lcm(*(weight.denominator for weight in self.weights))
        return tuple(accumulate((int(weight * scale) for weight in self.weights), initial=0))

    @cached_property
    def _block(self) -> int:
        return block_of(self.weights)

    def _drawn(self, blocks: int) -> np.ndarray:
        """(parts,) turns that each has had after so many blocks.

        Differences of rounded-down sums: within one of the exact share, and never falling, since in a block each part
        is due one turn at least.
        """
        return np.diff([share * blocks * self._block // self._shares[-1] for share in self._shares])

    def _turns(self, block: int) -> tuple[np.ndarray, np.ndarray]:
        """Of each turn of the block, whose it is, and how many that part had before."""
        before = self._drawn(block)
        counts = self._drawn(block + 1) - before
        sorted_turns = np.repeat(np.arange(len(counts)), counts)
        whose = sorted_turns[permutation(self._block, self.rng.key("mixture", block))]
        earlier = np.empty_like(whose)
        first = counts.cumsum() - counts
        earlier[np.argsort(whose, kind="stable")] = np.arange(self._block) + (before - first)[sorted_turns]
        return whose, earlier

    def _part(self, p: int) -> tuple[Order, int]:
        """Whose turn p is in, and which position of that part it is."""
        turn, row = divmod(p, self.unit)
        block, i = divmod(turn, self._block)
        whose, earlier = recalled(self._blocks, block, self._turns)
        return self.parts[whose[i]], int(earlier[i]) * self.unit + row

    def at(self, p: int) -> int:
        part, q = self._part(p)
        return part.at(q)

    def instead(self, p: int, tries: int) -> int:
        part, q = self._part(p)
        return part.instead(q, tries)

    def size(self, p: int) -> tuple[int, int] | None:
        part, q = self._part(p)
        return part.size(q)
