"""Arrays in .npy files and in the members of .npz files, read as little as is wanted.

The format: https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html. Only plain numbers are read, so that
nothing is ever unpickled. A stored array is read where it lies; a deflated one is inflated to a temporary file before
its rows can be read in any order.
"""

import hashlib
import math
import os
import re
import shutil
import tempfile
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from pixelspace.data.decode import shown
from pixelspace.errors import DataError, ResourceError
from pixelspace.evaluation.archives import Member, members, pieces

_MAX_HEADER = 1 << 16
_NUMBERS = ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "b1")
_DESCR = re.compile(r"'descr'\s*:\s*'([<>|=]?)([a-zA-Z]\d+)'")
_FORTRAN = re.compile(r"'fortran_order'\s*:\s*(True|False)")
_SHAPE = re.compile(r"'shape'\s*:\s*\(((?:\d{1,18}L?\s*,\s*)*(?:\d{1,18}L?\s*)?)\)")
_BOMB_BYTES, _BOMB_RATIO = 1 << 30, 200  # pictures of one colour alone deflate further


@dataclass(frozen=True, slots=True)
class NpyArray:
    """An array on the disk that is not read yet. `start` is where its numbers begin within the `member`."""

    path: Path
    member: Member
    dtype: np.dtype
    shape: tuple[int, ...]
    fortran: bool
    start: int

    @property
    def where(self) -> str:
        """How messages name it."""
        return _where(self.path, self.member)

    def data(self) -> Iterator[bytes]:
        """Its numbers, piece by piece; a zip's checksum is checked at the end.

        Raises:
            DataError: damaged.
        """
        skip = self.start
        try:
            with self.path.open("rb") as file:
                for piece in pieces(file, self.member):
                    yield piece[skip:]
                    skip = max(0, skip - len(piece))
        except DataError as error:
            raise DataError(f"{self.where}: {error}") from error
        except OSError as error:
            raise DataError(f"{self.where}: cannot be read: {error.strerror}") from error

    def load(self) -> Tensor:
        """All of it.

        Raises:
            DataError: damaged.
        """
        data = bytearray()
        for piece in self.data():
            data += piece
        values = np.ndarray(self.shape, self.dtype, data, order="F" if self.fortran else "C")
        return torch.from_numpy(np.asarray(values, self.dtype.newbyteorder("="), order="C"))

    def digests(self) -> Iterator[bytes]:
        """The SHA-256 of each row."""
        row, data = math.prod(self.shape[1:]) * self.dtype.itemsize, bytearray()
        for piece in self.data():
            data += piece
            for at in range(0, len(data) - row + 1, row):
                yield hashlib.sha256(memoryview(data)[at : at + row]).digest()
            data = data[len(data) - len(data) % row :]


def _where(path: Path, member: Member) -> str:
    return f"{path}: {shown(member.name)}" if member.name else str(path)


def _head(path: Path, member: Member) -> bytes:
    """The first bytes, more than any header has."""
    head = bytearray()
    try:
        with path.open("rb") as file:
            for piece in pieces(file, member):
                head += piece
                if len(head) > _MAX_HEADER:
                    break
    except DataError as error:
        raise DataError(f"{_where(path, member)}: {error}") from error
    except OSError as error:
        raise DataError(f"{_where(path, member)}: cannot be read: {error.strerror}") from error
    return bytes(head)


def _parsed(path: Path, member: Member) -> NpyArray:
    where, head = _where(path, member), _head(path, member)
    if head[:6] != b"\x93NUMPY" or head[6:8] not in (b"\1\0", b"\2\0", b"\3\0"):
        raise DataError(f"{where}: not a .npy array: begins with {head[:8]!r}")
    begin = 10 if head[6] == 1 else 12
    start = begin + int.from_bytes(head[8:begin], "little")
    text = head[begin:start].decode("latin1") if start <= min(len(head), _MAX_HEADER) else ""
    descr, fortran, shape = _DESCR.search(text), _FORTRAN.search(text), _SHAPE.search(text)
    if not (fortran and shape and "'descr'" in text):
        raise DataError(f"{where}: damaged: its header is not that of an array")
    if not descr or descr[2] not in _NUMBERS:
        raise DataError(f"{where}: expected plain numbers ({' '.join(_NUMBERS)}), found {shown(text.strip())[:120]}")
    dtype = np.dtype(descr[1] + descr[2])
    sizes = tuple(int(n) for n in re.findall(r"\d+", shape[1]))
    if math.prod(sizes) * dtype.itemsize != member.bytes - start:
        held = f"{member.bytes - start:,} bytes for an array of {dtype} of shape {sizes!r:.80}"
        raise DataError(f"{where}: cut short or damaged: {held}")
    return NpyArray(path, member, dtype, sizes, fortran[1] == "True", start)


