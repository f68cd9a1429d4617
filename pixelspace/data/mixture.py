"""Data sets drawn together in proportion to weights, each in its own order and epochs; see `order.Interleaved`."""

import hashlib
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from itertools import accumulate
from pathlib import Path

import numpy as np

from pixelspace.config import nearest, value
from pixelspace.data.codec import Codec
from pixelspace.data.dataset import Dataset, Sample, Share, Source
from pixelspace.data.keep import Keep
from pixelspace.data.order import MAX_BLOCK, block_of
from pixelspace.data.transforms import Cut
from pixelspace.errors import DataError, UserError


@value
class Part:
    """What of a mixture comes from `source`: of what is drawn the share of `weight` among all weights, and only samples
    that pass the filters `keep`."""

    source: Source
    weight: float
    keep: tuple[Keep, ...] = ()

    def __post_init__(self) -> None:
        if not self.weight > 0:
            raise ValueError(f"Part: weight must be over 0, found {self.weight}; leave the part out instead")


@dataclass(frozen=True)
class MixtureDataset(Dataset):
    """The samples of all parts, one part after the other. Where their classes differ there are none, and no labels."""

    shares: tuple[Share, ...]
    classes: tuple[str, ...]
    fingerprint: str
    holds_images: bool  # pyright: ignore[reportIncompatibleVariableOverride]

    def __len__(self) -> int:
        return self.shares[-1].start + len(self.shares[-1].dataset)

    def _at(self, index: int) -> tuple[int, Dataset, int]:
        """The part's number, the part, and the sample's number there."""
        index = range(len(self))[index]
        number = bisect_right(self.shares, index, key=lambda share: share.start) - 1
        return number, self.shares[number].dataset, index - self.shares[number].start

    @contextmanager
    def _named(self, number: int) -> Iterator[None]:
        try:
            yield
        except DataError as error:
            raise DataError(f"{self._prefix(number)}{error}") from error

    def _prefix(self, number: int) -> str:
        return f"{number}:" if len(self.shares) > 1 else ""

    def _labelled(self, sample: Sample) -> Sample:
        return sample if self.classes else sample._replace(label=-1)

    def name(self, index: int) -> str:
        number, part, i = self._at(index)
        return self._prefix(number) + part.name(i)

    def __getitem__(self, index: int) -> Sample:
        number, part, i = self._at(index)
        with self._named(number):
            return self._labelled(part[i])

    def cut(self, index: int, cut: Cut) -> Sample:
        number, part, i = self._at(index)
        with self._named(number):
            return self._labelled(part.cut(i, cut))

    def texts(self, index: int) -> tuple[str, ...]:
        number, part, i = self._at(index)
        with self._named(number):
            return part.texts(i)

    def columns(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(name for share in self.shares for name in share.dataset.columns()))

    def column(self, name: str) -> np.ndarray:
        """Of parts that have no such number all are NaN."""
        if name not in self.columns():
            raise UserError(f"no sample has {name!r}; {nearest(name, self.columns())}")
        sets = [share.dataset for share in self.shares]
        return np.concatenate([s.column(name) if name in s.columns() else np.full(len(s), np.nan) for s in sets])

    def keys(self) -> np.ndarray:
        return np.concatenate([share.dataset.keys() for share in self.shares])

    def files(self) -> np.ndarray:
        return np.concatenate([share.dataset.files() + share.start for share in self.shares])

    def parts(self) -> tuple[Share, ...]:
        found = []
        for share in self.shares:
            inner = share.dataset.parts()
            total = sum(one.weight for one in inner)
            for dataset, start, weight, keep in inner:
                found.append(Share(dataset, share.start + start, share.weight * weight / total, share.keep + keep))
        return tuple(found)

    def check(self, size: tuple[int, int], flip: bool, codec: Codec) -> None:
        for share in self.shares:
            share.dataset.check(size, flip, codec)


@value
class Mixture(Source):
    """Data sets drawn together, each in the share of its weight; the same source may stand in several parts."""

    parts: tuple[Part, ...]

    def __post_init__(self) -> None:
        if not self.parts:
            raise ValueError("Mixture: give at least one part")
        for number, part in enumerate(self.parts):
            if part.source.frames != self.frames:
                raise UserError(
                    f"part {number} of the mixture has samples of {part.source.frames} frames, part 0 of "
                    f"{self.frames}; give all as many by source.frames"
                )

    @property
    def frames(self) -> int:  # type: ignore[override]
        return self.parts[0].source.frames

    def open(self, cache: Path | None = None) -> MixtureDataset:
        opened = {source: source.open(cache) for source in dict.fromkeys(part.source for part in self.parts)}
        sets = [opened[part.source] for part in self.parts]
        for number, dataset in enumerate(sets):
            if not len(dataset):
                raise DataError(f"part {number} of the mixture has no samples; leave it out")
            if dataset.holds_images != sets[0].holds_images:
                raise UserError(
                    "a mixture has parts with images and parts with latents or clips; give all as one of them"
                )
        starts = accumulate(map(len, sets[:-1]), initial=0)
        described = zip(sets, starts, self.parts, strict=True)
        shares = tuple(Share(dataset, start, Fraction(part.weight), part.keep) for dataset, start, part in described)
        same = all(dataset.classes == sets[0].classes for dataset in sets)
        mixed = MixtureDataset(
            shares,
            sets[0].classes if same else (),
            hashlib.sha256("\n".join(dataset.fingerprint for dataset in sets).encode()).hexdigest(),
            sets[0].holds_images,
        )
        if block_of([share.weight for share in mixed.parts()]) > MAX_BLOCK:
            raise UserError(f"a part of the mixture has less than one of {MAX_BLOCK:,} samples; give it more weight")
        return mixed
