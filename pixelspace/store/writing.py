"""Store folders written and published, by one process or by several together."""

import dataclasses
import errno
import glob
import hashlib
import os
import re
import shutil
import threading
import zlib
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pixelspace.config import parse_json
from pixelspace.dist import Ranks
from pixelspace.errors import CheckpointError, ResourceError, UserError
from pixelspace.store.folders import aside, delete, locked, make_folders, sweep, sync_folder
from pixelspace.store.manifest import (
    CHUNK,
    FORMAT,
    MANIFEST,
    MAX_HEADER,
    MAX_JSON,
    PART,
    PIECES,
    STATE,
    TENSORS,
    THREADS,
    File,
    Piece,
    Stated,
    as_json,
    describe,
    header_of,
    in_file_order,
    plain,
    sealed,
)
from pixelspace.store.reading import verify

COPYING = threading.Lock()  # PyTorch's own thread pool has a race on its first use after a fork


def _create(path: Path, data: Iterable[bytes | memoryview]) -> File:
    """Writes a new file, synced to the disk, and hashes what it writes."""
    sha256, size = hashlib.sha256(), 0
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        for piece in data:
            sha256.update(piece)
            size += len(piece)
            while piece:
                piece = piece[os.write(fd, piece) :]
        os.fsync(fd)
    finally:
        os.close(fd)
    return File(bytes=size, sha256=sha256.hexdigest())


def _create_part(path: Path, tensors: Mapping[str, Tensor | Piece], table: dict[str, Stated]) -> tuple[File, dict]:
    """The file, and `table` in file order with the checksums."""
    table = in_file_order(table)

    def pieces() -> Iterator[bytes | memoryview]:
        yield header_of(table)
        for name, described in list(table.items()):
            given = tensors[name]
            with COPYING:
                tensor = (given.tensor if isinstance(given, Piece) else given).detach().to("cpu").contiguous()
            data = tensor.reshape(-1).view(torch.uint8).numpy().data
            table[name] = dataclasses.replace(described, crc32=zlib.crc32(data))
            yield from (data[at : at + CHUNK] for at in range(0, len(data), CHUNK))

    return _create(path, pieces()), table


@contextmanager
def _saving(folder: Path, need: int) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        place = next(path for path in folder.absolute().parents if os.path.isdir(path))
        free = shutil.disk_usage(place).free
        raise ResourceError(
            f"{folder}: cannot save: {error}; {need:,} bytes needed, {free:,} free; "
            f"{'free some space there' if full else 'see that the folder can be written to'}, or save elsewhere"
        ) from error


def _check_replaceable(folder: Path, kind: str) -> None:
    if folder.is_symlink() or not folder.is_dir():
        raise UserError(f"{folder}: is not a folder, so it is not replaced; give another name")
    if any(folder.iterdir()):
        try:
            verify(folder, kind=kind, sizes_only=True)
        except CheckpointError as error:
            raise UserError(f"{folder}: not replaced, as it holds other things: {error}; give another name") from error


def _tables(parts: Mapping[str, Mapping[str, Tensor | Piece]]) -> dict[str, dict[str, Stated]]:
    """What the manifest will say of tensors, but for their checksums."""
    tables = {}
    for part, tensors in parts.items():
        if not re.fullmatch(PART, part):
            raise UserError(f"part {part!r}: expected lower-case letters, digits, '_' and '-' only")
        tables[part] = {name: describe(part, name, tensor) for name, tensor in tensors.items()}
        if (size := len(header_of(tables[part]))) > MAX_HEADER:
            raise UserError(f"{part}: {size} bytes of names and shapes, at most {MAX_HEADER} can be; use more parts")
    return tables


def _state_text(state: dict[str, Any]) -> bytes:
    try:
        text = as_json(state)
        plain = parse_json(text.decode()) == state and isinstance(state, dict)
    except (TypeError, ValueError, RecursionError) as error:
        raise UserError(f"state: not plain JSON data: {error}") from error
    if not plain or len(text) > MAX_JSON:
        raise UserError(
            f"state: expected a dictionary of lists, strings and finite numbers, at most {MAX_JSON} bytes of "
            f"JSON; found {len(text)} bytes{'' if plain else ' that do not read back as they were'}"
        )
    return text


def _bytes_of(tables: Mapping[str, dict[str, Stated]]) -> int:
    return sum(2 * len(header_of(table)) + sum(t.nbytes for t in table.values()) for table in tables.values())


def _read_tables(data: dict[str, dict[str, dict[str, Any]]]) -> dict[str, dict[str, Stated]]:
    return {
        file: {name: Stated(**{**one, "shape": tuple(one["shape"])}) for name, one in table.items()}
        for file, table in data.items()
    }


