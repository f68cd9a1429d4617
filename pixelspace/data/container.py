"""What a video file is by its first bytes, and whether it is all there by the lengths it states.

Only these containers are read, each by its own demuxer: a playlist or a script called .mp4 never reaches one.
"""

import os
from pathlib import Path
from typing import BinaryIO

from pixelspace.data.decode import what_else
from pixelspace.errors import DataError

SUFFIXES = (".mp4", ".m4v", ".mov", ".webm", ".mkv", ".avi")
_BOXES = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot", b"moof", b"styp", b"sidx", b"uuid", b"mfra")
_EBML, _SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"
_ANIMATIONS = (b"GIF8", b"RIFF", b"\x89PNG\r\n\x1a\n")


def kind(head: bytes) -> str:
    """What a file with these first bytes is read as: mp4, matroska or avi, or "animation".

    Raises:
        DataError: with the bare reason: it is none of these.
    """
    if head[4:8] in _BOXES:
        return "mp4"
    if head.startswith(_EBML):
        return "matroska"
    if head.startswith(b"RIFF") and head[8:12] == b"AVI ":
        return "avi"
    if head.startswith(_ANIMATIONS):
        return "animation"
    raise DataError(what_else(head, "an MP4, MOV, WebM, Matroska, AVI, GIF, WebP or APNG file"))


def _boxes_end(file: BinaryIO, size: int) -> int:
    """Where the last known box at the top of an MP4 ends."""
    at, end, known = 0, 0, set()
    while at + 8 <= size:
        file.seek(at)
        head = file.read(16)
        length, name = int.from_bytes(head[:4]), head[4:8]
        if length == 1:
            length = int.from_bytes(head[8:16])
        elif length == 0:  # up to the end
            length = size - at
        if name not in _BOXES or length < 8:
            break  # not a length to believe: what it is, the demuxer says
        known.add(name)
        at = end = at + length
    if end <= size and not known & {b"moov", b"moof"}:
        raise DataError("cut short: the index (moov) that an MP4 is read by is missing")
    return end


def _number(file: BinaryIO) -> int:
    """An EBML length; -1 is an unknown one."""
    first = file.read(1)
    more = 8 - first[0].bit_length() if first and first[0] else 7
    digits = first + file.read(more)
    value = int.from_bytes(digits) & ((1 << 7 * (more + 1)) - 1)
    return -1 if value == (1 << 7 * (more + 1)) - 1 else value


def _segment_end(file: BinaryIO) -> int:
    """Where a Matroska file's segment ends; 0: it does not say."""
    file.seek(4)
    header = _number(file)
    file.seek(max(header, 0), os.SEEK_CUR)
    if file.read(4) != _SEGMENT or (length := _number(file)) < 0:
        return 0
    return file.tell() + length


def check_whole(path: Path, what: str) -> None:
    """Raises DataError, with the bare reason, where a file of the kind `what` ends before its container does."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        if what == "mp4":
            end = _boxes_end(file, size)
        elif what == "matroska":
            end = _segment_end(file)
        else:
            end = 8 + int.from_bytes(file.read(8)[4:], "little")
    if end > size:
        raise DataError(f"cut short: {size:,} of {end:,} bytes")
