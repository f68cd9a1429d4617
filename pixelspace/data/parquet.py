"""Images with captions, labels and numbers in Parquet files (extra `parquet`), here or elsewhere.

What they hold is found out once, as of tar shards (`data.shard_index`). A row is then read with its whole row group, so
that an order by files, which are row groups here, is much faster than one by samples.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import ClassVar

import numpy as np

from pixelspace.config import to_data, value
from pixelspace.data.dataset import Source
from pixelspace.data.decode import shown
from pixelspace.data.file_cache import locked
from pixelspace.data.labels import MAX_CLASSES
from pixelspace.data.parquet_rows import GROUP_BITS, Groups, Wanted, labels_of, scan_rows
from pixelspace.data.preparation import Preparation
from pixelspace.data.remote import File, Files, is_url, open_files
from pixelspace.data.report import report_shards
from pixelspace.data.shard_index import Indexed, build_index
from pixelspace.data.shard_part import AGAIN
from pixelspace.data.shards import ShardsDataset, with_cache
from pixelspace.errors import DataError, ResourceError

SUFFIXES = (".parquet", ".pq")


@dataclass(frozen=True, eq=False)
class ParquetDataset(ShardsDataset):
    """The good rows of Parquet files, in the order of the files' names and of the rows in each."""

    groups: Groups = field(repr=False)

    def __reduce__(self) -> tuple:
        _, fields = super().__reduce__()
        return ParquetDataset, (*fields, self.groups)

    def _image(self, shard: int, offset: int, size: int) -> bytes:
        return self.groups.read(self.shards.files[shard], offset)

    def files(self) -> np.ndarray:
        """The first sample of each row group."""
        found = []
        for start, part in zip(self._starts[:-1], self._parts, strict=True):
            found.append(start + np.flatnonzero(np.diff(part.column("offset") >> GROUP_BITS, prepend=0)))
        return np.concatenate(found)


def _classes(files: Files, wanted: Wanted) -> tuple[str, ...]:
    if wanted.label is None:
        return ()
    named, labels = tuple[str, ...](), set[str | int]()
    for file in files.files:
        names, found = labels_of(file, wanted)
        if names and named and names != named:
            raise DataError(f"{shown(file.path)}: its classes are not those of the files before it")
        named, labels = names or named, labels | found
    numbers = {label for label in labels if isinstance(label, int)}
    if numbers and len(numbers) < len(labels):
        raise DataError(f"column {wanted.label!r} holds numbers in some files and names in others")
    if not numbers:
        return named or tuple(sorted(map(str, labels)))
    if not named and not (-1 <= min(numbers) and max(numbers) < MAX_CLASSES):
        low, high = min(numbers), max(numbers)
        raise DataError(
            f"column {wanted.label!r} holds {low} to {high}; labels are names, or whole numbers from 0 (-1: none) to "
            f"{MAX_CLASSES - 1}"
        )
    return named or tuple(str(i) for i in range(max(numbers) + 1))


def _images(wanted: Wanted, file: File, spans: Iterable[tuple[int, int]]) -> Iterator[bytes]:
    groups = Groups(wanted)
    for offset, _ in spans:
        yield groups.read(file, offset)


@value
class Parquet(Source):
    """Parquet files: one, a folder of them, a pattern (`train-*.parquet`), or a URL of any of these (extra `remote`),
    with an image in each row.

    Images are bytes or Hugging Face's structs, captions strings or lists of them, labels numbers or names; every other
    column of numbers can be filtered by. Of rows at most `max_bad_share` may be bad. Files from elsewhere are kept in a
    cache of `cache_gib`.
    """

    kind: ClassVar[str] = "Parquet files"
    path: str
    image_key: str = "image"
    text_key: str | None = None
    label_key: str | None = None
    max_bad_share: float = 0.1
    cache_gib: float = 20.0

    def __post_init__(self) -> None:
        if not 0 <= self.max_bad_share < 1:
            raise ValueError(f"Parquet: max_bad_share must be in [0, 1), found {self.max_bad_share}")
        if not self.cache_gib > 0:
            raise ValueError(f"Parquet: cache_gib must be positive, found {self.cache_gib}")
        keys = [key for key in (self.image_key, self.text_key, self.label_key) if key is not None]
        if len(set(keys)) < len(keys):
            raise ValueError(f"Parquet: image_key, text_key and label_key must be different columns, found {keys}")

    def open(self, cache: Path | None = None) -> ParquetDataset:
        return with_cache(self._open, cache)

    def _locate(self, cache: Path) -> tuple[Files, Indexed, Path, Wanted, tuple[str, ...]]:
        """The files, what an index of them says, its folder, the columns wanted and the classes."""
        files = open_files(self.path, SUFFIXES, cache, self.cache_gib)
        wanted = Wanted(self.image_key, self.text_key, self.label_key)
        classes = _classes(files, wanted)
        indexed = Indexed(self.path if is_url(self.path) else os.path.realpath(self.path), None)
        identity = json.dumps([indexed.path, to_data(wanted), classes])
        folder = cache / "parquet" / hashlib.sha256(identity.encode()).hexdigest()[:32]
        return files, indexed, folder, wanted, classes

    def prepare(self, cache: Path, how: Preparation) -> None:
        how.only(self.kind, "workers", "verify")  # elsewhere than in the cache, the index would not be found
        files, indexed, folder, wanted, classes = self._locate(cache)
        scanner, images = partial(scan_rows, wanted, classes), partial(_images, wanted)
        report_shards(files, indexed, folder, how, self.max_bad_share, scanner, images)

    def _open(self, cache: Path) -> ParquetDataset:
        files, indexed, folder, wanted, classes = self._locate(cache)
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            with locked(folder.with_name(f"{folder.name}.lock")):  # others that start now wait for it
                index = build_index(files, indexed, folder, scanner=partial(scan_rows, wanted, classes))
        except OSError as error:
            raise ResourceError(f"{folder}: cannot be written: {error.strerror}; give another cache folder") from error
        if index is None:
            raise DataError(f"{folder}: parts of this index are damaged or gone; {AGAIN}")
        index.check(self.max_bad_share)
        good = np.array([one.part.good for one in index.manifest.shards], dtype=np.int64)
        fingerprint = hashlib.sha256(json.dumps([index.fingerprint, classes]).encode()).hexdigest()
        return ParquetDataset(folder, files, good, index.numbers, classes, fingerprint, Groups(wanted))
