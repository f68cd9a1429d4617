"""Samples in tar shards as img2dataset writes them (WebDataset), here or elsewhere, by number.

What they hold is found out once (`data.shard_index`); then each is one read at a known place. A process checks an
image's bytes against the index when it first reads them.
"""

import hashlib
import os
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp
from typing import BinaryIO, ClassVar, TypeVar
from weakref import finalize

import numpy as np

from pixelspace.config import nearest, value
from pixelspace.data.dataset import Picture, Pictures, Source
from pixelspace.data.decode import examine, shown
from pixelspace.data.file_cache import locked
from pixelspace.data.preparation import Preparation
from pixelspace.data.remote import Files, is_url, open_files
from pixelspace.data.report import report_shards
from pixelspace.data.shard_index import (
    BEGUN,
    MANIFEST,
    SEAL,
    Indexed,
    build_index,
    is_index,
    open_index,
)
from pixelspace.data.shard_part import AGAIN, PartFile, Rows, name_of, part_path
from pixelspace.data.tar import read_at
from pixelspace.errors import DataError, ResourceError, UserError

T = TypeVar("T")

SUFFIX = ".tar"
COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst")
_OPEN = 128  # files a process keeps open, of parts and of shards each
_OPEN_FETCHED = 4  # of shards from elsewhere: one that had to make room takes its room until it is closed


class _Handles:
    """Open files by number, the `most` that were used last."""

    def __init__(self, most: int):
        self._files, self._most = OrderedDict[int, BinaryIO](), most

    def __getitem__(self, key: int) -> int | None:
        if key not in self._files:
            return None
        self._files.move_to_end(key)
        return self._files[key].fileno()

    def keep(self, key: int, file: BinaryIO) -> int:
        self._files[key] = file
        if len(self._files) > self._most:
            self._files.popitem(last=False)[1].close()
        return file.fileno()

    def __del__(self):
        for file in self._files.values():
            file.close()


