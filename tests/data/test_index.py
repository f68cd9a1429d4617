"""What is in a folder, found out once and said plainly."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from pixelspace.data import index as indexing
from pixelspace.data.index import load_or_build
from pixelspace.errors import DataError
from tests.data.image_folders import draw, names, reasons


def counted(monkeypatch) -> list[str]:
    """The names of files that are read from now on."""
    read, seen = indexing.read, []

    def counting(path: Path) -> bytes:
        seen.append(path.name)
        return read(path)

    monkeypatch.setattr(indexing, "read", counting)
    return seen


# Walking


def test_images_are_found_at_any_depth_in_order_of_bytes(tmp_path):
    for name in ("b/2.png", "b/1.JPG", "a/x/y/z.webp", "Z/q.tiff", "é/1.bmp", "a.tif"):
        draw(tmp_path / name)
    assert names(load_or_build(tmp_path, None)) == [
        "Z/q.tiff",
        "a.tif",
        "a/x/y/z.webp",
        "b/1.JPG",
        "b/2.png",
        "é/1.bmp",
    ]


def test_an_entry_tells_size_hash_mode_and_shape_upright(tmp_path):
    import hashlib

    exif = Image.Exif()
    exif[0x0112] = 6
    path = draw(tmp_path / "a.png", 12, 8, exif=exif)
    (entry,) = load_or_build(tmp_path, None).good
    assert (entry.width, entry.height, entry.mode, entry.notes) == (8, 12, "RGB", ())
    assert (entry.bytes, entry.sha256) == (path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest())
    assert (entry.label, entry.texts, entry.reason) == (-1, (), "")


def test_other_and_hidden_files_are_ignored_and_counted(tmp_path):
    for name in ("notes.txt", "more.TXT", "README", ".DS_Store", "._a.png", ".git/x.png", "sub/.hidden/y.png"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"?")
    draw(tmp_path / "a.png")
    index = load_or_build(tmp_path, None)
    assert names(index) == ["a.png"] and index.bad == ()
    assert index.ignored == {".txt": 2, "without suffix": 1, "hidden": 4}
    assert "ignored: 4 hidden, 2 .txt, 1 without suffix" in index.summary()


def test_loops_of_links_end_and_each_image_counts_once(tmp_path):
    draw(tmp_path / "a" / "1.png")
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    (tmp_path / "b").symlink_to(tmp_path / "a")
    index = load_or_build(tmp_path, None)
    assert names(index) == ["a/1.png"] and index.ignored == {"links to folders": 2}


def test_a_link_must_lead_to_a_file_in_the_folder(tmp_path):
    root, outside = tmp_path / "root", draw(tmp_path / "secret.png")
    draw(root / ".store" / "kept.png")
    (root / "in.png").symlink_to(root / ".store" / "kept.png")
    (root / "out.png").symlink_to(outside)
    (root / "gone.png").symlink_to(root / "absent.png")
    (root / "self.png").symlink_to(root / "self.png")
    (root / "folder").symlink_to(tmp_path)
    os.mkfifo(root / "pipe.png")
    (root / "dir.png").mkdir()
    index = load_or_build(root, None)
    assert names(index) == ["in.png"]
    assert reasons(index) == {
        "gone.png": "a link to nothing: No such file or directory",
        "out.png": "a link out of the folder",
        "pipe.png": "not a regular file",
        "self.png": "a link to nothing: Too many levels of symbolic links",
    }
    assert index.ignored == {"hidden": 1, "links to folders": 1}


def test_the_folder_itself_may_be_a_link(tmp_path):
    draw(tmp_path / "real" / "1.png")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert names(load_or_build(tmp_path / "link", None)) == ["1.png"]


@pytest.mark.parametrize("name", [b"\xff\xfe.png", b"new\nline.png", b"\x1b[31m.png", b"n" * 251 + b".png"])
def test_any_name_the_system_allows_is_kept_and_shown_safely(tmp_path, name):
    folder = os.fsencode(tmp_path)
    draw(tmp_path / "ok.png")
    os.rename(tmp_path / "ok.png", os.path.join(folder, name))
    Path(os.fsdecode(os.path.join(folder, b"bad" + name[-40:]))).write_bytes(b"")
    first = load_or_build(tmp_path, tmp_path / ".cache")
    again = load_or_build(tmp_path, tmp_path / ".cache")
    assert names(first) == [os.fsdecode(name)] and first.entries == again.entries
    assert first.fingerprint == again.fingerprint
    with pytest.raises(DataError) as error:
        first.check(0)
    assert str(error.value).isprintable()
    assert all(line.isprintable() for line in first.summary().split("\n"))


# Verdicts


def test_bad_files_are_named_with_their_reasons(tmp_path):
    draw(tmp_path / "good.png")
    whole = draw(tmp_path / "cut.png", 64, 64).read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[:2000])
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "page.jpg").write_bytes(b"<html>")
    index = load_or_build(tmp_path, None)
    assert names(index) == ["good.png"]
    found = reasons(index)
    assert found["cut.png"].startswith("cut short") and found["empty.jpg"] == "zero bytes"
    assert found["page.jpg"] == "an HTML page"
    assert "1 good images, 3 bad" in index.summary() and "bad: page.jpg: an HTML page" in index.summary()


def test_the_budget_of_bad_files_is_a_share(tmp_path):
    for i in range(9):
        draw(tmp_path / f"{i}.png", seed=i)
    (tmp_path / "empty.jpg").write_bytes(b"")
    index = load_or_build(tmp_path, None)
    index.check(0.1)
    with pytest.raises(DataError) as error:
        index.check(0.09)
    assert str(error.value) == (
        f"{tmp_path}: 1 of 10 image files are bad, more than the 9% allowed: empty.jpg: zero bytes; "
        "mend or remove them, or raise max_bad_share"
    )


def test_at_most_three_bad_files_are_named_in_the_error(tmp_path):
    for i in range(5):
        (tmp_path / f"{i}.jpg").write_bytes(b"")
    with pytest.raises(
        DataError, match=r"none of its 5 image files can be read: 0.jpg: .*; 1.jpg: .*; 2.jpg: zero bytes$"
    ):
        load_or_build(tmp_path, None).check(0.99)


def test_a_folder_without_images_says_what_was_looked_for_and_seen(tmp_path):
    with pytest.raises(
        DataError, match=r"no image files \(.jpg .jpeg .png .webp .tif .tiff .bmp\) at any depth; found nothing"
    ):
        load_or_build(tmp_path, None).check(0.1)
    (tmp_path / "data.tar").write_bytes(b"?")
    (tmp_path / "photo.heic").write_bytes(b"?")
    with pytest.raises(DataError, match=r"found 1 .(tar|heic), 1 .(tar|heic)$"):
        load_or_build(tmp_path, None).check(0.1)


def test_a_path_that_is_no_folder_is_refused(tmp_path):
    with pytest.raises(DataError, match="absent: no such folder; give a folder"):
        load_or_build(tmp_path / "absent", None)
    with pytest.raises(DataError, match="is a file, not a folder"):
        load_or_build(draw(tmp_path / "a.png"), None)


def test_duplicates_small_images_and_converted_pixels_are_counted(tmp_path):
    draw(tmp_path / "a.png", 12, 8)
    draw(tmp_path / "b.png", 12, 8)
    draw(tmp_path / "c.png", 30, 20, seed=1)
    Image.new("CMYK", (9, 9)).save(tmp_path / "d.jpg", icc_profile=b"garbage")
    index = load_or_build(tmp_path, None)
    assert index.duplicates == 1
    assert [index.smaller_than(h, w) for h, w in ((8, 9), (8, 12), (9, 9), (20, 30), (21, 30))] == [0, 1, 2, 3, 4]
    for line in ("shorter side: 8 to 20, median 9", "pixels: 3 RGB, 1 CMYK", "not used: 1 unusable colour profile"):
        assert line in index.summary()


# The cache


def test_unchanged_files_are_not_read_again(tmp_path, monkeypatch):
    root, cache = tmp_path / "images", tmp_path / "cache"
    for i in range(4):
        draw(root / f"{i}.png", seed=i)
    (root / "bad.png").write_bytes(b"")
    seen = counted(monkeypatch)
    first = load_or_build(root, cache)
    assert sorted(seen) == ["0.png", "1.png", "2.png", "3.png", "bad.png"]
    seen.clear()
    assert load_or_build(root, cache) == first and seen == []
    draw(root / "2.png", seed=9)
    (root / "0.png").unlink()
    draw(root / "new.png")
    changed = load_or_build(root, cache)
    assert sorted(seen) == ["2.png", "new.png"]
    assert names(changed) == ["1.png", "2.png", "3.png", "new.png"] and changed == load_or_build(root, None)


def test_a_file_that_could_not_be_opened_gets_another_try(tmp_path, monkeypatch):
    root, cache = tmp_path / "images", tmp_path / "cache"
    draw(root / "a.png")

    def denied(path: Path) -> bytes:
        raise DataError("cannot be read: Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(indexing, "read", denied)
        assert reasons(load_or_build(root, cache)) == {"a.png": "cannot be read: Permission denied"}
    assert names(load_or_build(root, cache)) == ["a.png"]


def test_a_link_that_is_turned_outwards_is_refused_although_it_was_good(tmp_path):
    root, cache = tmp_path / "root", tmp_path / "cache"
    inside, outside = draw(root / ".in.png"), draw(tmp_path / "out.png")
    os.utime(outside, ns=(0, inside.stat().st_mtime_ns))
    (root / "a.png").symlink_to(inside)
    assert names(load_or_build(root, cache)) == ["a.png"]
    (root / "a.png").unlink()
    (root / "a.png").symlink_to(outside)
    assert reasons(load_or_build(root, cache)) == {"a.png": "a link out of the folder"}


@pytest.mark.parametrize(
    "damage", [b"", b"{}", b"[" * 99_999, b"\xff", b'{"format": 2, "entries": [["a.png"]]}', b"[1]"]
)
def test_a_damaged_cache_is_made_anew(tmp_path, damage):
    root, cache = tmp_path / "images", tmp_path / "cache"
    draw(root / "a.png")
    first = load_or_build(root, cache)
    (file,) = cache.rglob("*.json")
    whole = file.read_bytes()
    file.write_bytes(damage)
    assert load_or_build(root, cache) == first and file.read_bytes() == whole


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path):
    root = draw(tmp_path / "images" / "a.png").parent
    (tmp_path / "cache").write_text("a file")
    assert names(load_or_build(root, tmp_path / "cache")) == ["a.png"]


def test_an_interrupt_keeps_what_was_read(tmp_path, monkeypatch):
    root, cache = tmp_path / "images", tmp_path / "cache"
    for i in range(5):
        draw(root / f"{i}.png", seed=i)
    read = indexing.read

    def interrupted(path: Path) -> bytes:
        if path.name == "3.png":
            raise KeyboardInterrupt
        return read(path)

    with monkeypatch.context() as patch:
        patch.setattr(indexing, "read", interrupted)
        with pytest.raises(KeyboardInterrupt):
            load_or_build(root, cache)
    seen = counted(monkeypatch)
    assert len(load_or_build(root, cache).good) == 5 and seen == ["3.png", "4.png"]


def test_the_fingerprint_is_of_what_is_trained_on(tmp_path):
    root = tmp_path / "images"
    draw(root / "x" / "a.png")
    draw(root / "y" / "b.png", seed=1)
    first = load_or_build(root, None).fingerprint
    (root / "x" / "bad.png").write_bytes(b"")
    (root / "notes.txt").write_text("hello")
    os.utime(root / "x" / "a.png")
    assert load_or_build(root, None).fingerprint == first
    root.rename(tmp_path / "moved")
    root = tmp_path / "moved"
    assert load_or_build(root, None).fingerprint == first
    found = {first}
    draw(root / "y" / "b.png", seed=2)
    found.add(load_or_build(root, None).fingerprint)
    (root / "y" / "b.png").rename(root / "y" / "c.png")
    found.add(load_or_build(root, None).fingerprint)
    (root / "y").rename(root / "z")
    found.add(load_or_build(root, None).fingerprint)
    (root / "metadata.jsonl").write_text('{"file_name": "x/a.png", "text": "t"}\n{"file_name": "z/c.png"}')
    found.add(load_or_build(root, None).fingerprint)
    assert len(found) == 5


# Many files


@pytest.fixture(scope="module")
def many(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("many")
    for i in range(150):
        draw(root / f"{i:03}.png", seed=i)
    (root / "077.png").write_bytes(b"")
    return root


def test_many_files_are_read_by_several_processes_to_the_same_end(many):
    whole = load_or_build(many, None)
    alone = [indexing._read(many, file) for file in sorted(indexing._walk(many, indexing.Counter()))]
    assert list(whole.entries) == alone and len(whole.good) == 149


def test_a_file_that_hangs_its_decoder_costs_only_itself(many, tmp_path):
    os.mkfifo(tmp_path / "hang.png")  # opening it waits for ever
    files = sorted(indexing._walk(many, indexing.Counter()))
    stuck = indexing.File(str(tmp_path / "hang.png"), 1, 1)
    start = time.monotonic()
    entries = list(indexing._read_all(many, [*files[:70], stuck, *files[70:]], indexing.IMAGES._replace(seconds=0.5)))
    assert time.monotonic() - start < 15
    assert entries.pop(70).reason == "its decoder crashed or took over 0.5 seconds"
    assert entries == [indexing._read(many, file) for file in files]


def test_a_script_without_a_main_guard_reads_alone(many, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import sys; from pathlib import Path; from pixelspace.data.index import load_or_build\n"
        "print(len(load_or_build(Path(sys.argv[1]), None).good))\n"
    )
    done = subprocess.run([sys.executable, script, many], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "149\n"


def test_whatever_ends_a_pool_gives_up_what_was_not_begun():
    with pytest.raises(KeyboardInterrupt), indexing._pool(1) as pool:
        jobs = [pool.submit(time.sleep, 0.2) for _ in range(20)]
        raise KeyboardInterrupt
    assert sum(job.cancelled() for job in jobs) > 10 and all(job.done() for job in jobs)


def test_an_interrupt_ends_all_processes_at_once(many):
    code = """
import signal, sys
from collections import Counter
from pathlib import Path
from pixelspace.data import index
signal.signal(signal.SIGINT, signal.default_int_handler)  # shells let what they put in the background ignore it
root = Path(sys.argv[1])
for i, entry in enumerate(index._read_all(root, [*index._walk(root, Counter())] * 2000)):
    if i == 1000:
        print("ready", flush=True)
"""
    run = subprocess.Popen(
        [sys.executable, "-c", code, many], stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    )
    assert run.stdout and run.stdout.readline() == b"ready\n"
    os.killpg(run.pid, signal.SIGINT)
    _, errors = run.communicate(timeout=20)  # which also waits for whoever holds the pipes
    assert run.returncode == -signal.SIGINT and errors.count(b"Traceback") == 1
