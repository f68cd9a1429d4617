"""Folders of tensors and plain data that are either whole or absent, and are checked before they are believed.

A store folder holds one `<part>.safetensors` a part, `state.json`, and `MANIFEST.json`: the size and SHA-256 of every
file, and name, shape and dtype of every tensor. `publish` writes all of it beside its place, syncs it, and puts it
there by one rename; `read` refuses whatever differs from the manifest in a single bit. A safetensors header follows
from the manifest alone, so it is compared, never parsed, and nothing is ever unpickled.

Several processes may write a folder together, each its own rows of tensors: `<part>.<rank>.safetensors`, and in the
manifest from which row on, of how many. It is read as if one had written it, whole or by rows.

Every change to the disk goes through `os.mkdir open write fsync rename unlink rmdir`, looked up in `os` at each call,
so that a test can put a fault at each.
"""

import dataclasses
import errno
import fcntl
import fnmatch
import glob
import hashlib
import io
import json
import math
import os
import re
import shutil
import stat
import threading
import uuid
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field, TypeAdapter, ValidationError
from torch import Tensor

from pixelspace.config import parse_json, value
from pixelspace.dist import Ranks
from pixelspace.errors import CheckpointError, ResourceError, UserError

FORMAT, PIECES = 1, 2  # of a folder that one process wrote, and of one that several did
MAX_JSON = 16 << 20  # bytes of MANIFEST.json (about 100,000 tensors) and of state.json
MAX_HEADER = 16 << 20  # bytes of a safetensors header

MANIFEST, _STATE, _TENSORS = "MANIFEST.json", "state.json", ".safetensors"
_PART, _NAME = r"^[a-z0-9_-]+$", r"^[A-Za-z0-9_.]+$"
_FILE = r"^[a-z0-9_-]+(\.[1-9][0-9]{0,5})?$"  # a part, or what a rank other than the first has of it
_ASIDE = re.compile(r"\.(tmp|old|del)-(.+)-[0-9a-f]{32}")
_CHUNK = 1 << 20  # bytes read or written at a time: hashing then finds them in the processor's cache
_THREADS = 4  # files read or written at once; hashing is what takes the time, one core a file
_COPYING = threading.Lock()  # PyTorch's own thread pool has a race on its first use after a fork
_OTHER_COPY = "use another copy or an older one"

_DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
}
_CODES = {dtype: code for code, dtype in _DTYPES.items()}


@dataclass(frozen=True, slots=True)
class Contents:
    """What a store folder holds. `nonfinite` lists the tensors that held NaN or infinity when saved, as `part/name`."""

    state: dict[str, Any]
    parts: dict[str, dict[str, Tensor]]
    nonfinite: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Piece:
    """Rows of a tensor that is stored in pieces: from row `first` on, of `total`."""

    tensor: Tensor
    first: int
    total: int


Rows = Callable[[str, str, tuple[int, ...]], range]
"""Which rows of a tensor are wanted, by its part, name and whole shape."""

_Size = Annotated[int, Field(ge=0, lt=2**63)]


@value
class _File:
    bytes: _Size
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


@value
class _Tensor:
    shape: Annotated[tuple[_Size, ...], Field(max_length=64)]
    dtype: str
    crc32: _Size  # names the damaged tensor of a file whose SHA-256 is wrong
    finite: bool
    first: _Size | None = None  # of a piece: its first row, and how many the whole has
    total: _Size | None = None

    def __post_init__(self):
        if self.dtype not in _DTYPES:
            raise ValueError(f"no such dtype {self.dtype!r}")
        if math.prod(max(n, 1) for n in self.shape) * self.itemsize >= 2**63:
            raise ValueError("shape too large for any memory")
        if (self.first is None) != (self.total is None):
            raise ValueError("a piece has both its first row and the whole's")
        if self.first is not None and self.total is not None:
            if not self.shape or self.first + self.shape[0] > self.total:
                raise ValueError(f"rows {self.first} on, of {self.total}, cannot have shape {self.shape}")

    @property
    def whole(self) -> tuple[int, ...]:
        return self.shape if self.total is None else (self.total, *self.shape[1:])

    @property
    def rows(self) -> range:
        start = self.first or 0
        return range(start, start + (self.shape[0] if self.shape else 0))

    @property
    def itemsize(self) -> int:
        return _DTYPES[self.dtype].itemsize

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.itemsize


