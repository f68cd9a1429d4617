"""Image files in folders and archives: listed with what is known of each, and read by name."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath

from tqdm import tqdm

from pixelspace.data.decode import MAX_BYTES, SUFFIXES, examine, read, shown
from pixelspace.data.index import Entry, Index, scan
from pixelspace.errors import DataError
from pixelspace.evaluation.archives import Member, members, pieces
from pixelspace.evaluation.cache import remembered

SHEET = "grid.png"  # `pixelspace sample` writes it beside the images that it shows, so that it is none of them
_NAMED = 3  # bad files that a message names
_HEAD = 16  # bytes that tell a file's format


class Files(ABC):
    """Image files by name."""

    where: str

    @abstractmethod
    def entries(self, cache: Path | None) -> tuple[Entry, ...]:
        """All of them, good and bad, in order of name, each looked at once.

        Raises:
            DataError: there is none.
        """

    @abstractmethod
    def load(self, name: str) -> bytes:
        """The bytes of one. Raises DataError with the bare reason."""

    @abstractmethod
    def head(self, name: str) -> bytes:
        """Its first bytes, as `load`."""


@dataclass(frozen=True)
class FolderFiles(Files):
    """The image files of a folder at any depth."""

    root: Path

    @property
    def where(self) -> str:
        return str(self.root)

    def entries(self, cache: Path | None) -> tuple[Entry, ...]:
        found = scan(self.root, cache, sidecars=False)
        if not found.entries:
            Index(found.root, (), (), found.ignored).check(0)  # which says what else there is
        return found.entries

    def load(self, name: str) -> bytes:
        return read(self.root / name)

    def head(self, name: str) -> bytes:
        try:
            with (self.root / name).open("rb") as file:
                return file.read(_HEAD)
        except OSError as error:
            raise DataError(f"cannot be read: {error.strerror}") from error


def _is_image(name: str) -> bool:
    path = PurePosixPath(name)
    hidden = any(part == "__MACOSX" or (part.startswith(".") and part not in (".", "..")) for part in path.parts)
    return not hidden and path.suffix.lower() in SUFFIXES


@dataclass(frozen=True)
class ArchiveFiles(Files):
    """The image files in a .zip or .tar."""

    path: Path

    @property
    def where(self) -> str:
        return str(self.path)

    @cached_property
    def _members(self) -> dict[str, Member]:
        return {member.name: member for member in members(self.path) if _is_image(member.name)}

    def _pieces(self, name: str) -> Iterator[bytes]:
        if self._members[name].bytes > MAX_BYTES:
            raise DataError(f"over {MAX_BYTES >> 20} MiB")
        try:
            with self.path.open("rb") as file:
                yield from pieces(file, self._members[name])
        except OSError as error:
            raise DataError(f"cannot be read: {error.strerror}") from error

    def _entry(self, name: str) -> Entry:
        entry = Entry(name, self._members[name].bytes, 0)
        try:
            data = self.load(name)
            decoded = examine(data)
        except DataError as error:
            return Entry(name, entry.bytes, 0, reason=str(error))
        digest, (width, height) = hashlib.sha256(data).hexdigest(), decoded.image.size
        return Entry(name, entry.bytes, 0, digest, width, height, decoded.mode, decoded.notes)

    def entries(self, cache: Path | None) -> tuple[Entry, ...]:
        if not self._members:
            raise DataError(f"{self.path}: no image files ({' '.join(SUFFIXES)}) in it")

        def find() -> list[list]:
            names = tqdm(self._members, desc="reading images", unit="file", disable=None)
            found = [self._entry(name) for name in names]
            return [[e.name, e.bytes, e.sha256, e.width, e.height, e.mode, list(e.notes), e.reason] for e in found]

        rows = remembered(self.path, "members", cache, find)
        return tuple(Entry(r[0], r[1], 0, *r[2:6], notes=tuple(r[6]), reason=r[7]) for r in rows)

    def load(self, name: str) -> bytes:
        return b"".join(self._pieces(name))

    def head(self, name: str) -> bytes:
        return next(self._pieces(name))[:_HEAD]


def shown_images(files: Files, cache: Path | None) -> tuple[tuple[Entry, ...], bool]:
    """The images of `files` in order of name, all of them good, and whether there is a `SHEET`, which is left out.

    Raises:
        DataError: naming the first that cannot be read, or there is none.
    """
    found = files.entries(cache)
    entries = tuple(entry for entry in found if entry.name != SHEET)
    bad = [entry for entry in entries if entry.reason]
    if bad:
        named = "; ".join(f"{shown(entry.name)}: {entry.reason}" for entry in bad[:_NAMED])
        raise DataError(
            f"{files.where}: {len(bad):,} of {len(entries):,} image files cannot be read: {named}; mend or remove them"
        )
    if not entries:
        raise DataError(f"{files.where}: no images but {SHEET}, a sheet of others")
    return entries, len(entries) < len(found)
