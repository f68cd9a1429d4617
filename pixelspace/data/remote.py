"""Files of a data set, on disk or elsewhere: one, those of a folder, or those that a pattern names.

Patterns have `{00000..01242}` and `{a,b}`, which need not be listed, and `*`, `?` and `[...]`, which are. Elsewhere is
what fsspec opens (extra `remote`) and a table here names. A file from there is fetched whole into a bounded cache; no
path can make anything run, or read a local file by another name.
"""

import errno
import glob
import itertools
import math
import os
import re
import stat
import sys
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from pixelspace.data.decode import shown
from pixelspace.data.file_cache import FileCache
from pixelspace.errors import DataError, ResourceError, UserError

T = TypeVar("T")

PROTOCOLS = ("abfs", "abfss", "az", "gcs", "gs", "hf", "http", "https", "memory", "s3", "s3a")
MAX_FILES = 10**6
_TRIES, _PAUSE = 4, 0.5  # seconds, doubled each time
_AT_ONCE = 16  # files whose sizes are asked for
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:")
_BRACES = re.compile(r"\{([^{}]*)\}")
_MARKS = ("ETag", "etag", "md5Hash", "md5", "content_md5", "Last-Modified", "LastModified", "last_modified", "updated")
# What storage libraries raise beside OSError. One that is not loaded cannot have raised.
_FAULTS = {
    "aiohttp": ("ClientError",),
    "azure.core.exceptions": ("AzureError",),
    "botocore.exceptions": ("BotoCoreError", "ClientError"),
    "gcsfs.retry": ("HttpError",),
}


def is_url(path: str) -> bool:
    """Whether `path` names something by a protocol, allowed or not."""
    return _SCHEME.match(path) is not None


def _alternatives(braces: str) -> range | list[str]:
    first, dots, last = braces.partition("..")
    if dots and first.isdecimal() and last.isdecimal() and len(first + last) <= 40 and int(first) <= int(last):
        return range(int(first), int(last) + 1)
    if not dots and "," in braces:
        return braces.split(",")
    raise UserError(f"{{{braces}}}: expected {{00000..01242}}, from a number to one that is not less, or {{a,b}}")


def expand(pattern: str) -> list[str]:
    """What the braces of `pattern` stand for, at most a million paths.

    Raises:
        UserError: braces that are nested, stand for nothing or for more.
    """
    plain, braces = _BRACES.split(pattern)[::2], _BRACES.findall(pattern)
    if "{" in "".join(plain) or "}" in "".join(plain):
        raise UserError(f"{shown(pattern)}: braces that are nested or have no counterpart")
    choices = [_alternatives(one) for one in braces]
    if (count := math.prod(map(len, choices))) > MAX_FILES:
        raise UserError(f"{shown(pattern)}: stands for {count:,} files, more than {MAX_FILES:,}")
    widths = [len(one.partition("..")[0]) for one in braces]
    texts = [
        [f"{i:0{width}}" for i in choice] if isinstance(choice, range) else choice
        for choice, width in zip(choices, widths, strict=True)
    ]
    return ["".join(itertools.chain(*zip(plain, (*one, ""), strict=True))) for one in itertools.product(*texts)]


def _filesystem(url: str) -> tuple[Any, str]:
    protocol = url.partition(":")[0].lower()
    if protocol not in PROTOCOLS or "::" in url or not url[len(protocol) :].startswith("://"):
        raise UserError(
            f"{shown(url)}: expected a path on disk, or a URL PROTOCOL://... by one of {', '.join(PROTOCOLS)}; "
            "write ./ before the name of a file that has a colon"
        )
    try:
        import fsspec  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ResourceError("fsspec is not installed; pip install 'pixelspace[remote]'") from error
    try:
        return fsspec.url_to_fs(url)
    except ImportError as error:
        raise ResourceError(f"{protocol}:// needs another package: {error}") from error
    except ValueError as error:
        raise UserError(f"{shown(url)}: {error}") from error


def _faults() -> tuple[type[BaseException], ...]:
    loaded = [(sys.modules[module], names) for module, names in _FAULTS.items() if module in sys.modules]
    return OSError, *(getattr(module, name) for module, names in loaded for name in names)