@value
class _Manifest:
    format: int
    kind: str
    library: str
    files: dict[str, _File]
    tensors: dict[Annotated[str, Field(pattern=_FILE)], dict[Annotated[str, Field(pattern=_NAME)], _Tensor]]


def _json(data: Any) -> bytes:
    return json.dumps(data, allow_nan=False).encode() + b"\n"


def _sealed(body: dict[str, Any]) -> bytes:
    """The manifest's bytes: it carries its own hash, since no other file vouches for it."""
    return _json({**body, "sha256": hashlib.sha256(_json(body)).hexdigest()})


def _in_file_order(tensors: dict[str, _Tensor]) -> dict[str, _Tensor]:
    """Wide dtypes first, so that every tensor is aligned; then by name (as the safetensors library does)."""
    return dict(sorted(tensors.items(), key=lambda item: (-item[1].itemsize, item[0])))


def _header(tensors: dict[str, _Tensor]) -> bytes:
    """The safetensors header (https://github.com/huggingface/safetensors#format) of `tensors` in file order."""
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in tensors.items():
        begin, end = end, end + tensor.nbytes
        entries[name] = {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [begin, end]}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _is_finite(tensor: Tensor) -> bool:
    if not tensor.is_floating_point() or tensor.numel() == 0:
        return True
    tensor = tensor.detach()
    ends = torch.aminmax(tensor if tensor.itemsize > 1 else tensor.float())  # one pass; NaN wins both ends
    return math.isfinite(ends.min.item()) and math.isfinite(ends.max.item())


def _plain(described: Any) -> dict[str, Any]:
    """As JSON data, without what has no value."""
    return {key: item for key, item in dataclasses.asdict(described).items() if item is not None}


def _described(part: str, name: str, given: Tensor | Piece) -> _Tensor:
    tensor = given.tensor if isinstance(given, Piece) else given
    if not re.fullmatch(_NAME, name) or name == "__metadata__":
        raise UserError(f"{part}: tensor name {name!r}: expected letters, digits, '_' and '.' only")
    if tensor.layout != torch.strided or tensor.is_meta or tensor.dtype not in _CODES:
        found = f"{tensor.dtype}, {tensor.layout} on {tensor.device}"
        raise UserError(f"{part}: {name}: cannot store {found}; expected a dense tensor of {', '.join(_DTYPES)}")
    first, total = (given.first, given.total) if isinstance(given, Piece) else (None, None)
    shape, dtype = tuple(tensor.shape), _CODES[tensor.dtype]
    return _Tensor(shape=shape, dtype=dtype, crc32=0, finite=_is_finite(tensor), first=first, total=total)


def _create(path: Path, data: Iterable[bytes | memoryview]) -> _File:
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
    return _File(bytes=size, sha256=sha256.hexdigest())


def _create_part(path: Path, tensors: Mapping[str, Tensor | Piece], table: dict[str, _Tensor]) -> tuple[_File, dict]:
    """The file, and `table` in file order with the checksums."""
    table = _in_file_order(table)

    def pieces() -> Iterator[bytes | memoryview]:
        yield _header(table)
        for name, described in list(table.items()):
            given = tensors[name]
            with _COPYING:
                tensor = (given.tensor if isinstance(given, Piece) else given).detach().to("cpu").contiguous()
            data = tensor.reshape(-1).view(torch.uint8).numpy().data
            table[name] = dataclasses.replace(described, crc32=zlib.crc32(data))
            yield from (data[at : at + _CHUNK] for at in range(0, len(data), _CHUNK))

    return _create(path, pieces()), table


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _make_folders(folder: Path) -> None:
    """`mkdir -p`, each new name synced."""
    if not folder.is_dir():
        _make_folders(folder.parent)
        folder.mkdir(exist_ok=True)
        _sync_folder(folder.parent)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Says that the folder's maker lives; the kernel lets go when the process dies, however it dies."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with suppress(OSError):  # where a file system has no locks, nothing is swept either
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(fd)


def _is_abandoned(folder: Path) -> bool:
    try:
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except OSError:
        return False
    finally:
        os.close(fd)


def _aside(folder: Path, why: str) -> Path:
    return folder.with_name(f".{why}-{folder.name}-{uuid.uuid4().hex}")


def _delete(folder: Path) -> None:
    """Removes a folder of ours; whatever else lies in it stays, and so does the folder then."""
    with suppress(OSError):  # what is left goes with a later sweep
        for name in os.listdir(folder):
            if name in (MANIFEST, _STATE) or name.endswith(_TENSORS):
                os.unlink(folder / name)
        os.rmdir(folder)


