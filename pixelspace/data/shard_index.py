"""What is in many shards, found out once: a folder with a part for each, and a manifest that vouches for all of them.

`shards.begun.json` says what is indexed, and `shards.json` comes last. Parts appear by one rename each, so that
indexing goes on where it was killed, processes may share the shards out, and only a shard that changed is read again.
Beside them `rejects.jsonl` lists every bad sample.
"""

import hashlib
import json
import multiprocessing
import os
import signal
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from concurrent.futures import ProcessPoolExecutor as Pool
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, partial
from multiprocessing.connection import wait as wait_for
from pathlib import Path

import numpy as np
from tqdm import tqdm

from pixelspace.config import nearest, value
from pixelspace.data.decode import shown
from pixelspace.data.index import processes_start
from pixelspace.data.remote import File, Files
from pixelspace.data.shard_part import AGAIN, Part, PartFile, name_of, part_path, write_part
from pixelspace.data.shard_scan import Examine, Scan, examined, scan_shard
from pixelspace.data.tar import read_at
from pixelspace.errors import DataError, ResourceError, UserError
from pixelspace.files import Seal, drop_abandoned, publish

BEGUN, MANIFEST, REJECTS = "shards.begun.json", "shards.json", "rejects.jsonl"
_SHOWN = 20  # of each kind, in a summary
_ALONE = 8 << 20  # bytes from which on reading is shared over processes
_SECONDS = 30.0  # a decoder may take on an image


@value
class Indexed:
    """Which shards are indexed, by their path, and which key of the .json has the captions (None: the .txt)."""

    path: str
    text_key: str | None


@value
class Sealed:
    """A shard's part, and its file's size and SHA-256."""

    part: Part
    bytes: int
    sha256: str


@value
class Manifest:
    """All shards, in order of name."""

    indexed: Indexed
    shards: tuple[Sealed, ...]


SEAL = Seal("shard index", 1, {cls.__name__: cls for cls in (Indexed, Part, Sealed, Manifest)}, AGAIN)


def is_index(folder: Path) -> bool:
    """Whether shards are, or are being, indexed in `folder`."""
    return any((folder / name).is_file() for name in (MANIFEST, BEGUN))


def _counts(counts: Counter[str]) -> str:
    return ", ".join(f"{n:,} {shown(what)}" for what, n in counts.most_common(_SHOWN))


def _more(lines: list[str], what: str) -> list[str]:
    rest = [f"{what}: and {len(lines) - _SHOWN:,} more"] if len(lines) > _SHOWN else []
    return [*(f"{what}: {line}" for line in lines[:_SHOWN]), *rest]


