"""Files below one folder, read while others write them, and believed as little as any stranger's.

What is a link, is no plain file or is too large is not read: a run that was downloaded must not show what lies
elsewhere on this machine, nor hold up who looks at it.
"""

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pixelspace.config import parse_json

MAX_JSON = 8 << 20  # bytes of a recipe or a report of growth
MAX_IMAGE = 128 << 20
MAX_ENTRIES = 20_000  # of a folder
EXACT = 1 << 53  # the first whole number beside one that JavaScript cannot tell from it
HUGE = 1e300
PNG = b"\x89PNG\r\n\x1a\n"


def entries(folder: Path) -> list[os.DirEntry[str]]:
    """What lies in a folder, but for links; nothing where it cannot be read."""
    found = []
    try:
        with os.scandir(folder) as scan:
            for entry in scan:
                if len(found) == MAX_ENTRIES:
                    break
                if not entry.is_symlink():
                    found.append(entry)
    except OSError:
        return []
    return sorted(found, key=lambda entry: entry.name)


def folders(folder: Path) -> Iterator[Path]:
    """The folders in a folder by name, but for links and hidden ones."""
    for entry in entries(folder):
        if not entry.name.startswith(".") and entry.is_dir(follow_symlinks=False):
            yield Path(entry.path)


@dataclass(frozen=True, slots=True)
class Stamp:
    """When a file was written, in seconds since 1970, its size, and which file it is; all 0 where there is none."""

    seconds: float = 0.0
    size: int = 0
    inode: int = 0


def stamp(path: Path) -> Stamp:
    """By what to see whether a file or folder has changed."""
    try:
        status = path.lstat()
    except OSError:
        return Stamp()
    return Stamp(status.st_mtime, status.st_size, status.st_ino)


@dataclass(frozen=True, slots=True)
class Bytes:
    """Part of a file: where it begins, and which file of that name it is of."""

    data: bytes
    start: int
    inode: int


def read_bytes(path: Path, limit: int, start: int = 0, inode: int | None = None) -> Bytes | None:
    """A plain file from `start` on, or all of it if it is not the one of this `inode` or has become shorter, and of
    that the last `limit` bytes at most; None where there is no such file."""
    try:
        # A pipe would keep who opens it waiting.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            return None
        if status.st_ino != inode or status.st_size < start:
            start = 0
        start = max(start, status.st_size - limit)
        file.seek(start)
        try:
            return Bytes(file.read(limit), start, status.st_ino)
        except OSError:
            return None


def _whole(path: Path, limit: int) -> bytes | None:
    found = read_bytes(path, limit + 1)
    return None if found is None or found.start or len(found.data) > limit else found.data


def read_image(path: Path) -> bytes | None:
    """A PNG file, None of anything else."""
    data = _whole(path, MAX_IMAGE)
    return data if data and data.startswith(PNG) else None


def read_object(path: Path) -> dict[str, Any] | None:
    """A JSON file that holds an object, None of anything else."""
    data = _whole(path, MAX_JSON)
    return None if data is None else _object(data)


def read_lines(path: Path, most: int) -> list[str]:
    """The first lines of a text file, none where there is no such file."""
    data = _whole(path, MAX_JSON)
    return [] if data is None else data.decode("utf-8", "replace").splitlines()[:most]


def _object(data: bytes) -> dict[str, Any] | None:
    try:
        found = parse_json(data.decode("utf-8"))
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def whole_number(data: Any) -> int | None:
    """A count, None of anything else."""
    return data if type(data) is int and 0 <= data < EXACT else None


def number(data: Any) -> float | None:
    """A finite number of which many can be added up, None of anything else."""
    if type(data) is int:
        return float(data) if abs(data) < EXACT else None
    return data if type(data) is float and abs(data) < HUGE else None
