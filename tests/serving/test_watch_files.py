import os

import pytest

from pixelspace.serving import watch_files
from pixelspace.serving.watch_files import (
    entries,
    folders,
    number,
    read_bytes,
    read_image,
    read_lines,
    read_object,
    stamp,
    whole_number,
)

SECRET = b'{"secret": 1}\n'


@pytest.fixture
def outside(tmp_path):
    path = tmp_path / "secret.json"
    path.write_bytes(SECRET)
    return path


@pytest.fixture
def inside(tmp_path):
    folder = tmp_path / "runs"
    folder.mkdir()
    return folder


def test_links_are_neither_followed_nor_listed(inside, outside):
    (inside / "recipe.json").symlink_to(outside)
    (inside / "samples").symlink_to(outside.parent, target_is_directory=True)
    (inside / "own").mkdir()
    assert read_object(outside) == {"secret": 1} and read_object(inside / "recipe.json") is None
    assert [entry.name for entry in entries(inside)] == ["own"] and [one.name for one in folders(inside)] == ["own"]


def test_a_pipe_holds_nobody_up(inside):
    os.mkfifo(inside / "metrics.jsonl")
    assert read_bytes(inside / "metrics.jsonl", 10) is None


def test_a_file_is_read_up_to_its_limit_and_no_further(inside, monkeypatch):
    monkeypatch.setattr(watch_files, "MAX_JSON", len(SECRET))
    path = inside / "recipe.json"
    path.write_bytes(SECRET)
    assert read_object(path) == {"secret": 1}
    path.write_bytes(SECRET + b"\n")
    assert read_object(path) is None and read_lines(path, 9) == []


def test_reading_goes_on_where_it_ended_unless_the_file_is_another(inside):
    path = inside / "metrics.jsonl"
    path.write_bytes(b"0123456789")
    first = read_bytes(path, 100)
    assert first is not None and (first.data, first.start) == (b"0123456789", 0)
    with path.open("ab") as file:
        file.write(b"abc")
    again = read_bytes(path, 100, 10, first.inode)
    assert again is not None and (again.data, again.start) == (b"abc", 10)
    last = read_bytes(path, 2, 10, first.inode)
    assert last is not None and (last.data, last.start) == (b"bc", 11)
    path.write_bytes(b"xyz")  # shorter
    assert read_bytes(path, 100, 13, first.inode) == watch_files.Bytes(b"xyz", 0, first.inode)
    os.replace(inside / "metrics.jsonl", inside / "old")
    path.write_bytes(b"0123456789abcdef")
    other = read_bytes(path, 100, 3, first.inode)
    assert other is not None and (other.data, other.start) == (b"0123456789abcdef", 0)


def test_what_is_no_png_is_no_picture(inside):
    (inside / "0000000001.png").write_bytes(b"<svg onload=alert(1)>")
    assert read_image(inside / "0000000001.png") is None and read_image(inside / "none.png") is None


@pytest.mark.parametrize(
    "data", [b"", b"[]", b'{"a": 1, "a": 2}', b'{"a": NaN}', b"\xff", b"[" * 100_000, b'{"a": %s}' % (b"9" * 5000)]
)
def test_what_is_no_object_is_nothing(inside, data):
    (inside / "recipe.json").write_bytes(data)
    assert read_object(inside / "recipe.json") is None


def test_numbers_are_finite_and_exact_in_a_browser():
    assert [number(one) for one in (1, 0.5, 1 << 53, 10**400, float("inf"), float("nan"), 1e300, True, "1")] == [
        1.0,
        0.5,
        *[None] * 7,
    ]
    assert [whole_number(one) for one in (0, (1 << 53) - 1, 1 << 53, -1, 1.0, True)] == [0, (1 << 53) - 1, *[None] * 4]


def test_what_is_not_there_has_no_stamp(inside):
    assert stamp(inside / "none") == watch_files.Stamp(0.0, 0, 0)
    assert stamp(inside).inode == inside.stat().st_ino