@dataclass(frozen=True)
class ShardIndex:
    """The index in `folder`. Columns are read from the parts whenever they are asked for."""

    folder: Path
    manifest: Manifest

    @cached_property
    def parts(self) -> tuple[PartFile, ...]:
        """The shards' parts, in order."""
        return tuple(PartFile(part_path(self.folder, one.part.shard)) for one in self.manifest.shards)

    @property
    def good(self) -> int:
        """How many samples can be used."""
        return sum(one.part.good for one in self.manifest.shards)

    @property
    def bad(self) -> int:
        """How many cannot."""
        return sum(one.part.bad for one in self.manifest.shards)

    @property
    def faults(self) -> list[str]:
        """What is wrong with whole shards."""
        return [f"{one.part.shard}: {one.part.fault}" for one in self.manifest.shards if one.part.fault]

    @property
    def numbers(self) -> tuple[str, ...]:
        """The names of all numbers in the metadata."""
        return tuple(sorted({name for one in self.manifest.shards for name in one.part.numbers}))

    @property
    def classes(self) -> tuple[str, ...]:
        """Labels are whole numbers, and so are the names of their classes."""
        return tuple(map(str, range(max((one.part.classes for one in self.manifest.shards), default=0))))

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the good samples' shards, keys, contents, labels and captions."""
        rows = [(one.part.shard, one.part.content) for one in self.manifest.shards if one.part.good]
        return hashlib.sha256(json.dumps(rows).encode()).hexdigest()

    def column(self, name: str) -> np.ndarray:
        """A column of all good samples (see `shard_part`), or a number of their metadata as `number.NAME`."""
        if name.startswith("number."):
            columns = [part.number(name.removeprefix("number.")) for part in self.parts]
        else:
            columns = [part.column(name) for part in self.parts]
        return np.concatenate(columns)

    def rejects(self, most: int | None = None) -> list[tuple[str, str, str]]:
        """(shard, key, reason) of the bad samples, in order, and of shards whose tar is damaged, without a key."""
        found = []
        for one, part in zip(self.manifest.shards, self.parts, strict=True):
            if most is not None and len(found) >= most:
                break
            if one.part.bad:
                found += [(one.part.shard, key, reason) for key, reason in part.bad]
            if one.part.fault:
                found.append((one.part.shard, "", one.part.fault))
        return found[:most]

    def check(self, max_bad_share: float) -> None:
        """Refuses shards without a good sample, with too many bad ones, or too many shards that are damaged.

        Raises:
            DataError: naming three.
            UserError: no sample has the key of the captions.
        """
        path, text_key = self.manifest.indexed.path, self.manifest.indexed.text_key
        parts = [one.part for one in self.manifest.shards]
        named = "; ".join(_named(*reject) for reject in self.rejects(3))
        if text_key and text_key not in (known := {key for part in parts for key in part.text_keys}) and self.good:
            raise UserError(f"{shown(path)}: no .json has the key {text_key!r}; {nearest(text_key, known)}")
        if not self.good:
            raise DataError(
                f"{shown(path)}: none of its {self.bad:,} samples can be read: {named or 'the tars are empty'}"
            )
        for what, bad, total in (("samples", self.bad, self.good + self.bad), ("shards", len(self.faults), len(parts))):
            if bad > max_bad_share * total:
                raise DataError(
                    f"{shown(path)}: {bad:,} of {total:,} {what} are bad, more than the {100 * max_bad_share:.4g}% "
                    f"allowed: {named}; all are in {self.folder / REJECTS}; mend or remove them, or raise max_bad_share"
                )

    def _repeated(self, column: str) -> int:
        values = self.column(column)
        if column == "sha256":
            values = values[:, :8].copy().view(np.uint64).ravel()  # 64 bits tell 12 million images apart
        return len(values) - len(np.unique(values))

    def summary(self) -> str:
        """What people want to know, a few lines."""
        parts = [one.part for one in self.manifest.shards]
        path = shown(self.manifest.indexed.path)
        lines = [f"{path}: {self.good:,} good samples in {len(parts):,} shards, {self.bad:,} bad"]
        if self.good:
            sides = self.column("shape").min(1)
            modes = Counter[str]()
            for part in parts:
                modes.update(dict(part.modes))
            captioned, blank = sum(part.captioned for part in parts), sum(part.blank for part in parts)
            lines.append(f"shorter side: {sides.min()} to {sides.max()}, median {sorted(sides)[len(sides) // 2]}")
            lines.append(f"pixels: {_counts(modes)}; all are read as RGB")
            lines.append(
                f"captions: {captioned:,} samples have one, {self.good - captioned:,} none, {blank:,} are blank; "
                f"the longest has {self.column('length').max():,} characters"
            )
            images, keys = self._repeated("sha256"), self._repeated("same_key")
            lines.append(f"duplicates: {images:,} images, {keys:,} keys in several shards")
        for title, attribute in (("not used", "notes"), ("ignored", "ignored")):
            counts = Counter[str]()
            for part in parts:
                counts.update(dict(getattr(part, attribute)))
            if counts:
                lines.append(f"{title}: {_counts(counts)}")
        for name in self.numbers[:_SHOWN]:
            values = self.column(f"number.{name}")
            values = values[~np.isnan(values)]
            lines.append(f"number: {name}: {len(values):,} samples, {values.min():g} to {values.max():g}")
        if len(self.numbers) > _SHOWN:
            lines.append(f"number: and {len(self.numbers) - _SHOWN:,} more")
        if self.classes:
            lines.append(f"{len(self.classes):,} classes, by number")
        lines += _more([f"{part.shard}:{name}" for part in parts for name in part.pickles], "pickle, never read")
        lines += _more(self.faults, "damaged")
        lines += [f"bad: {_named(*reject)}" for reject in self.rejects(_SHOWN) if reject[1]]
        if self.bad > _SHOWN:
            lines.append(f"bad: and {self.bad - _SHOWN:,} more")
        if self.bad or self.faults:
            lines.append(f"all that is bad: {self.folder / REJECTS}")
        return "\n".join(lines)


def _named(shard: str, key: str, reason: str) -> str:
    return f"{name_of(shard, shown(key))}: {reason}" if key else f"{shard}: {reason}"


Scanner = Callable[[File, Examine], Scan]  # what finds out what is in a shard, and can be sent to another process


def _scan_tar(text_key: str | None, file: File, look: Examine) -> Scan:
    with file.open() as opened:
        return scan_shard(opened.fileno(), file.size, text_key, look)