def _tried(url: str, work: Callable[[], T], gone: bool = True) -> T:
    """What `work` returns at one of its tries; if `gone`, a file that is not found is not tried again."""
    for tries in range(1, _TRIES + 1):
        try:
            return work()
        except _faults() as error:
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
                raise ResourceError(f"{shown(url)}: cannot be kept: {error.strerror}") from error
            if tries == _TRIES or (gone and isinstance(error, FileNotFoundError)):
                said = " ".join(str(error).split())[:200]
                what = "not found" if isinstance(error, FileNotFoundError) else f"{type(error).__name__}: {said}"
                raise DataError(f"{shown(url)}: cannot be fetched: {what} ({tries} tries)") from error
            time.sleep(_PAUSE * 2 ** (tries - 1))
    raise AssertionError


@dataclass(frozen=True)
class File:
    """A file by its `path` or URL; `mark` changes when its bytes do. One that is elsewhere has a `cache`."""

    name: str
    path: str
    size: int
    mark: str
    cache: FileCache | None = None

    def _fetch(self, draft: Path) -> None:
        filesystem, path = _filesystem(self.path)

        def once() -> None:
            filesystem.get_file(path, str(draft))
            if (found := draft.stat().st_size) != self.size:
                raise OSError(f"{found:,} bytes came, {self.size:,} were announced")

        _tried(self.path, once)

    def local(self) -> Path:
        """Where it lies on disk now. One that was fetched may have to make room later on: see `open`.

        Raises:
            DataError: it cannot be fetched.
            ResourceError: the cache cannot be written.
        """
        if self.cache is None:
            return Path(self.path)
        return self.cache.fetch(f"{self.path}\n{self.size}\n{self.mark}", self.size, self._fetch)

    def open(self) -> BinaryIO:
        """The file, unbuffered.

        Raises:
            DataError: it is gone, or not the file any more that was listed.
        """
        for _ in range(_TRIES):
            try:
                file = self.local().open("rb", buffering=0)
            except FileNotFoundError as error:
                if self.cache is not None:
                    continue  # it just made room for another
                raise DataError(f"{shown(self.path)}: vanished: {error.strerror}") from error
            except OSError as error:
                raise DataError(f"{shown(self.path)}: cannot be read: {error.strerror}") from error
            if self.cache is None and _local(self.path)[:2] != (self.size, self.mark):
                file.close()
                raise DataError(f"{shown(self.path)}: changed since it was listed")
            return file
        raise ResourceError(f"{self.cache}: is too small for what reads from it at once; raise its limit")


@dataclass(frozen=True)
class Files:
    """Files in order of their names, which are unique and the same wherever they all lie; and how many others, by
    suffix, the folder holds."""

    files: tuple[File, ...]
    ignored: dict[str, int]

    def __len__(self) -> int:
        return len(self.files)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(file.name for file in self.files)

    @property
    def sizes(self) -> tuple[int, ...]:
        """In bytes."""
        return tuple(file.size for file in self.files)

    def local(self, i: int) -> Path:
        """Where the i-th lies on disk; see `File.local`."""
        return self.files[i].local()


def _local(path: str) -> tuple[int, str, bool]:
    """Size and mark of a file, and whether it is a regular one."""
    try:
        status = os.stat(path)
    except OSError as error:
        raise DataError(f"{shown(path)}: cannot be read: {error.strerror}") from error
    return status.st_size, str(status.st_mtime_ns), stat.S_ISREG(status.st_mode)


def _suffix(path: str) -> str:
    return os.path.splitext(path)[1].lower()


def _listed(paths: list[str], suffixes: tuple[str, ...], ignored: Counter[str]) -> list[str]:
    """Those of a folder's files that are meant."""
    chosen = []
    for path in paths:
        name = path.rpartition("/")[2]
        if name.startswith("."):
            ignored["hidden"] += 1
        elif name.lower().endswith(suffixes):
            chosen.append(path)
        else:
            ignored[_suffix(name) or "without suffix"] += 1
    return chosen


