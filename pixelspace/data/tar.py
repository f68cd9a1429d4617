"""Where the members of an uncompressed tar lie (POSIX ustar and pax, GNU), read header by header and never extracted.

The standard library reads extended headers of any size, and takes a damaged one for the end; here both are faults, and
what stands before them is still given out.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass

from pixelspace.errors import DataError

_BLOCK = 512
_MAX_EXTENDED = 1 << 20  # bytes of the headers before a member's own
_MAX_NAME = 4096
_MAX_MEMBERS = 1 << 22
_REGULAR, _FOLDER, _LONG_NAME, _LONG_LINK, _PAX, _PAX_ALL = b"0\x007", b"5", b"L", b"K", b"xX", b"g"
_SPARSE = b"GNU.sparse."
_TAIL = 1 << 16  # bytes behind the end mark that are looked at; writers fill up to 10 KiB
_REFUSED = {
    b"1": "a hard link",
    b"2": "a symbolic link",
    b"3": "a device",
    b"4": "a device",
    b"6": "a named pipe",
    b"S": "a sparse file",
}
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"(\xb5/\xfd": "Zstandard"}


@dataclass(frozen=True, slots=True)
class Member:
    """`bytes` of a tar from `offset` on. `refused` says why they must not be read."""

    name: str
    offset: int
    bytes: int
    refused: str = ""


def read_at(file: int, offset: int, size: int) -> bytes:
    """`size` bytes from `offset` on, or as many as there are."""
    pieces = []
    while size and (piece := os.pread(file, min(size, 1 << 30), offset)):
        pieces.append(piece)
        offset, size = offset + len(piece), size - len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def _number(field: bytes) -> int:
    if field[0] & 0x80:  # GNU: base 256 where octal digits do not suffice
        return int.from_bytes(bytes([field[0] & 0x7F]) + field[1:], "big", signed=False)
    return int(field.strip(b" \0") or b"0", 8)


def _is_header(block: bytes) -> bool:
    try:
        stated = _number(block[148:156])
    except ValueError:
        return False
    return stated == sum(block[:148]) + sum(block[156:]) + 8 * ord(" ")


def _text(field: bytes) -> str:
    return field.partition(b"\0")[0].decode("utf-8", "surrogateescape")


def _records(data: bytes) -> dict[str, bytes]:
    """What a pax header states of names and sizes, in records of "LENGTH KEY=VALUE\\n"."""
    found, at = dict[str, bytes](), 0
    data = data.rstrip(b"\0")
    while at < len(data):
        digits = data[at : at + 10].partition(b" ")[0]
        end = at + int(digits)
        key, equals, value = data[at + len(digits) + 1 : end].partition(b"=")
        if end > len(data) or not equals or not value.endswith(b"\n"):
            raise ValueError("a broken record")
        if key in (b"path", b"size") or key.startswith(_SPARSE):
            found[key.decode("ascii", "replace")] = value[:-1]
        at = end
    return found


def _refused(name: str, kind: bytes, pax: dict[str, bytes]) -> str:
    if kind not in _REGULAR:
        return _REFUSED.get(kind, f"of the unknown type {kind!r}")
    if any(key.startswith(_SPARSE.decode()) for key in pax):
        return "a sparse file"
    if name.startswith("/"):
        return "an absolute name"
    return "a name that leads out of the archive" if ".." in name.split("/") else ""


def _what(block: bytes, at: int) -> str:
    for start, compression in _COMPRESSED.items():
        if at == 0 and block.startswith(start):
            return f"compressed by {compression}: members can only be read in order; decompress it"
    if at:
        return f"damaged: neither a member nor the end of the archive at byte {at:,}"
    return "not a tar" if block else "zero bytes"


def members(file: int, size: int) -> Iterator[Member]:
    """The files in the tar of `size` bytes that is open as `file`, in their order; folders are left out.

    Raises:
        DataError: with the bare reason and offset, after all members that stand before.
    """
    at, last, count, pax_all = 0, "", 0, dict[str, bytes]()
    pax, long, extended = dict[str, bytes](), "", 0

    def fault(what: str) -> DataError:
        return DataError(f"{what}; {f'its last whole member is {last!r}' if last else 'no member is whole'}")

    while True:
        block = read_at(file, at, _BLOCK)
        if len(block) == _BLOCK and not any(block):
            if any(read_at(file, at, _TAIL)):
                raise fault(f"something follows the end mark at byte {at:,}: two archives in one file?")
            return
        if at and len(block) < _BLOCK:
            raise fault(f"cut short: ends at byte {size:,} without an end mark")
        if len(block) < _BLOCK or not _is_header(block):
            raise fault(_what(block, at))
        try:
            name, kind, stated = _text(block[:100]), block[156:157], _number(block[124:136])
            if block[257:263] == b"ustar\0" and (prefix := _text(block[345:500])):
                name = f"{prefix}/{name}"
            begin = at + _BLOCK
            if stated < 0:
                raise ValueError("a negative size")
            if kind in _PAX or kind in (_LONG_NAME, _LONG_LINK, _PAX_ALL):
                extended += stated
                if extended > _MAX_EXTENDED:
                    raise fault(f"an extended header of {stated:,} bytes at byte {at:,}")
                data = read_at(file, begin, stated)
                if kind == _LONG_NAME:
                    long = _text(data)
                elif kind == _PAX_ALL:
                    pax_all |= _records(data)
                elif kind in _PAX:
                    pax |= _records(data)
                at = begin + -(-stated // _BLOCK) * _BLOCK
                continue
            stated_by = pax_all | pax
            name = _text(stated_by["path"]) if "path" in stated_by else long or name
            stated = int(stated_by["size"]) if "size" in stated_by else stated
            if stated < 0:
                raise ValueError("a negative size")
        except ValueError as error:
            raise fault(f"a damaged header at byte {at:,}: {error}") from error
        stated = stated if kind in _REGULAR or kind == b"S" else 0
        count += 1
        if len(name) > _MAX_NAME or count > _MAX_MEMBERS:
            raise fault(f"a name of {len(name):,} characters, or over {_MAX_MEMBERS:,} members, at byte {at:,}")
        if begin + stated > size:
            yield Member(name, begin, stated, f"cut short: {size - begin:,} of {stated:,} bytes")
            raise fault(f"cut short: ends at byte {size:,}, within {name!r}")
        if not (kind == _FOLDER or (kind in _REGULAR and name.endswith("/"))):
            yield Member(name, begin, stated, _refused(name, kind, stated_by))
        at, last = begin + -(-stated // _BLOCK) * _BLOCK, name
        pax, long, extended = {}, "", 0