def _index(
    text_key: str | None,
    scanner: Scanner,
    folder: Path,
    seconds: float | None,
    file: File,
    skip: dict[int, str],
    at: Path | None,
) -> None:
    """Writes the part of a shard. An image that takes over `seconds` ends this process; `at` tells which it was."""
    where = None if at is None else os.open(at, os.O_WRONLY | os.O_CREAT)

    def look(offset: int, data: bytes) -> tuple[int, int, str, tuple[str, ...]]:
        if offset in skip:
            raise DataError(skip[offset])
        if where is not None:
            os.pwrite(where, offset.to_bytes(8, "little"), 0)
        if seconds is None:
            return examined(offset, data)
        signal.setitimer(signal.ITIMER_REAL, seconds)  # its signal ends this process
        try:
            return examined(offset, data)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)

    try:
        scan = scanner(file, look)
    except OSError as error:
        raise DataError(f"{file.name}: cannot be read: {error.strerror}; {AGAIN}") from error
    finally:
        if where is not None:
            os.close(where)
    write_part(folder, file.name, file.size, file.mark, text_key, scan)


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shard takes minutes: an interrupt ends it at once
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        wait_for([parent.sentinel])
        os._exit(1)  # a parent that was killed cannot end this process

    threading.Thread(target=follow, daemon=True).start()


def _alone(task: Callable[..., None], file: File, folder: Path) -> None:
    """Indexes a shard in a process of its own, as often as an image ends it; each such image is bad."""
    skip, at = dict[int, str](), folder / f".at-{os.getpid()}.part"
    try:
        while True:
            try:
                with Pool(1, multiprocessing.get_context("forkserver"), _start_worker) as pool:
                    return pool.submit(task, file, skip, at).result()
            except BrokenProcessPool as error:
                offset = int.from_bytes(at.read_bytes(), "little") if at.exists() else 0
                if not offset or offset in skip:
                    raise ResourceError(f"{file.name}: the process that read it was killed (out of memory?)") from error
                skip[offset] = "its decoder crashed or took too long"
    finally:
        at.unlink(missing_ok=True)


def _index_all(
    files: list[File],
    text_key: str | None,
    folder: Path,
    workers: int | None,
    bar: tqdm,
    seconds: float = _SECONDS,
    scanner: Scanner | None = None,
) -> None:
    scanner = scanner or partial(_scan_tar, text_key)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if (workers is None and sum(file.size for file in files) < _ALONE) or not processes_start():
        for file in files:
            _index(text_key, scanner, folder, None, file, {}, None)
            bar.update(file.size)
        return
    task, waiting = partial(_index, text_key, scanner, folder, seconds), deque(files)
    before = multiprocessing.active_children()
    workers = min(workers or cores, len(files))
    while waiting:
        under_way = dict[Future, File]()
        with Pool(workers, multiprocessing.get_context("forkserver"), _start_worker) as pool:
            try:
                while waiting or under_way:
                    while waiting and len(under_way) < workers:
                        under_way[pool.submit(task, waiting[0], {}, None)] = waiting[0]
                        waiting.popleft()
                    for future in wait(under_way, return_when=FIRST_COMPLETED).done:
                        future.result()
                        bar.update(under_way.pop(future).size)
            except BrokenProcessPool:
                pass  # it does not say by which shard: see below
            except BaseException:
                for child in set(multiprocessing.active_children()) - set(before):
                    child.kill()
                raise
        for file in under_way.values():
            if not _stands(folder, file, text_key):
                _alone(task, file, folder)
            bar.update(file.size)


def _stands(folder: Path, file: File, text_key: str | None) -> bool:
    """Whether the part of a shard is there, and of this shard as it is now."""
    with suppress(DataError):
        part = PartFile(part_path(folder, file.name)).part
        return (part.shard, part.bytes, part.mark, part.text_key) == (file.name, file.size, file.mark, text_key)
    return False


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}; {AGAIN}") from error


def _drop_damaged(folder: Path) -> None:
    manifest = None
    with suppress(DataError):  # nothing is sealed yet
        manifest, _ = SEAL.read(folder / MANIFEST, Manifest)
    for one in manifest.shards if manifest else ():
        path = part_path(folder, one.part.shard)
        with suppress(DataError):  # it is to be written anew, as is one that changed
            if PartFile(path).part == one.part and _sha256(path) != one.sha256:
                path.unlink(missing_ok=True)