def _on_disk(path: str, suffixes: tuple[str, ...], ignored: Counter[str]) -> list[File]:
    if os.path.exists(path):
        paths = [path]
    else:
        expanded = expand(path)
        paths = [one for name in expanded for one in (glob.glob(name) if glob.has_magic(name) else [name])]
    if paths == [path] and os.path.isdir(path):
        try:
            paths = _listed([entry.path for entry in os.scandir(path) if entry.is_file()], suffixes, ignored)
        except OSError as error:
            raise DataError(f"{shown(path)}: cannot be read: {error.strerror}") from error
    files = []
    for one in paths:
        size, mark, regular = _local(one)
        if not regular:
            raise DataError(f"{shown(one)}: not a regular file")
        files.append(File(one, os.path.abspath(one), size, mark))
    return files


def _elsewhere(path: str, suffixes: tuple[str, ...], cache: FileCache, ignored: Counter[str]) -> list[File]:
    filesystem, _ = _filesystem(path)
    web = path.lower().startswith("http")
    magic = re.compile(r"[*[]" if web else r"[*?[]")  # what follows ? on the web is a query

    def found(url: str) -> list[str]:
        if magic.search(url):
            return _tried(url, lambda: [filesystem.unstrip_protocol(one) for one in filesystem.glob(url)])
        if url.partition("?")[0].lower().endswith(suffixes):
            return [url]
        below = _tried(url, lambda: filesystem.ls(url.rstrip("/") + "/" * web, detail=True))
        return _listed(
            [filesystem.unstrip_protocol(one["name"]) for one in below if one["type"] == "file"], suffixes, ignored
        )

    def described(url: str) -> File:
        info = _tried(url, lambda: filesystem.info(filesystem._strip_protocol(url)), gone=not web)
        if not isinstance(info.get("size"), int):
            raise DataError(f"{shown(url)}: its server does not say how large it is; copy it to disk")
        mark = next((str(info[name]) for name in (*_MARKS, "created", "mtime") if info.get(name)), "")
        return File(url, url, info["size"], mark, cache)

    urls = [one for url in expand(path) for one in found(url)]
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return list(pool.map(described, urls))


def _named(files: list[File]) -> list[File]:
    """With the shortest ends of their paths that tell all of them apart, in order."""
    parts = [file.path.partition("?")[0].split("/") for file in files]
    longest = max(map(len, parts), default=0)
    for n in range(1, longest + 1):
        names = ["/".join(one[-n:]) for one in parts]
        if len(set(names)) == len(names):
            break
    else:
        again = Counter(file.path for file in files).most_common(1)[0][0]
        raise UserError(f"{shown(again)}: is named twice")
    named = [
        File(shown(name), file.path, file.size, file.mark, file.cache) for name, file in zip(names, files, strict=True)
    ]
    return sorted(named, key=lambda file: file.name.encode())


def open_files(path: str, suffixes: tuple[str, ...], cache: Path | None, limit_gib: float = 20.0) -> Files:
    """The files that `path` means: a file, a folder of files with these suffixes (not deeper), or a pattern; or a URL
    of any of these, whose files are kept in the folder `cache`, at most `limit_gib` of them.

    Raises:
        UserError: a pattern or URL that cannot be meant; a cache that is missing or cannot hold the largest file.
        DataError: there is no such file, with what is there instead.
        ResourceError: a package is missing.
    """
    ignored: Counter[str] = Counter()
    if is_url(path):
        if cache is None:
            raise UserError(f"{shown(path)}: files from elsewhere need a cache folder")
        kept = FileCache(cache / "fetched", int(limit_gib * 2**30))
        found = _elsewhere(path, suffixes, kept, ignored)
        if (largest := max((file.size for file in found), default=0)) > kept.limit:
            raise UserError(f"{shown(path)}: a cache of {limit_gib:g} GiB cannot hold a file of {largest:,} bytes")
    else:
        found = _on_disk(path, suffixes, ignored)
    if not found:
        seen = ", ".join(f"{n:,} {shown(what)}" for what, n in ignored.most_common(20)) or "nothing"
        raise DataError(f"{shown(path)}: no {' or '.join(suffixes)} files; found {seen}")
    return Files(tuple(_named(found)), dict(ignored))
