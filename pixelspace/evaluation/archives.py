"""Members of .zip and .tar files, read in any order and never extracted.

A listing keeps where each member's bytes lie, so that one read is one seek: there is no handle to share or to pickle.
Duplicate names are refused, since one of the two would be skipped.
"""

import os
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO

from pixelspace.data.decode import shown
from pixelspace.errors import DataError

_PIECE = 1 << 20
_LOCAL = struct.Struct("<4s22xHH")  # a zip member's own header: its mark, and the lengths of name and extra field
_ENCRYPTED = 1
_BLOCK = tarfile.BLOCKSIZE

# All that the standard library's readers have been seen to raise on damaged archives.
_ARCHIVE_ERRORS = (
    *(OSError, EOFError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RuntimeError),
    *(MemoryError, struct.error, zlib.error, zipfile.BadZipFile, tarfile.TarError),
)


@dataclass(frozen=True, slots=True)
class Member:
    """`stored` bytes of an archive from `offset` on, which are `bytes` when inflated. `refused` says why it cannot be
    read."""

    name: str
    offset: int
    stored: int
    bytes: int
    deflated: bool = False
    crc32: int | None = None
    refused: str = ""


def pieces(file: BinaryIO, member: Member) -> Iterator[bytes]:
    """What a member holds, piece by piece, and checked against its length and checksum.

    Raises:
        DataError: with the bare reason.
    """
    if member.refused:
        raise DataError(member.refused)
    inflate = zlib.decompressobj(-zlib.MAX_WBITS) if member.deflated else None
    at, end, size, crc = member.offset, member.offset + member.stored, 0, 0
    while at < end:
        try:
            data = os.pread(file.fileno(), min(_PIECE, end - at), at)
            at += len(data)
            if not data:
                raise DataError(f"cut short: its archive ends {end - at:,} bytes early")
            while data:
                piece = inflate.decompress(data, _PIECE) if inflate else data
                data = inflate.unconsumed_tail if inflate else b""
                if inflate and at == end and not data:
                    piece += inflate.flush()
                size += len(piece)
                if size > member.bytes:
                    raise DataError(f"damaged: inflates to more than the {member.bytes:,} bytes stated")
                crc = zlib.crc32(piece, crc)
                yield piece
        except (OSError, OverflowError) as error:
            raise DataError(f"cannot be read: {error}") from error
        except zlib.error as error:
            raise DataError(f"damaged: {error}") from error
    if size != member.bytes:
        raise DataError(f"damaged: {size:,} bytes, {member.bytes:,} stated")
    if member.crc32 is not None and crc != member.crc32:
        raise DataError(f"damaged: CRC-32 {crc:08x}, {member.crc32:08x} stated")


def _zip_member(file: BinaryIO, info: zipfile.ZipInfo) -> Member:
    refused, header = "", os.pread(file.fileno(), _LOCAL.size, info.header_offset)
    mark, name, extra = _LOCAL.unpack(header) if len(header) == _LOCAL.size else (b"", 0, 0)
    if mark != b"PK\x03\x04":
        refused = "damaged: the archive's table of contents points elsewhere"
    elif info.flag_bits & _ENCRYPTED:
        refused = "encrypted"
    elif info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        refused = f"compressed by method {info.compress_type}; stored and deflated members are read"
    offset = info.header_offset + _LOCAL.size + name + extra
    deflated = info.compress_type == zipfile.ZIP_DEFLATED
    return Member(info.filename, offset, info.compress_size, info.file_size, deflated, info.CRC, refused)


def _tar_member(info: tarfile.TarInfo, last: int) -> Member:
    if info.size < 0 or info.offset_data <= last:
        raise DataError(f"{shown(info.name)}: damaged: its header points back")
    refused = "" if info.isreg() and not info.issparse() else "a link, a sparse or a special file"
    return Member(info.name, info.offset_data, info.size, info.size, refused=refused)


def _tar_members(path: Path) -> Iterator[Member]:
    last = -1
    with tarfile.open(path, "r:") as archive:
        for info in archive:
            member = _tar_member(info, last)
            last = member.offset
            if not info.isdir():
                yield member
        end = archive.offset
    # The standard library takes a damaged header behind the first for the end; the true end is a block of zeros.
    with path.open("rb") as file:
        if os.pread(file.fileno(), _BLOCK, end) != bytes(_BLOCK):
            raise DataError(f"damaged or cut short: neither a member nor the end of the archive at byte {end:,}")


def members(path: Path) -> tuple[Member, ...]:
    """The files in a .zip, .npz or uncompressed .tar, in order of name.

    Raises:
        DataError: it cannot be read, is damaged, or has two members of one name.
    """
    try:
        if path.suffix.lower() == ".tar":
            found = list(_tar_members(path))
        else:
            with path.open("rb") as file, zipfile.ZipFile(file) as archive:
                found = [_zip_member(file, info) for info in archive.infolist() if not info.is_dir()]
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file") from error
    except _ARCHIVE_ERRORS as error:
        said = " ".join(str(error).split())[:200] or type(error).__name__
        raise DataError(f"{path}: not readable as {path.suffix.lower() or 'an archive'}: {shown(said)}") from error
    found.sort(key=lambda member: member.name.encode("utf-8", "surrogateescape"))
    for one, other in pairwise(found):
        if one.name == other.name:
            raise DataError(f"{path}: {shown(one.name)}: stands twice in the archive")
    return tuple(found)
