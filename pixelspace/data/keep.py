"""Which samples are trained on: filters as data, and the share held out for validation."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from pixelspace.config import value
from pixelspace.errors import DataError
from pixelspace.random import Rng


@value
class Keep:
    """Samples whose number `column` lies from `low` to `high`, both included; those without the number are left out.

    Besides what `Dataset.column` knows: `side`, the shorter one of an image, and `aspect`, the longer over the shorter.
    """

    column: str
    low: float | None = None
    high: float | None = None

    def __post_init__(self) -> None:
        if self.low is not None and self.high is not None and self.low > self.high:
            raise ValueError(f"Keep: low {self.low:.10g} is over high {self.high:.10g}; nothing lies between")

    def __str__(self) -> str:
        if self.low is not None and self.high is not None:
            return f"{self.low:.10g} <= {self.column} <= {self.high:.10g}"
        if self.low is not None:
            return f"{self.column} >= {self.low:.10g}"
        return self.column if self.high is None else f"{self.column} <= {self.high:.10g}"


@dataclass(frozen=True, slots=True)
class Left:
    """Of `count` samples that came to a filter, how many it left out in all, and how many of these for want of the
    number."""

    keep: Keep
    count: int
    out: int
    unknown: int

    def __str__(self) -> str:
        unknown = f", {self.unknown:,} of them without it" if self.unknown else ""
        return f"keep {self.keep}: {self.out:,} of {self.count:,} left out{unknown}"


class Columns(Protocol):
    """What of a data set filters read."""

    def __len__(self) -> int: ...

    def column(self, name: str) -> np.ndarray: ...


def _numbers(dataset: Columns, name: str) -> np.ndarray:
    if name not in ("side", "aspect"):
        return dataset.column(name)
    height, width = dataset.column("height"), dataset.column("width")
    if name == "side":
        return np.minimum(height, width)
    with np.errstate(divide="ignore", invalid="ignore"):  # metadata may say 0
        return np.maximum(height, width) / np.minimum(height, width)


def kept(dataset: Columns, filters: Sequence[Keep]) -> tuple[np.ndarray, tuple[Left, ...]]:
    """The ids, int64 and ascending, of the samples that pass all filters, and what each left out of those before it
    had passed on.

    Raises:
        UserError: a number that no sample has.
        DataError: a filter left nothing.
    """
    ids, told = np.arange(len(dataset)), []
    for keep in filters:
        numbers = _numbers(dataset, keep.column)[ids]
        passed = ~np.isnan(numbers)
        unknown = len(ids) - int(passed.sum())
        if keep.low is not None:
            passed &= numbers >= keep.low
        if keep.high is not None:
            passed &= numbers <= keep.high
        left = Left(keep, len(ids), len(ids) - int(passed.sum()), unknown)
        if left.out == left.count:
            raise DataError(f"{left}: no sample remains; widen the filter or leave it away")
        told.append(left)
        ids = ids[passed]
    return ids, tuple(told)


def split_by_count(ids: np.ndarray, share: float, rng: Rng) -> tuple[np.ndarray, np.ndarray]:
    """(training ids, validation ids) of ascending `ids`, both ascending: to the nearest count the `share` that a hash
    of the ids ranks first; at least one stays for training."""
    held = min(round(len(ids) * share), len(ids) - 1)
    if not held:
        return ids, ids[:0]
    ranked = np.argsort(Rng(rng.key("holdout")).keys(ids), kind="stable")
    return ids[np.sort(ranked[held:])], ids[np.sort(ranked[:held])]


def split_by_key(ids: np.ndarray, share: float, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(training ids, validation ids) of ascending `ids`, both ascending: held out are those of uint64 `keys` (n,) below
    the share of 2^64, so that it depends on nothing but a sample's own key; at least one stays for training."""
    out = keys < np.uint64(int(share * 2**64))
    if out.all():
        out[keys.argmax()] = False
    return ids[~out], ids[out]
