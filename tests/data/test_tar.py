"""The members of a tar: as the standard library lists them, or refused with the reason."""

import io
import os
import tarfile
from pathlib import Path

import pytest

from pixelspace.data.tar import Member, members, read_at
from pixelspace.errors import DataError
from tests.data.tars import write_tar

FORMATS = (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)
SOME = [("a.png", b"x" * 700), ("deep/b.txt", b""), ("c.json", b"{}" * 256)]


def listed(path: Path) -> tuple[list[Member], str]:
    """The members, and what is wrong with the tar."""
    found = []
    with path.open("rb") as file:
        try:
            for member in members(file.fileno(), os.fstat(file.fileno()).st_size):
                found.append(member)
        except DataError as error:
            return found, str(error)
    return found, ""


def special(path: Path, **fields) -> Path:
    """A tar of one member with these fields of its header."""
    with tarfile.open(path, "w") as archive:
        info = tarfile.TarInfo("a.png")
        for name, value in fields.items():
            setattr(info, name, value)
        archive.addfile(info, io.BytesIO(bytes(info.size)))
    return path


@pytest.mark.parametrize("how", FORMATS)
def test_members_are_those_that_the_standard_library_finds(tmp_path, how):
    long = "/".join(["d" * 40] * 3) + "/" + "n" * 90
    names = [*SOME, (long, b"long"), ("x" * 100, b"y"), ("é.txt", b"utf-8")]
    path = write_tar(tmp_path / "a.tar", names, how)
    with tarfile.open(path) as archive:
        expected = [(one.name, one.offset_data, one.size) for one in archive]
    found, fault = listed(path)
    assert fault == "" and [(one.name, one.offset, one.bytes) for one in found] == expected
    with path.open("rb") as file:
        assert [read_at(file.fileno(), one.offset, one.bytes) for one in found] == [data for _, data in names]


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"name": "/etc/a.png"}, "an absolute name"),
        ({"name": "b/../../a.png"}, "a name that leads out of the archive"),
        ({"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"}, "a symbolic link"),
        ({"type": tarfile.LNKTYPE, "linkname": "b.png"}, "a hard link"),
        ({"type": tarfile.CHRTYPE}, "a device"),
        ({"type": tarfile.BLKTYPE}, "a device"),
        ({"type": tarfile.FIFOTYPE}, "a named pipe"),
        ({"type": tarfile.GNUTYPE_SPARSE}, "a sparse file"),
        ({"pax_headers": {"GNU.sparse.major": "1"}}, "a sparse file"),
        ({"type": b"?"}, "of the unknown type b'?'"),
    ],
)
def test_what_is_no_plain_file_is_refused(tmp_path, fields, reason):
    found, fault = listed(special(tmp_path / "a.tar", **fields))
    assert [one.refused for one in found] == [reason] and fault == ""


def test_folders_are_left_out(tmp_path):
    assert listed(special(tmp_path / "a.tar", name="d", type=tarfile.DIRTYPE)) == ([], "")


def test_a_tar_cut_anywhere_keeps_what_stands_before(tmp_path):
    path = write_tar(tmp_path / "a.tar", SOME, tarfile.USTAR_FORMAT)
    whole, _ = listed(path)
    data = path.read_bytes()
    end = whole[-1].offset + whole[-1].bytes
    for size in (1, 511, 512, 600, 1212, 1500, 1536, 2047, 2048, 2100, end - 1, end):
        path.write_bytes(data[:size])
        found, fault = listed(path)
        good = [one for one in whole if one.offset + one.bytes <= size]
        assert [one for one in found if not one.refused] == good, size
        assert f"its last whole member is {good[-1].name!r}" in fault if good else "no member is whole" in fault
        assert f"byte {size:,}" in fault or size < 512


def test_compressed_and_other_files_are_named(tmp_path):
    path = tmp_path / "a.tar"
    for start, reason in (
        (b"", "zero bytes"),
        (b"<html>", "not a tar"),
        (b"\x1f\x8b" + bytes(600), "compressed by gzip: members can only be read in order; decompress it"),
        (b"\x01" * 600, "not a tar"),
    ):
        path.write_bytes(start)
        assert listed(path) == ([], f"{reason}; no member is whole")


def test_a_damaged_header_is_named_by_its_offset(tmp_path):
    path = write_tar(tmp_path / "a.tar", SOME, tarfile.USTAR_FORMAT)
    data = bytearray(path.read_bytes())
    data[1536 + 130] ^= 1
    path.write_bytes(data)
    found, fault = listed(path)
    assert [one.name for one in found] == ["a.png"]
    assert (
        fault == "damaged: neither a member nor the end of the archive at byte 1,536; its last whole member is 'a.png'"
    )


def checksummed(header: bytearray) -> bytes:
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


@pytest.mark.parametrize("size", [b"-0000000512\0", b"77777777777\0", b"\xff" * 12, b"\x80" + b"\xff" * 11, b"zz" * 6])
@pytest.mark.parametrize("kind", [b"0", b"x", b"L"])
def test_sizes_that_lie_end_the_listing(tmp_path, size, kind):
    path = write_tar(tmp_path / "a.tar", SOME, tarfile.USTAR_FORMAT)
    data = bytearray(path.read_bytes())
    data[1536 + 124 : 1536 + 136], data[1536 + 156 : 1536 + 157] = size, kind
    data[1536:2048] = checksummed(data[1536:2048])
    path.write_bytes(data)
    found, fault = listed(path)
    assert [one.name for one in found if not one.refused] == ["a.png"] and "'a.png'" in fault


def test_a_pax_bomb_is_not_read(tmp_path):
    bomb = special(tmp_path / "a.tar", pax_headers={"comment": "x" * (2 << 20)})
    found, fault = listed(bomb)
    assert found == [] and "an extended header of 2,097,1" in fault


@pytest.mark.parametrize(
    "record", [b"0 path=a\n", b"99 path=a\n", b"9 path=ab", b"-9 path=a\n", b"x", b"12 path", b"9" * 400]
)
def test_a_broken_pax_header_is_named(tmp_path, record):
    header = bytearray(tarfile.TarInfo("h").tobuf(tarfile.USTAR_FORMAT))
    header[124:136], header[156:157] = b"%011o\0" % len(record), b"x"
    (tmp_path / "a.tar").write_bytes(checksummed(header) + record.ljust(512, b"\0") + bytes(1024))
    assert "a damaged header at byte 0" in listed(tmp_path / "a.tar")[1]


def test_two_archives_in_one_file_are_noticed(tmp_path):
    path = write_tar(tmp_path / "a.tar", SOME)
    path.write_bytes(path.read_bytes() * 2)
    found, fault = listed(path)
    assert len(found) == 3 and "two archives in one file?" in fault