def sweep(parent: Path, names: str) -> None:
    """Deletes what saves of `names` (a pattern such as `step-*`) left in `parent` when their process was killed."""
    try:
        paths = list(parent.iterdir())
    except OSError:  # nothing there to sweep, or nothing we may: the save itself will say so
        return
    for path in paths:
        found = _ASIDE.fullmatch(path.name)
        if not found or not fnmatch.fnmatchcase(found[2], names):
            continue
        why, name = found.groups()
        # `.old-NAME` is the last good copy until the new NAME stands.
        if why == "del" or (why == "old" and (parent / name).exists()) or (why == "tmp" and _is_abandoned(path)):
            _delete(path)


def present(folder: Path) -> Path:
    """`folder`, or what it was before, if a save that replaced it was killed between its two renames."""
    if not folder.exists() and folder.parent.is_dir():
        for path in folder.parent.iterdir():
            if (found := _ASIDE.fullmatch(path.name)) and found.groups() == ("old", folder.name):
                return path
    return folder


def set_aside(folder: Path, why: str) -> Path:
    """Renames a store folder to `.WHY-NAME-…` beside it, where nothing looks for it, and returns that.

    Raises:
        ResourceError: it cannot be renamed.
    """
    hidden = _aside(folder, why)
    try:
        os.rename(folder, hidden)
    except OSError as error:
        raise ResourceError(f"{folder}: cannot be moved aside: {error}; move or delete it by hand") from error
    return hidden


def remove(folder: Path) -> None:
    """Deletes a store folder, out of sight by one rename before its first file goes.

    Raises:
        ResourceError: it cannot be renamed.
    """
    _delete(set_aside(present(folder), "del"))


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


def _tables(parts: Mapping[str, Mapping[str, Tensor | Piece]]) -> dict[str, dict[str, _Tensor]]:
    """What the manifest will say of tensors, but for their checksums."""
    tables = {}
    for part, tensors in parts.items():
        if not re.fullmatch(_PART, part):
            raise UserError(f"part {part!r}: expected lower-case letters, digits, '_' and '-' only")
        tables[part] = {name: _described(part, name, tensor) for name, tensor in tensors.items()}
        if (size := len(_header(tables[part]))) > MAX_HEADER:
            raise UserError(f"{part}: {size} bytes of names and shapes, at most {MAX_HEADER} can be; use more parts")
    return tables


def _state_text(state: dict[str, Any]) -> bytes:
    try:
        text = _json(state)
        plain = parse_json(text.decode()) == state and isinstance(state, dict)
    except (TypeError, ValueError, RecursionError) as error:
        raise UserError(f"state: not plain JSON data: {error}") from error
    if not plain or len(text) > MAX_JSON:
        raise UserError(
            f"state: expected a dictionary of lists, strings and finite numbers, at most {MAX_JSON} bytes of "
            f"JSON; found {len(text)} bytes{'' if plain else ' that do not read back as they were'}"
        )
    return text


def _bytes_of(tables: Mapping[str, dict[str, _Tensor]]) -> int:
    return sum(2 * len(_header(table)) + sum(t.nbytes for t in table.values()) for table in tables.values())


def _read_tables(data: dict[str, dict[str, dict[str, Any]]]) -> dict[str, dict[str, _Tensor]]:
    return {
        file: {name: _Tensor(**{**one, "shape": tuple(one["shape"])}) for name, one in table.items()}
        for file, table in data.items()
    }


