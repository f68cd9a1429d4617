"""A folder of images, each file checked against what the index saw of it."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np

from pixelspace.config import value
from pixelspace.data.dataset import Picture, Pictures, Source
from pixelspace.data.decode import decode, read, shown
from pixelspace.data.index import Entry, Index, load_or_build
from pixelspace.data.labels import Labelling
from pixelspace.data.packed import Captions, Strings
from pixelspace.data.preparation import Preparation
from pixelspace.data.report import report
from pixelspace.errors import DataError


@dataclass(frozen=True, eq=False)
class _Images:
    """What an index says of n good images: SHA-256 (n, 32), labels (n,), heights and widths (n, 2), and the numbers of
    each column (n,)."""

    files: Strings
    sha256: np.ndarray
    labels: np.ndarray
    texts: Captions
    sizes: np.ndarray
    numbers: dict[str, np.ndarray]

    @classmethod
    def of(cls, entries: Sequence[Entry], columns: tuple[str, ...]) -> "_Images":
        digests = bytes.fromhex("".join(entry.sha256 for entry in entries))
        return cls(
            files=Strings.of(entry.name for entry in entries),
            sha256=np.frombuffer(digests, dtype=np.uint8).reshape(len(entries), 32),
            labels=np.fromiter((entry.label for entry in entries), dtype=np.int32, count=len(entries)),
            texts=Captions.of(entry.texts for entry in entries),
            sizes=np.array([(entry.height, entry.width) for entry in entries], dtype=np.uint16),
            numbers={
                name: np.fromiter((entry.numbers[i] for entry in entries), dtype=np.float64, count=len(entries))
                for i, name in enumerate(columns)
            },
        )


@dataclass(frozen=True)
class FolderDataset(Pictures):
    """The good images of an indexed folder. An image that is no more what the index saw is refused."""

    root: Path
    classes: tuple[str, ...]
    fingerprint: str
    images: _Images = field(repr=False, compare=False)

    @staticmethod
    def of(root: Path, index: Index) -> "FolderDataset":
        """The good images of `index`, which lie in `root`."""
        return FolderDataset(root, index.classes, index.fingerprint, _Images.of(index.good, index.columns))

    def __len__(self) -> int:
        return len(self.images.files)

    def name(self, index: int) -> str:
        return shown(self.images.files[index])

    def texts(self, index: int) -> tuple[str, ...]:
        return self.images.texts[index]

    def columns(self) -> tuple[str, ...]:
        own = (*super().columns(), "height", "width")
        return *own, *(name for name in self.images.numbers if name not in own)

    def column(self, name: str) -> np.ndarray:
        if name in ("height", "width"):
            return self.images.sizes[:, int(name == "width")].astype(np.float64)
        if name == "captions":
            return self.images.texts.counts()
        if name in self.images.numbers and name not in super().columns():
            return self.images.numbers[name]
        return super().column(name)

    def picture(self, index: int) -> Picture:
        index = range(len(self))[index]
        file = self.images.files[index]
        try:
            data = read(self.root / file)
        except DataError as error:
            raise DataError(f"{shown(file)}: {error}") from error
        if hashlib.sha256(data).digest() != self.images.sha256[index].tobytes():
            raise DataError(f"{shown(file)}: changed since the folder was indexed; start again to index it anew")
        return Picture(decode(data, file), int(self.images.labels[index]), self.images.texts[index])


@value
class Folder(Source):
    """A folder of images at any depth; see `data.index` for labels and captions. At most `max_bad_share` may be bad.

    With `labels` none there are no classes: sub-folders, such as FFHQ's 00000 to 69000, only keep files apart. `names`
    is a file of the names of classes: see `data.labels`.
    """

    kind: ClassVar[str] = "a folder of images"
    path: str
    max_bad_share: float = 0.1
    labels: Labelling = "auto"
    names: str | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.max_bad_share < 1:
            raise ValueError(f"Folder: max_bad_share must be in [0, 1), found {self.max_bad_share}")
        if self.names is not None and self.labels == "none":
            raise ValueError("Folder: names are those of classes, and labels is none; leave one of them out")

    def _index(self, cache: Path | None) -> Index:
        names = None if self.names is None else Path(self.names)
        return load_or_build(Path(self.path), cache, self.labels, names)

    def open(self, cache: Path | None = None) -> FolderDataset:
        index = self._index(cache)
        index.check(self.max_bad_share)
        return FolderDataset.of(Path(self.path), index)

    def prepare(self, cache: Path, how: Preparation) -> None:
        how.only(self.kind)
        report(self._index(cache), cache, how, self.max_bad_share)
