"""Files on disk and elsewhere: which a path means, and that what is fetched stays within its bounds."""

import http.server
import os
import pickle
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import pytest

from pixelspace.data import remote
from pixelspace.data.file_cache import FileCache, locked
from pixelspace.data.remote import expand, open_files
from pixelspace.errors import DataError, ResourceError, UserError

fsspec = pytest.importorskip("fsspec")
KIB = 2**-20  # GiB


@pytest.fixture(autouse=True)
def _hurry(monkeypatch):
    monkeypatch.setattr(remote, "_PAUSE", 0.01)


@pytest.fixture
def memory():
    """The store of `memory://`, empty."""
    filesystem = fsspec.filesystem("memory")
    filesystem.store.clear()
    filesystem.pseudo_dirs[:] = [""]
    yield filesystem
    filesystem.store.clear()


class Server(http.server.ThreadingHTTPServer):
    """A real server of a folder; `failures` says how it fails the next files that are asked for."""

    def __init__(self, folder: Path):
        super().__init__(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
        self.folder, self.url = folder, f"http://127.0.0.1:{self.server_address[1]}"
        self.asked: list[str] = []
        self.failures: list[int | str] = []


class Handler(http.server.SimpleHTTPRequestHandler):
    server: Server

    def do_GET(self):
        self.server.asked.append(self.path)
        if self.server.failures and not self.path.endswith("/"):
            how = self.server.failures.pop()
            if isinstance(how, str):
                self.send_response(200)
                self.send_header("Content-Length", "1000")
                self.end_headers()
                self.wfile.write(b"short")
            else:
                self.send_error(how)
            return
        super().do_GET()

    def log_message(self, *args):
        pass


@pytest.fixture
def server(tmp_path):
    (tmp_path / "served").mkdir()
    with Server(tmp_path / "served") as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def written(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(f"bytes of {name}".encode())
    return folder


# Patterns


def test_braces_stand_for_numbers_and_words():
    assert expand("a/{008..010}.tar") == ["a/008.tar", "a/009.tar", "a/010.tar"]
    assert expand("{9..11}") == ["9", "10", "11"]
    assert expand("{x,y}/{0..1}") == ["x/0", "x/1", "y/0", "y/1"]
    assert expand("plain") == ["plain"]


@pytest.mark.parametrize("bad", ["{3..1}", "{a..c}", "{}", "{1}", "{a,{0..1}}", "a{0..1", "a}", "{0..-1}", "{٣..٤}x{"])
def test_braces_that_mean_nothing_are_refused(bad):
    with pytest.raises(UserError):
        expand(bad)


@pytest.mark.parametrize("bomb", ["{0..1000000000}", "{0..999}" * 4, "{1..9" + "9" * 17 + "}"])
def test_braces_that_stand_for_millions_are_not_expanded(bomb):
    start = time.monotonic()
    with pytest.raises(UserError, match="more than 1,000,000"):
        expand(bomb)
    assert time.monotonic() - start < 0.1


@pytest.mark.parametrize(
    "trick", ["pipe:curl x", "file:///etc/passwd", "local://a", "simplecache::s3://a/b.tar", "s3:a", "ssh://h/a.tar"]
)
def test_paths_that_run_things_or_hide_local_files_are_refused(trick, tmp_path):
    with pytest.raises(UserError, match="expected a path on disk, or a URL"):
        open_files(trick, (".tar",), tmp_path)


# On disk


def test_a_folder_a_file_and_patterns_mean_files_in_order_of_bytes(tmp_path):
    written(tmp_path, "b.tar", "a.tar", "Z.tar", "a.json", ".hidden.tar", "deep/c.tar")
    files = open_files(str(tmp_path), (".tar",), None)
    assert files.names == ("Z.tar", "a.tar", "b.tar") and files.ignored == {".json": 1, "hidden": 1}
    assert files.sizes == (14, 14, 14) and files.local(1) == tmp_path / "a.tar"
    assert open_files(str(tmp_path / "a.tar"), (".tar",), None).names == ("a.tar",)
    assert open_files(f"{tmp_path}/*.tar", (".tar",), None).names == files.names
    assert open_files(f"{tmp_path}/{{b,a}}.tar", (".tar",), None).names == ("a.tar", "b.tar")


def test_names_are_told_apart_by_their_folders(tmp_path):
    written(tmp_path, "x/0.tar", "y/0.tar", "y/1.tar")
    assert open_files(f"{tmp_path}/{{x,y}}/*.tar", (".tar",), None).names == ("x/0.tar", "y/0.tar", "y/1.tar")
    with pytest.raises(UserError, match=r"0.tar: is named twice"):
        open_files(f"{tmp_path}/x/{{0,0}}.tar", (".tar",), None)


def test_a_name_with_braces_that_exists_is_taken_as_it_is(tmp_path):
    written(tmp_path, "{0..1}[a].tar")
    assert open_files(f"{tmp_path}/{{0..1}}[a].tar", (".tar",), None).names == ("{0..1}[a].tar",)


def test_what_is_not_there_is_said_with_what_is(tmp_path):
    written(tmp_path, "a.tar.gz", "b.txt")
    with pytest.raises(DataError, match=r"no .tar files; found 1 .(gz|txt), 1 .(gz|txt)$"):
        open_files(str(tmp_path), (".tar",), None)
    with pytest.raises(DataError, match=r"c1.tar: cannot be read: No such file"):
        open_files(f"{tmp_path}/c{{1..2}}.tar", (".tar",), None)
    os.mkfifo(tmp_path / "pipe.tar")
    with pytest.raises(DataError, match=r"pipe.tar: not a regular file"):
        open_files(str(tmp_path / "pipe.tar"), (".tar",), None)


def test_a_file_that_changed_or_vanished_is_refused_when_opened(tmp_path):
    written(tmp_path, "a.tar", "b.tar")
    files = open_files(str(tmp_path), (".tar",), None)
    (tmp_path / "a.tar").write_bytes(b"other")
    (tmp_path / "b.tar").unlink()
    with pytest.raises(DataError, match=r"a.tar: changed since"):
        files.files[0].open()
    with pytest.raises(DataError, match=r"b.tar: vanished"):
        files.files[1].open()


# Elsewhere


@pytest.mark.parametrize("path", ["memory://bucket", "memory://bucket/*.tar", "memory://bucket/{a,b}.tar"])
def test_files_elsewhere_are_fetched_once_and_whole(memory, tmp_path, path):
    for name in ("b.tar", "a.tar", "c.json"):
        memory.pipe_file(f"/bucket/{name}", name.encode() * 1000)
    files = pickle.loads(pickle.dumps(open_files(path, (".tar",), tmp_path)))
    assert files.names == ("a.tar", "b.tar") and files.sizes == (5000, 5000)
    assert [files.local(i).read_bytes() for i in range(2)] == [b"a.tar" * 1000, b"b.tar" * 1000]
    memory.store.clear()
    assert files.local(0).read_bytes() == b"a.tar" * 1000
    with files.files[1].open() as file:
        assert file.read() == b"b.tar" * 1000


@pytest.mark.parametrize("path", ["", "/", "/*.tar", "/{a,b}.tar"])
def test_a_server_is_read_by_listing_glob_and_braces(server, tmp_path, path):
    written(server.folder, "a.tar", "b.tar", "c.json")
    files = open_files(server.url + path, (".tar",), tmp_path)
    assert files.names == ("a.tar", "b.tar")
    assert [files.local(i).read_bytes() for i in range(2)] == [b"bytes of a.tar", b"bytes of b.tar"]
    before = len(server.asked)
    files.local(0)
    assert len(server.asked) == before


def test_a_file_that_changed_elsewhere_is_another_file(server, tmp_path):
    written(server.folder, "a.tar")
    path = f"{server.url}/a.tar?token=1"
    first = open_files(path, (".tar",), tmp_path)
    first.local(0)
    os.utime(server.folder / "a.tar", (0, 0))
    again = open_files(path, (".tar",), tmp_path)
    assert first.names == again.names == ("a.tar",) and first.files[0].mark != again.files[0].mark
    assert first.local(0) != again.local(0)


@pytest.mark.parametrize("how", [500, 503, "cut"])
def test_a_server_that_fails_thrice_is_asked_once_more(server, tmp_path, how):
    written(server.folder, "a.tar")
    files = open_files(f"{server.url}/a.tar", (".tar",), tmp_path)
    server.failures = [how] * 3
    assert files.local(0).read_bytes() == b"bytes of a.tar"
    server.failures = [how] * 4
    (tmp_path / "fetched").rename(tmp_path / "away")
    with pytest.raises(DataError, match=r"/a.tar: cannot be fetched: .*\(4 tries\)"):
        files.local(0)
    assert list((tmp_path / "fetched").iterdir()) == []


def test_what_is_gone_elsewhere_is_named(server, memory, tmp_path):
    with pytest.raises(DataError, match=r"/a.tar: cannot be fetched: not found"):
        open_files(f"{server.url}/a.tar", (".tar",), tmp_path)
    memory.pipe_file("/a.tar", b"?")
    files = open_files("memory://a.tar", (".tar",), tmp_path)
    memory.store.clear()
    with pytest.raises(DataError, match=r"a.tar: cannot be fetched: not found \(1 tries\)"):
        files.local(0)


# The cache


def test_the_cache_keeps_to_its_limit_and_what_was_used_last(memory, tmp_path):
    for i in range(6):
        memory.pipe_file(f"/b/{i}.tar", bytes([i]) * 1000)
    files = open_files("memory://b", (".tar",), tmp_path, 3.5 * KIB * 1000 / 1024)
    kept = [files.local(i) for i in (0, 1, 2)]
    os.utime(kept[1], (1, 1))
    assert files.local(1) == kept[1]
    os.utime(kept[0], (1, 1))
    with kept[2].open("rb") as held:
        files.local(3)
        assert [path.exists() for path in kept] == [False, True, True]
        for i in (4, 5):
            files.local(i)
        assert held.read() == bytes([2]) * 1000
    assert sum(path.stat().st_size for path in (tmp_path / "fetched").iterdir()) <= 3500


def test_a_cache_that_cannot_hold_one_file_is_refused(memory, tmp_path):
    memory.pipe_file("/a.tar", bytes(2000))
    with pytest.raises(UserError, match="cannot hold a file of 2,000 bytes"):
        open_files("memory://a.tar", (".tar",), tmp_path, KIB)
    with pytest.raises(UserError, match="need a cache folder"):
        open_files("memory://a.tar", (".tar",), None)


def test_a_cut_file_in_the_cache_is_fetched_again(memory, tmp_path):
    memory.pipe_file("/a.tar", bytes(2000))
    files = open_files("memory://a.tar", (".tar",), tmp_path)
    files.local(0).write_bytes(b"")
    assert files.local(0).read_bytes() == bytes(2000)


def test_drafts_of_killed_processes_make_room(tmp_path):
    folder = tmp_path / "fetched"
    folder.mkdir()
    (folder / ".old.900.part").write_bytes(b"?")
    path = FileCache(folder, 1000).fetch("new", 500, lambda draft: print(draft.write_bytes(bytes(500))))
    assert list(folder.iterdir()) == [path]


def test_what_fails_under_a_lock_comes_out_as_it_is(tmp_path):
    for error in (FileNotFoundError(2, "gone"), KeyError("other")):
        with pytest.raises(type(error)), locked(tmp_path / "lock"):
            raise error


def test_a_cache_that_cannot_be_written_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceError, match="cannot be written"):
        FileCache(tmp_path / "file", 10).fetch("a", 1, lambda draft: None)


FETCHING = """
import sys, time
from pathlib import Path
from pixelspace.data.file_cache import FileCache, locked
folder, log, seed = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
cache = FileCache(folder, 2500)
for step in range(60):
    name = (step * 7 + seed * 3) % 5
    def write(draft):
        with log.open("a") as file:
            file.write(f"{name}\\n")
        draft.write_bytes(bytes([name]) * 1000)
        time.sleep(0.002)
    for _ in range(100):
        try:
            data = cache.fetch(str(name), 1000, write).read_bytes()
            break
        except FileNotFoundError:
            pass
    assert data == bytes([name]) * 1000
    assert len([path for path in folder.iterdir() if not path.name.startswith(".")]) <= 2
"""


def test_many_processes_share_a_cache(tmp_path):
    command = [sys.executable, "-c", FETCHING, tmp_path / "fetched", tmp_path / "log"]
    running = [subprocess.Popen([*command, str(seed)], stderr=subprocess.PIPE) for seed in range(3)]
    for one in running:
        _, errors = one.communicate(timeout=60)
        assert one.returncode == 0, errors.decode()
    assert len((tmp_path / "log").read_text().splitlines()) < 180
    assert all(path.stat().st_size == 1000 for path in (tmp_path / "fetched").iterdir())