Written = tuple[dict[str, _File], dict[str, dict[str, _Tensor]]]


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
        described = {file: {name: _plain(one) for name, one in table.items()} for file, table in tables.items()}
        ranks.meet([{name: _plain(file) for name, file in files.items()}, described])
        ranks.meet()
        return folder
    with _saving(folder, need):
        if standing := os.path.lexists(folder):
            if not replace:
                raise UserError(f"{folder}: exists already, and is not overwritten; give another name")
            _check_replaceable(folder, kind)
        _make_folders(folder.parent)
        sweep(folder.parent, glob.escape(folder.name))
        if shutil.disk_usage(folder.parent).free < 1.1 * need:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fresh, old = _aside(folder, "tmp"), _aside(folder, "old")
        try:
            os.mkdir(fresh)
            with _locked(fresh):
                ranks.meet(str(fresh))
                mine = _write_parts(fresh, parts, tables)
                others = [
                    (
                        {name: _File(**file) for name, file in files.items()},
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
            _delete(fresh)
        _sync_folder(folder.parent)
        for name, size in files.items():
            if (found := (folder / name).stat().st_size) != size:
                raise OSError(errno.EIO, f"{name} has {found} bytes where {size} were written")
        _delete(old)
    ranks.meet()
    return folder


def _write_parts(
    fresh: Path,
    parts: Mapping[str, Mapping[str, Tensor | Piece]],
    tables: dict[str, dict[str, _Tensor]],
    ending: str = "",
) -> Written:
    """Writes a file a part into the folder `fresh`, of those that have anything."""
    with ThreadPoolExecutor(_THREADS) as pool:
        jobs = {
            f"{part}{ending}": pool.submit(_create_part, fresh / f"{part}{ending}{_TENSORS}", tensors, tables[part])
            for part, tensors in parts.items()
            if tensors or not ending
        }
    found = {file: job.result() for file, job in jobs.items()}
    return (
        {file + _TENSORS: written for file, (written, _) in found.items()},
        {file: table for file, (_, table) in found.items()},
    )


def _write_manifest(fresh: Path, written: Iterable[Written], state: bytes, kind: str) -> dict[str, int]:
    """Completes the folder `fresh` and syncs it; the bytes of each file."""
    files: dict[str, _File] = {_STATE: _create(fresh / _STATE, [state])}
    tensors: dict[str, dict[str, _Tensor]] = {}
    for theirs, tables in written:
        files |= theirs
        tensors |= tables
    body = {
        "format": PIECES if any("." in file for file in tensors) else FORMAT,
        "kind": kind,
        "library": version("pixelspace"),
        "files": {name: _plain(file) for name, file in files.items()},
        "tensors": {file: {name: _plain(one) for name, one in table.items()} for file, table in tensors.items()},
    }
    text = _sealed(body)
    if len(text) > MAX_JSON:
        raise UserError(f"{fresh}: {len(text)} bytes of manifest, at most {MAX_JSON} can be; save fewer tensors")
    files[MANIFEST] = _create(fresh / MANIFEST, [text])
    _sync_folder(fresh)
    return {name: file.bytes for name, file in files.items()}


@contextmanager
def _reading(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE, errno.ENOMEM):
            raise ResourceError(f"{folder}: this process cannot read it: {error}; see its rights and limits") from error
        raise CheckpointError(f"{folder}: cannot be read: {error}; {_OTHER_COPY}") from error


def _open(path: Path) -> io.BufferedReader:
    """A regular file, never through a symlink."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise CheckpointError(f"{path}: is a symlink, expected a regular file; {_OTHER_COPY}") from error
        raise
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise CheckpointError(f"{path}: expected a regular file, found something else; {_OTHER_COPY}")
    return open(fd, "rb")


def _parsed(path: Path, text: bytes) -> dict[str, Any]:
    try:
        data = parse_json(text.decode())
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not JSON as we write it: {error}; {_OTHER_COPY}") from error
    if not isinstance(data, dict):
        raise CheckpointError(f"{path}: expected a JSON object, found {type(data).__name__}; {_OTHER_COPY}")
    return data


def _read_manifest(path: Path, file: io.BufferedReader, kind: str) -> _Manifest:
    text = file.read(MAX_JSON + 1)
    if len(text) > MAX_JSON:
        raise CheckpointError(f"{path}: more than the {MAX_JSON} bytes that a manifest can have; {_OTHER_COPY}")
    data = _parsed(path, text)
    found = data.get("format")
    if type(found) is int and found > PIECES:
        raise CheckpointError(
            f"{path}: format {found}, written by pixelspace {data.get('library')!r:.20}; this is pixelspace "
            f"{version('pixelspace')}, which reads formats up to {PIECES}: install a newer one"
        )
    data.pop("sha256", None)
    if _sealed(data) != text:
        raise CheckpointError(f"{path}: is damaged: its SHA-256 is not the one that it states itself; {_OTHER_COPY}")
    try:
        manifest = TypeAdapter(_Manifest).validate_json(_json(data))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise CheckpointError(f"{path}: {where:.80}: {first['msg']}, found {first['input']!r:.80}") from error
    if manifest.format not in (FORMAT, PIECES):
        raise CheckpointError(f"{path}: format {found}; this pixelspace reads formats {FORMAT} and {PIECES}")
    if manifest.kind != kind:
        raise CheckpointError(f"{path.parent}: holds a {manifest.kind!r}; expected a {kind!r}")
    names = {_STATE, *(part + _TENSORS for part in manifest.tensors)}
    if (odd := manifest.files.keys() ^ names) and (name := min(odd)):
        raise CheckpointError(f"{path}: files: {name!r:.80}: expected exactly {_STATE} and a file a part")
    for part, tensors in manifest.tensors.items():
        header = len(_header(_in_file_order(tensors)))
        size, stated = header + sum(t.nbytes for t in tensors.values()), manifest.files[part + _TENSORS].bytes
        if header > MAX_HEADER or stated != size or "__metadata__" in tensors:
            raise CheckpointError(
                f"{path}: {part}{_TENSORS}: {stated} bytes stated, its tensors take {size}, {header} of it the header "
                f"(at most {MAX_HEADER}), and none can be named __metadata__; {_OTHER_COPY}"
            )
    for (part, name), pieces in _by_tensor(manifest).items():
        at, (_, of) = 0, pieces[0]
        for _, piece in pieces:
            if (piece.whole, piece.dtype) != (of.whole, of.dtype) or piece.rows.start != at:
                raise CheckpointError(f"{path}: {part}: {name}: its pieces do not fit at row {at}; {_OTHER_COPY}")
            at = piece.rows.stop
        if (of.whole and at != of.whole[0]) or (not of.whole and len(pieces) > 1):
            raise CheckpointError(f"{path}: {part}: {name}: {at} rows of {of.whole} are there; {_OTHER_COPY}")
    return manifest


def _by_tensor(manifest: _Manifest) -> dict[tuple[str, str], list[tuple[str, _Tensor]]]:
    """By part and name, the files that have pieces of a tensor, and what they have, in order of rows."""
    found: dict[tuple[str, str], list[tuple[str, _Tensor]]] = {}
    for file, tensors in manifest.tensors.items():
        for name, one in tensors.items():
            found.setdefault((file.partition(".")[0], name), []).append((file, one))
    return {key: sorted(pieces, key=lambda piece: piece[1].rows.start) for key, pieces in found.items()}


@contextmanager
def _opened(folder: Path, kind: str) -> Iterator[tuple[Path, _Manifest, dict[str, io.BufferedReader]]]:
    """The folder, its manifest, and each file open and of the right size, so readable even if it is deleted now."""
    with ExitStack() as stack, _reading(folder):
        folder = present(folder)
        there = set(os.listdir(folder))
        if MANIFEST not in there:
            raise CheckpointError(f"{folder / MANIFEST}: absent, so this is no complete {kind}; {_OTHER_COPY}")
        manifest = _read_manifest(folder / MANIFEST, stack.enter_context(_open(folder / MANIFEST)), kind)
        if missing := manifest.files.keys() - there:
            raise CheckpointError(f"{folder / min(missing)}: absent; the manifest lists it; {_OTHER_COPY}")
        if surplus := there - manifest.files.keys() - {MANIFEST}:
            raise CheckpointError(f"{folder / min(surplus)}: not in the manifest; move it elsewhere")
        files = {name: stack.enter_context(_open(folder / name)) for name in manifest.files}
        for name, file in files.items():
            found, wanted = os.fstat(file.fileno()).st_size, manifest.files[name].bytes
            if found != wanted:
                raise CheckpointError(f"{folder / name}: {found} bytes; the manifest says {wanted}; {_OTHER_COPY}")
        yield folder, manifest, files


def _check_hash(path: Path, found: str, stated: _File) -> None:
    if found != stated.sha256:
        raise CheckpointError(f"{path}: is damaged: SHA-256 {found}, the manifest says {stated.sha256}; {_OTHER_COPY}")


def _read_state(path: Path, file: io.BufferedReader, stated: _File) -> dict[str, Any]:
    if stated.bytes > MAX_JSON:
        raise CheckpointError(f"{path}: {stated.bytes} bytes; at most {MAX_JSON} can be; {_OTHER_COPY}")
    text = file.read()
    _check_hash(path, hashlib.sha256(text).hexdigest(), stated)
    return _parsed(path, text)


def _check_header(path: Path, found: bytes, wanted: bytes) -> None:
    if found != wanted:
        # not strict: of a file that ends within its header, less was found than is wanted
        at = next((i for i, (a, b) in enumerate(zip(found, wanted, strict=False)) if a != b), len(found))
        near = slice(max(at - 40, 0), at + 20)
        raise CheckpointError(
            f"{path}: its header is not the manifest's at byte {at}: found {found[near]!r}, wanted {wanted[near]!r}; "
            f"{_OTHER_COPY}"
        )


def _read_part(
    path: Path, file: io.BufferedReader, stated: _File, tensors: dict[str, _Tensor], keep: Mapping[str, range] | None
) -> dict[str, Tensor]:
    """Reads and hashes in one pass, and keeps what is wanted: all, or by name rows; no more than one tensor besides is
    held at a time."""
    tensors = _in_file_order(tensors)
    header = _header(tensors)
    _check_header(path, file.read(len(header)), header)
    sha256, kept = hashlib.sha256(header), {}
    for name, wanted in tensors.items():
        try:
            data = torch.empty(wanted.nbytes, dtype=torch.uint8)
        except RuntimeError as error:
            raise ResourceError(f"{path}: {name}: no memory for its {wanted.nbytes:,} bytes; free some") from error
        view, crc = data.numpy().data, 0
        for at in range(0, wanted.nbytes, _CHUNK):
            piece = view[at : at + _CHUNK]
            if (got := file.readinto(piece)) != len(piece):
                raise CheckpointError(f"{path}: {name}: ends {len(piece) - got} bytes early; {_OTHER_COPY}")
            sha256.update(piece)
            crc = zlib.crc32(piece, crc)
        if crc != wanted.crc32:
            raise CheckpointError(
                f"{path}: {name}: is damaged: CRC-32 {crc:08x}, the manifest says {wanted.crc32:08x}; {_OTHER_COPY}"
            )
        if keep is None or (name in keep and not wanted.shape):
            kept[name] = data.view(_DTYPES[wanted.dtype]).reshape(wanted.shape)
        elif name in keep:
            rows, mine = keep[name], wanted.rows
            start, stop = max(rows.start, mine.start) - mine.start, min(rows.stop, mine.stop) - mine.start
            kept[name] = data.view(_DTYPES[wanted.dtype]).reshape(wanted.shape)[start : max(start, stop)].clone()
    _check_hash(path, sha256.hexdigest(), stated)
    return kept


def read(folder: Path, *, kind: str, parts: Iterable[str] | None = None, rows: Rows | None = None) -> Contents:
    """What `publish` put into `folder`, every bit of every file checked; tensors (on the CPU) of `parts`, or of all,
    whole or the `rows` that are wanted.

    Raises:
        CheckpointError: damaged, incomplete, of another kind, of a newer format, or without one of `parts`.
        ResourceError: this process may not open it.
    """
    with _opened(Path(folder), kind) as (folder, manifest, files), ThreadPoolExecutor(_THREADS) as pool:
        there = list(dict.fromkeys(file.partition(".")[0] for file in manifest.tensors))
        wanted = set(there if parts is None else parts)
        if absent := wanted - set(there):
            raise CheckpointError(f"{folder}: has no {min(absent)!r}; there is {', '.join(there) or 'nothing'}")
        state = _read_state(folder / _STATE, files[_STATE], manifest.files[_STATE])
        jobs = {}
        for file, tensors in manifest.tensors.items():
            name, part = file + _TENSORS, file.partition(".")[0]
            keep = None if part in wanted else {}
            if rows and part in wanted:
                keep = {one: rows(part, one, stated.whole) for one, stated in tensors.items() if stated.shape}
                keep |= {one: range(1) for one, stated in tensors.items() if not stated.shape}
            jobs[file] = pool.submit(_read_part, folder / name, files[name], manifest.files[name], tensors, keep)
        loaded = {file: job.result() for file, job in jobs.items()}
    found: dict[str, dict[str, Tensor]] = {part: {} for part in there if part in wanted}
    for (part, name), pieces in _by_tensor(manifest).items():
        if part in wanted:
            some = [loaded[file].pop(name) for file, _ in pieces]
            found[part][name] = some[0] if len(some) == 1 else torch.cat(some)
    nonfinite = (
        f"{part}/{name}" for (part, name), some in _by_tensor(manifest).items() if not all(t.finite for _, t in some)
    )
    return Contents(state, found, tuple(nonfinite))


def read_state(folder: Path, *, kind: str) -> dict[str, Any]:
    """The state that `publish` put into `folder`, every bit checked; of the tensors' files only the sizes are.

    Raises:
        CheckpointError, ResourceError: as `read`.
    """
    with _opened(Path(folder), kind) as (folder, manifest, files):
        return _read_state(folder / _STATE, files[_STATE], manifest.files[_STATE])


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