def build_index(
    files: Files,
    indexed: Indexed,
    folder: Path,
    *,
    scanner: Scanner | None = None,
    workers: int | None = None,
    rank: int = 0,
    world: int = 1,
    progress: bool = True,
) -> ShardIndex | None:
    """Indexes the shards `files` in `folder`, by `workers` processes (None: one a core, or none if there is little to
    do). What stands is kept. Of `world` programs that share the shards each has its `rank`; None is returned while
    parts of others are missing. `scanner` is for shards that are no tars.

    Raises:
        UserError: the folder holds something else; shards that are compressed.
        DataError: a shard cannot be read at all, or changed meanwhile.
        ResourceError: the disk is full or refuses.
    """
    SEAL.begin(folder, BEGUN, indexed)
    _drop_damaged(folder)
    mine = files.files[rank::world]
    to_do = [file for file in mine if not _stands(folder, file, indexed.text_key)]
    total, left = (sum(file.size for file in some) for some in (mine, to_do))
    with tqdm(
        total=total,
        initial=total - left,
        unit="B",
        unit_scale=True,
        desc="indexing",
        disable=None if progress else True,
    ) as bar:
        if to_do:
            _index_all(to_do, indexed.text_key, folder, workers, bar, scanner=scanner)
    if not all(_stands(folder, file, indexed.text_key) for file in files.files):
        return None
    paths = [part_path(folder, name) for name in files.names]
    for other in set(folder.glob("part-*.safetensors")) - set(paths):
        other.unlink(missing_ok=True)
    sealed = tuple(Sealed(PartFile(path).part, path.stat().st_size, _sha256(path)) for path in paths)
    index = ShardIndex(folder, Manifest(indexed, sealed))
    rows = (json.dumps({"shard": shard, "key": key, "reason": why}) for shard, key, why in index.rejects())
    for path in (folder / REJECTS, folder / MANIFEST):
        drop_abandoned(path)
    publish(folder / REJECTS, "".join(f"{row}\n" for row in rows).encode(), AGAIN)
    SEAL.write(folder / MANIFEST, index.manifest)
    return index


def open_index(folder: Path, files: Files) -> ShardIndex:
    """The finished index in `folder`, checked to be whole and of these very shards.

    Raises:
        DataError: it is damaged, or a shard changed, came or went.
    """
    manifest, _ = SEAL.read(folder / MANIFEST, Manifest)
    stated = {one.part.shard: (one.part.bytes, one.part.mark) for one in manifest.shards}
    found = {file.name: (file.size, file.mark) for file in files.files}
    for name in sorted(stated.keys() | found.keys()):
        if stated.get(name) != found.get(name):
            what = "is gone, although it is indexed" if name not in found else "is not indexed"
            what = "changed since it was indexed" if name in stated and name in found else what
            raise DataError(f"{name}: {what}; {AGAIN}")
    index = ShardIndex(folder, manifest)
    for one, part in zip(manifest.shards, index.parts, strict=True):
        if _sha256(part.path) != one.sha256:
            raise DataError(f"{part.path}: is damaged: its SHA-256 is not the one in {MANIFEST}; {AGAIN}")
    return index


Images = Callable[[File, Iterable[tuple[int, int]]], Iterator[bytes]]  # those that lie at offsets, with their sizes


def images_at(file: File, spans: Iterable[tuple[int, int]]) -> Iterator[bytes]:
    """The images of a tar."""
    with file.open() as opened:
        for offset, size in spans:
            yield read_at(opened.fileno(), offset, size)


def verify_images(index: ShardIndex, files: Files, workers: int | None = None, images: Images = images_at) -> None:
    """Reads the image of every good sample again. `images` is for shards that are no tars.

    Raises:
        DataError: naming three that are not what was indexed.
    """

    def changed(file: File, part: PartFile) -> list[str]:
        keys, ends = part.column("keys").tobytes(), part.column("key_ends").tolist()
        spans = zip(part.column("offset").tolist(), part.column("size").tolist(), strict=True)
        found = zip(images(file, spans), part.column("sha256"), strict=True)
        try:
            wrong = [i for i, (data, stated) in enumerate(found) if hashlib.sha256(data).digest() != stated.tobytes()]
        except OSError as error:
            raise DataError(f"{file.name}: cannot be read: {error.strerror}") from error
        named = [keys[ends[i - 1] if i else 0 : ends[i]] for i in wrong]
        return [name_of(file.name, shown(one.decode("utf-8", "surrogateescape"))) for one in named]

    with ThreadPoolExecutor(workers) as pool:
        wrong = [name for names in pool.map(changed, files.files, index.parts) for name in names]
    if wrong:
        raise DataError(
            f"{shown(index.manifest.indexed.path)}: {len(wrong):,} images are not what was indexed: "
            f"{', '.join(wrong[:3])}; bring the shards back, or delete {index.folder} and {AGAIN}"
        )
