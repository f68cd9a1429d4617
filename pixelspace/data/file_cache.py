"""A bounded folder of files that were fetched from elsewhere, shared by any number of processes.

A file appears by one rename, and those that were not used for longest make room for it. Whoever fetches it holds a lock
on its draft, whose name says how much room it will take; a draft without a lock was left by a process that was killed.
"""

import fcntl
import hashlib
import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from pixelspace.errors import ResourceError

_WAIT = 0.05  # seconds between two looks at whether others are done
_DRAFT, _TURN = ".part", ".turn"  # of files under way; of locks, which the processes that want one file take in turn


@contextmanager
def locked(path: Path) -> Iterator[BinaryIO]:
    """The file, made if absent and locked, and not one that was meanwhile renamed or deleted."""
    while True:
        with path.open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            try:
                stands = os.path.samestat(os.fstat(file.fileno()), path.stat())
            except FileNotFoundError:
                stands = False
            if stands:
                yield file
                return


def _abandoned(draft: Path) -> bool:
    with draft.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


def _used(path: Path, size: int) -> bool:
    """Whether the file is there and whole; if so, it was used now."""
    with suppress(FileNotFoundError):
        if path.stat().st_size == size:
            os.utime(path)
            return True
    return False


@dataclass(frozen=True)
class FileCache:
    """At most `limit` bytes of files below `folder`. One that is open when it makes room lasts until it is closed."""

    folder: Path
    limit: int

    def _accounts(self) -> AbstractContextManager[BinaryIO]:
        return locked(self.folder.with_name(f"{self.folder.name}.lock"))

    def _make_room(self, size: int) -> bool:
        """Whether `size` bytes fit beside what is under way; what was not used for longest is deleted for them."""
        room, files = self.limit - size, []
        for path in self.folder.iterdir():
            with suppress(FileNotFoundError):
                if path.suffix == _DRAFT and _abandoned(path):
                    path.unlink()
                elif path.suffix == _DRAFT:
                    room -= int(path.suffixes[-2][1:])
                elif path.suffix != _TURN:
                    status = path.stat()
                    room -= status.st_size
                    files.append((status.st_mtime_ns, status.st_size, path))
        for _, freed, path in sorted(files):
            if room >= 0:
                break
            path.unlink(missing_ok=True)
            room += freed
        return room >= 0

    @contextmanager
    def _reserved(self, draft: Path, size: int) -> Iterator[None]:
        while True:
            with self._accounts():
                if self._make_room(size):
                    file = draft.open("wb")
                    fcntl.flock(file, fcntl.LOCK_EX)
                    break
            time.sleep(_WAIT)  # the rest is under way in other processes
        try:
            yield
        finally:
            draft.unlink(missing_ok=True)
            file.close()

    def fetch(self, identity: str, size: int, write: Callable[[Path], None]) -> Path:
        """The file that `identity` stands for, `size` bytes, which `write` puts where it is told if it is not there.

        Raises:
            ResourceError: the folder cannot be written, or could never hold it.
        """
        if size > self.limit:
            raise ResourceError(f"{self.folder}: a cache of {self.limit:,} bytes cannot hold a file of {size:,}")
        name = hashlib.sha256(identity.encode("utf-8", "surrogateescape")).hexdigest()[:40]
        path, turn, draft = (self.folder / one for one in (name, f".{name}{_TURN}", f".{name}.{size}{_DRAFT}"))
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if not _used(path, size):
                with locked(turn):
                    try:
                        if not _used(path, size):  # another process was faster
                            with self._reserved(draft, size):
                                write(draft)
                                with self._accounts():  # who counts must see the one name or the other
                                    draft.rename(path)
                    finally:
                        turn.unlink()
        except OSError as error:
            raise ResourceError(f"{self.folder}: cannot be written: {error.strerror or error}") from error
        return path
