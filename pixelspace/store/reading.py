"""Store folders read, every bit checked against the manifest."""

import errno
import hashlib
import io
import os
import stat
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pixelspace.errors import CheckpointError, ResourceError
from pixelspace.store.folders import present
from pixelspace.store.manifest import (
    CHUNK,
    DTYPES,
    MANIFEST,
    MAX_JSON,
    OTHER_COPY,
    STATE,
    TENSORS,
    THREADS,
    File,
    Manifest,
    Stated,
    by_tensor,
    header_of,
    in_file_order,
    parsed,
    read_manifest,
)

Rows = Callable[[str, str, tuple[int, ...]], range]
"""Which rows of a tensor are wanted, by its part, name and whole shape."""


@dataclass(frozen=True, slots=True)
class Contents:
    """What a store folder holds. `nonfinite` lists the tensors that held NaN or infinity when saved, as `part/name`."""

    state: dict[str, Any]
    parts: dict[str, dict[str, Tensor]]
    nonfinite: tuple[str, ...]


@contextmanager
def _reading(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE, errno.ENOMEM):
            raise ResourceError(f"{folder}: this process cannot read it: {error}; see its rights and limits") from error
        raise CheckpointError(f"{folder}: cannot be read: {error}; {OTHER_COPY}") from error


def _open(path: Path) -> io.BufferedReader:
    """A regular file, never through a symlink."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise CheckpointError(f"{path}: is a symlink, expected a regular file; {OTHER_COPY}") from error
        raise
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise CheckpointError(f"{path}: expected a regular file, found something else; {OTHER_COPY}")
    return open(fd, "rb")


@contextmanager
def _opened(folder: Path, kind: str) -> Iterator[tuple[Path, Manifest, dict[str, io.BufferedReader]]]:
    """The folder, its manifest, and each file open and of the right size, so readable even if it is deleted now."""
    with ExitStack() as stack, _reading(folder):
        folder = present(folder)
        there = set(os.listdir(folder))
        if MANIFEST not in there:
            raise CheckpointError(f"{folder / MANIFEST}: absent, so this is no complete {kind}; {OTHER_COPY}")
        manifest = read_manifest(folder / MANIFEST, stack.enter_context(_open(folder / MANIFEST)), kind)
        if missing := manifest.files.keys() - there:
            raise CheckpointError(f"{folder / min(missing)}: absent; the manifest lists it; {OTHER_COPY}")
        if surplus := there - manifest.files.keys() - {MANIFEST}:
            raise CheckpointError(f"{folder / min(surplus)}: not in the manifest; move it elsewhere")
        files = {name: stack.enter_context(_open(folder / name)) for name in manifest.files}
        for name, file in files.items():
            found, wanted = os.fstat(file.fileno()).st_size, manifest.files[name].bytes
            if found != wanted:
                raise CheckpointError(f"{folder / name}: {found} bytes; the manifest says {wanted}; {OTHER_COPY}")
        yield folder, manifest, files


def _check_hash(path: Path, found: str, stated: File) -> None:
    if found != stated.sha256:
        raise CheckpointError(f"{path}: is damaged: SHA-256 {found}, the manifest says {stated.sha256}; {OTHER_COPY}")


def _read_state(path: Path, file: io.BufferedReader, stated: File) -> dict[str, Any]:
    if stated.bytes > MAX_JSON:
        raise CheckpointError(f"{path}: {stated.bytes} bytes; at most {MAX_JSON} can be; {OTHER_COPY}")
    text = file.read()
    _check_hash(path, hashlib.sha256(text).hexdigest(), stated)
    return parsed(path, text)


def _check_header(path: Path, found: bytes, wanted: bytes) -> None:
    if found != wanted:
        # not strict: of a file that ends within its header, less was found than is wanted
        at = next((i for i, (a, b) in enumerate(zip(found, wanted, strict=False)) if a != b), len(found))
        near = slice(max(at - 40, 0), at + 20)
        raise CheckpointError(
            f"{path}: its header is not the manifest's at byte {at}: found {found[near]!r}, wanted {wanted[near]!r}; "
            f"{OTHER_COPY}"
        )


def _read_part(
    path: Path, file: io.BufferedReader, stated: File, tensors: dict[str, Stated], keep: Mapping[str, range] | None
) -> dict[str, Tensor]:
    """Reads and hashes in one pass, and keeps what is wanted: all, or by name rows; no more than one tensor besides is
    held at a time."""
    tensors = in_file_order(tensors)
    header = header_of(tensors)
    _check_header(path, file.read(len(header)), header)
    sha256, kept = hashlib.sha256(header), {}
    for name, wanted in tensors.items():
        try:
            data = torch.empty(wanted.nbytes, dtype=torch.uint8)
        except RuntimeError as error:
            raise ResourceError(f"{path}: {name}: no memory for its {wanted.nbytes:,} bytes; free some") from error
        view, crc = data.numpy().data, 0
        for at in range(0, wanted.nbytes, CHUNK):
            piece = view[at : at + CHUNK]
            if (got := file.readinto(piece)) != len(piece):
                raise CheckpointError(f"{path}: {name}: ends {len(piece) - got} bytes early; {OTHER_COPY}")
            sha256.update(piece)
            crc = zlib.crc32(piece, crc)
        if crc != wanted.crc32:
            raise CheckpointError(
                f"{path}: {name}: is damaged: CRC-32 {crc:08x}, the manifest says {wanted.crc32:08x}; {OTHER_COPY}"
            )
        if keep is None or (name in keep and not wanted.shape):
            kept[name] = data.view(DTYPES[wanted.dtype]).reshape(wanted.shape)
        elif name in keep:
            rows, mine = keep[name], wanted.rows
            start, stop = max(rows.start, mine.start) - mine.start, min(rows.stop, mine.stop) - mine.start
            kept[name] = data.view(DTYPES[wanted.dtype]).reshape(wanted.shape)[start : max(start, stop)].clone()
    _check_hash(path, sha256.hexdigest(), stated)
    return kept


def read(folder: Path, *, kind: str, parts: Iterable[str] | None = None, rows: Rows | None = None) -> Contents:
    """What `publish` put into `folder`, every bit of every file checked; tensors (on the CPU) of `parts`, or of all,
    whole or the `rows` that are wanted.

    Raises:
        CheckpointError: damaged, incomplete, of another kind, of a newer format, or without one of `parts`.
        ResourceError: this process may not open it.
    """
    with _opened(Path(folder), kind) as (folder, manifest, files), ThreadPoolExecutor(THREADS) as pool:
        there = list(dict.fromkeys(file.partition(".")[0] for file in manifest.tensors))
        wanted = set(there if parts is None else parts)
        if absent := wanted - set(there):
            raise CheckpointError(f"{folder}: has no {min(absent)!r}; there is {', '.join(there) or 'nothing'}")
        state = _read_state(folder / STATE, files[STATE], manifest.files[STATE])
        jobs = {}
        for file, tensors in manifest.tensors.items():
            name, part = file + TENSORS, file.partition(".")[0]
            keep = None if part in wanted else {}
            if rows and part in wanted:
                keep = {one: rows(part, one, stated.whole) for one, stated in tensors.items() if stated.shape}
                keep |= {one: range(1) for one, stated in tensors.items() if not stated.shape}
            jobs[file] = pool.submit(_read_part, folder / name, files[name], manifest.files[name], tensors, keep)
        loaded = {file: job.result() for file, job in jobs.items()}
    found: dict[str, dict[str, Tensor]] = {part: {} for part in there if part in wanted}
    for (part, name), pieces in by_tensor(manifest).items():
        if part in wanted:
            some = [loaded[file].pop(name) for file, _ in pieces]
            found[part][name] = some[0] if len(some) == 1 else torch.cat(some)
    nonfinite = (
        f"{part}/{name}" for (part, name), some in by_tensor(manifest).items() if not all(t.finite for _, t in some)
    )
    return Contents(state, found, tuple(nonfinite))


def read_state(folder: Path, *, kind: str) -> dict[str, Any]:
    """The state that `publish` put into `folder`, every bit checked; of the tensors' files only the sizes are.

    Raises:
        CheckpointError, ResourceError: as `read`.
    """
    with _opened(Path(folder), kind) as (folder, manifest, files):
        return _read_state(folder / STATE, files[STATE], manifest.files[STATE])


def verify(folder: Path, *, kind: str, sizes_only: bool = False) -> None:
    """Checks `folder` as `read` does and keeps nothing; `sizes_only` leaves out the hashes.

    Raises:
        CheckpointError, ResourceError: as `read`.
    """
    if not sizes_only:
        read(folder, kind=kind, parts=())
        return
    with _opened(Path(folder), kind):
        pass