def open_npy(path: Path) -> NpyArray:
    """The array in a .npy file.

    Raises:
        DataError: absent, damaged, or of something else than plain numbers.
    """
    try:
        size = path.stat().st_size
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    return _parsed(path, Member("", 0, size, size))


def npz_members(path: Path) -> dict[str, Member]:
    """The arrays of an .npz file by name, none of them looked at.

    Raises:
        DataError: absent or damaged.
    """
    return {name.removesuffix(".npy"): member for member in members(path) if (name := member.name).endswith(".npy")}


def open_member(path: Path, member: Member) -> NpyArray:
    """One of `npz_members`.

    Raises:
        DataError: damaged, or of something else than plain numbers.
    """
    if member.bytes > max(_BOMB_BYTES, _BOMB_RATIO * member.stored):
        raise DataError(
            f"{_where(path, member)}: {member.stored:,} bytes inflate to {member.bytes:,}; no array of images or "
            "features does that: refused as a bomb"
        )
    return _parsed(path, member)


class Rows:
    """The rows of an array in C order, read as they are wanted. A deflated one is inflated at the first read, to a
    temporary file in the folder `scratch` (None: the system's)."""

    def __init__(self, array: NpyArray, scratch: Path | None = None):
        self.array, self.scratch = array, scratch

    def __reduce__(self) -> tuple:
        return Rows, (self.array, self.scratch)

    @cached_property
    def _file(self) -> BinaryIO:
        try:
            file = self._inflated() if self.array.member.deflated else self.array.path.open("rb")
        except OSError as error:
            raise ResourceError(f"{self.array.where}: cannot be read row by row: {error}") from error
        weakref.finalize(self, file.close)
        return file

    def _inflated(self) -> BinaryIO:
        scratch = self.scratch or Path(tempfile.gettempdir())
        scratch.mkdir(parents=True, exist_ok=True)
        need, free = self.array.member.bytes, shutil.disk_usage(scratch).free
        if free < need:
            raise ResourceError(
                f"{self.array.where}: is deflated, and inflating it takes {need:,} bytes in {scratch}, where {free:,} "
                "are free; save it with numpy.savez, which does not deflate, or name another cache folder"
            )
        file = tempfile.TemporaryFile(dir=scratch)
        try:
            for piece in self.array.data():
                file.write(piece)
            file.flush()
        except (OSError, DataError):
            file.close()
            raise
        return file  # pyright: ignore[reportReturnType]

    def __getitem__(self, numbers: range) -> np.ndarray:
        """Rows (n, ...) by consecutive numbers.

        Raises:
            DataError: the file became shorter.
            ResourceError: no room to inflate it.
        """
        if numbers and (numbers.step != 1 or not 0 <= numbers.start <= numbers.stop <= self.array.shape[0]):
            raise IndexError(f"{self.array.where}: {numbers} of {self.array.shape[0]} rows")
        row = math.prod(self.array.shape[1:]) * self.array.dtype.itemsize
        begin = 0 if self.array.member.deflated else self.array.member.offset + self.array.start
        begin += numbers.start * row
        data, at, size = bytearray(len(numbers) * row), 0, 1
        try:
            while at < len(data) and size:
                size = os.preadv(self._file.fileno(), [memoryview(data)[at:]], begin + at)
                at += size
        except OSError as error:
            raise DataError(f"{self.array.where}: cannot be read: {error.strerror}") from error
        if at < len(data):
            raise DataError(f"{self.array.where}: cut short since it was opened")
        return np.ndarray((len(numbers), *self.array.shape[1:]), self.array.dtype, data)