Written = tuple[dict[str, File], dict[str, dict[str, Stated]]]


def publish(
    folder: Path,
    parts: Mapping[str, Mapping[str, Tensor | Piece]],
    state: dict[str, Any],
    *,
    kind: str,
    replace: bool = False,
    ranks: Ranks | None = None,
) -> Path:
    """Writes `parts` and `state` as the new store folder `folder`, all or nothing, and returns its path.

    Tensors are stored by name, from any device, each as its own dense copy; `state` is plain JSON data. `replace` lets
    `folder` be empty or a store folder of the same kind: that one is put aside, and deleted when the new one stands.
    Of several `ranks`, which all call this, each gives the tensors and pieces that it is to write.

    Raises:
        UserError: `folder` stands already, or something in `parts` or `state` cannot be stored.
        ResourceError: the disk is full or refuses; nothing published before has changed.
        PeerError: another rank could not write its own.
    """
    folder, ranks = Path(folder), ranks or Ranks()
    tables, text = _tables(parts), _state_text(state)
    need = len(text) + sum(ranks.meet(_bytes_of(tables)))
    if not ranks.first:
        (fresh, *_) = ranks.meet()
        with _saving(folder, need):
            files, tables = _write_parts(Path(fresh), parts, tables, f".{ranks.rank}")
        described = {file: {name: plain(one) for name, one in table.items()} for file, table in tables.items()}
        ranks.meet([{name: plain(file) for name, file in files.items()}, described])
        ranks.meet()
        return folder
    with _saving(folder, need):
        if standing := os.path.lexists(folder):
            if not replace:
                raise UserError(f"{folder}: exists already, and is not overwritten; give another name")
            _check_replaceable(folder, kind)
        make_folders(folder.parent)
        sweep(folder.parent, glob.escape(folder.name))
        if shutil.disk_usage(folder.parent).free < 1.1 * need:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fresh, old = aside(folder, "tmp"), aside(folder, "old")
        try:
            os.mkdir(fresh)
            with locked(fresh):
                ranks.meet(str(fresh))
                mine = _write_parts(fresh, parts, tables)
                others = [
                    (
                        {name: File(**file) for name, file in files.items()},
                        _read_tables(theirs),
                    )
                    for files, theirs in ranks.meet()[1:]
                ]
                files = _write_manifest(fresh, [mine, *others], text, kind)
                try:
                    if standing:
                        os.rename(folder, old)
                    os.rename(fresh, folder)
                finally:
                    if old.exists() and not folder.exists():
                        os.rename(old, folder)
        finally:
            delete(fresh)
        sync_folder(folder.parent)
        for name, size in files.items():
            if (found := (folder / name).stat().st_size) != size:
                raise OSError(errno.EIO, f"{name} has {found} bytes where {size} were written")
        delete(old)
    ranks.meet()
    return folder


def _write_parts(
    fresh: Path,
    parts: Mapping[str, Mapping[str, Tensor | Piece]],
    tables: dict[str, dict[str, Stated]],
    ending: str = "",
) -> Written:
    """Writes a file a part into the folder `fresh`, of those that have anything."""
    with ThreadPoolExecutor(THREADS) as pool:
        jobs = {
            f"{part}{ending}": pool.submit(_create_part, fresh / f"{part}{ending}{TENSORS}", tensors, tables[part])
            for part, tensors in parts.items()
            if tensors or not ending
        }
    found = {file: job.result() for file, job in jobs.items()}
    return (
        {file + TENSORS: written for file, (written, _) in found.items()},
        {file: table for file, (_, table) in found.items()},
    )


def _write_manifest(fresh: Path, written: Iterable[Written], state: bytes, kind: str) -> dict[str, int]:
    """Completes the folder `fresh` and syncs it; the bytes of each file."""
    files: dict[str, File] = {STATE: _create(fresh / STATE, [state])}
    tensors: dict[str, dict[str, Stated]] = {}
    for theirs, tables in written:
        files |= theirs
        tensors |= tables
    body = {
        "format": PIECES if any("." in file for file in tensors) else FORMAT,
        "kind": kind,
        "library": version("pixelspace"),
        "files": {name: plain(file) for name, file in files.items()},
        "tensors": {file: {name: plain(one) for name, one in table.items()} for file, table in tensors.items()},
    }
    text = sealed(body)
    if len(text) > MAX_JSON:
        raise UserError(f"{fresh}: {len(text)} bytes of manifest, at most {MAX_JSON} can be; save fewer tensors")
    files[MANIFEST] = _create(fresh / MANIFEST, [text])
    sync_folder(fresh)
    return {name: file.bytes for name, file in files.items()}