@dataclass(frozen=True, eq=False)
class ShardsDataset(Pictures):
    """The good samples of shards, in the order of the shards' names and of the samples in each. A sample that is no
    more what the index in `folder` saw is refused. `good` says how many each shard has, `numbers` names those of their
    metadata."""

    folder: Path
    shards: Files = field(repr=False)
    good: np.ndarray = field(repr=False)
    numbers: tuple[str, ...] = field(repr=False)
    classes: tuple[str, ...] = field(repr=False)
    fingerprint: str

    def __reduce__(self) -> tuple:
        fields = self.folder, self.shards, self.good, self.numbers, self.classes, self.fingerprint
        return ShardsDataset, fields

    @cached_property
    def _starts(self) -> np.ndarray:
        return np.concatenate([[0], np.cumsum(self.good)])

    @cached_property
    def _parts(self) -> list[PartFile]:
        return [PartFile(part_path(self.folder, name)) for name in self.shards.names]

    @cached_property
    def _handles(self) -> tuple[_Handles, _Handles]:
        fetched = any(file.cache for file in self.shards.files)
        return _Handles(_OPEN), _Handles(_OPEN_FETCHED if fetched else _OPEN)

    @cached_property
    def _trusted(self) -> np.ndarray:
        return np.zeros(len(self) // 8 + 1, dtype=np.uint8)  # a bit for each sample that was checked

    def __len__(self) -> int:
        return int(self._starts[-1])

    def _where(self, index: int) -> tuple[int, int]:
        """A sample's shard and its row there."""
        index = range(len(self))[index]
        shard = int(np.searchsorted(self._starts, index, side="right")) - 1
        return shard, index - int(self._starts[shard])

    def _rows(self, shard: int) -> Rows:
        """The rows of a shard's part."""
        part, handles = self._parts[shard], self._handles[0]
        try:
            file = handles[shard]
            return Rows(part, handles.keep(shard, part.path.open("rb", buffering=0)) if file is None else file)
        except OSError as error:
            raise DataError(f"{part.path}: cannot be read: {error.strerror}; {AGAIN}") from error

    def _image(self, shard: int, offset: int, size: int) -> bytes:
        handles = self._handles[1]
        file = handles[shard]
        if file is None:
            file = handles.keep(shard, self.shards.files[shard].open())
        try:
            return read_at(file, offset, size)
        except OSError as error:
            raise DataError(f"cannot be read: {error.strerror}") from error

    def name(self, index: int) -> str:
        shard, i = self._where(index)
        try:
            key = self._rows(shard).key(i)
        except DataError:
            key = f"sample {i}"
        return shown(name_of(self.shards.names[shard], key))

    def texts(self, index: int) -> tuple[str, ...]:
        shard, i = self._where(index)
        return self._rows(shard).texts(i)

    def picture(self, index: int) -> Picture:
        shard, i = self._where(index)
        rows, index = self._rows(shard), int(self._starts[shard]) + i
        try:
            data = self._image(shard, rows.number("offset", i), rows.number("size", i))
            byte, bit = divmod(index, 8)
            if not self._trusted[byte] >> bit & 1:
                if hashlib.sha256(data).digest() != rows.sha256(i):
                    raise DataError(f"changed since it was indexed; {AGAIN}")
                self._trusted[byte] |= 1 << bit
            image = examine(data).image
        except DataError as error:
            raise DataError(f"{self.name(index)}: {error}") from error
        return Picture(image, rows.number("label", i), rows.texts(i))

    def columns(self) -> tuple[str, ...]:
        own = *super().columns(), *_MEASURED
        return *own, *(name for name in self.numbers if name not in own)

    def column(self, name: str) -> np.ndarray:
        if name not in self.columns():
            raise UserError(f"{type(self).__name__}: no sample has {name!r}; {nearest(name, self.columns())}")
        return np.concatenate([_column(part, name) for part in self._parts])

    def keys(self) -> np.ndarray:
        return np.concatenate([part.column("known_by") for part in self._parts])

    def files(self) -> np.ndarray:
        return np.unique(self._starts[:-1][self.good > 0])


_MEASURED = {"height": 0, "width": 1}


def _column(part: PartFile, name: str) -> np.ndarray:
    if name in _MEASURED:
        found = part.column("shape")[:, _MEASURED[name]]
    elif name == "captions":
        found = np.diff(part.column("caption_ends"), prepend=0)
    elif name == "caption_length":
        found = part.column("length")
    else:
        found = part.number(name)
    return found.astype(np.float64)


def with_cache(open_in: Callable[[Path], T], cache: Path | None) -> T:
    """What is opened in the folder `cache`, or in one that lasts as long as it does."""
    if cache is not None:
        return open_in(cache)
    temporary = mkdtemp(prefix="pixelspace-")
    try:
        dataset = open_in(Path(temporary))
    except BaseException:
        rmtree(temporary, ignore_errors=True)
        raise
    finalize(dataset, rmtree, temporary, ignore_errors=True)
    return dataset


@value
class Shards(Source):
    """Tar shards as img2dataset writes them: a folder of *.tar, one, a pattern (`cc12m/{00000..01242}.tar`, `*.tar`), a
    URL of any of these (extra `remote`), or the folder of an index that `pixelspace prepare --out` wrote.

    `text_key` takes captions from that key of the .json (a string or a list of them) in place of the .txt. Of samples,
    and of shards, at most `max_bad_share` may be bad. Shards from elsewhere are kept in a cache of `cache_gib`.
    """

    kind: ClassVar[str] = "tar shards"
    path: str
    max_bad_share: float = 0.1
    text_key: str | None = None
    cache_gib: float = 20.0

    def __post_init__(self) -> None:
        if not 0 <= self.max_bad_share < 1:
            raise ValueError(f"Shards: max_bad_share must be in [0, 1), found {self.max_bad_share}")
        if not self.cache_gib > 0:
            raise ValueError(f"Shards: cache_gib must be positive, found {self.cache_gib}")

    def locate(self, cache: Path, out: Path | None = None) -> tuple[Files, Indexed, Path]:
        """The shards, what an index of them says, and its folder: `out`, or one below `cache`.

        Raises:
            UserError: an index of captions under another key; a path that cannot be meant.
            DataError: no such shards, or compressed ones.
        """
        root = Path(self.path)
        if os.fsencode(self.path).decode(errors="replace") != self.path:
            raise UserError(f"{shown(self.path)}: a path that is not UTF-8; give it another name, or a link")
        if not is_url(self.path) and is_index(root):
            indexed, _ = SEAL.read(root / BEGUN, Indexed)
            if self.text_key not in (None, indexed.text_key):
                raise UserError(f"{root}: indexed with text_key {indexed.text_key!r}, not {self.text_key!r}")
            folder = root
        else:
            indexed = Indexed(self.path if is_url(self.path) else os.path.realpath(root), self.text_key)
            digest = hashlib.sha256(f"{indexed.path}\n{indexed.text_key or ''}".encode("utf-8", "surrogateescape"))
            folder = out or cache / "shards" / digest.hexdigest()[:32]
        files = open_files(indexed.path, (SUFFIX, *COMPRESSED), cache, self.cache_gib)
        for name in files.names:
            if name.lower().endswith(COMPRESSED):
                raise DataError(f"{name}: compressed: members can only be read in order; decompress it to a .tar")
        return files, indexed, folder

    def prepare(self, cache: Path, how: Preparation) -> None:
        report_shards(*self.locate(cache, how.out), how, self.max_bad_share)

    def open(self, cache: Path | None = None) -> ShardsDataset:
        return with_cache(self._open, cache)

    def _open(self, cache: Path) -> ShardsDataset:
        files, indexed, folder = self.locate(cache)
        if not (folder / MANIFEST).is_file():
            try:
                folder.parent.mkdir(parents=True, exist_ok=True)
                with locked(folder.with_name(f"{folder.name}.lock")):  # others that start now wait for it
                    if not (folder / MANIFEST).is_file():
                        build_index(files, indexed, folder)
            except OSError as error:
                raise ResourceError(f"{folder}: cannot be written: {error.strerror}; {AGAIN} with --out") from error
        index = open_index(folder, files)
        index.check(self.max_bad_share)
        good = np.array([one.part.good for one in index.manifest.shards], dtype=np.int64)
        return ShardsDataset(folder, files, good, index.numbers, index.classes, index.fingerprint)
