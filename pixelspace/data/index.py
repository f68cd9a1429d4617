"""What is in a folder of images, found out once: which files are good, their sizes, hashes, labels and captions.

Classes are those of a `labels.csv` or `metadata.jsonl` at the top (see `data.labels`), or else the first folder level
if all images lie in folders. Files without an image's suffix are ignored and counted, and so are hidden ones and links
to folders; a link to a file must stay in the folder. The index is kept in a cache folder, and only files whose name,
size or time changed are read again.
"""

import hashlib
import json
import multiprocessing
import os
import signal
import stat
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from pixelspace.config import parse_json
from pixelspace.data import labels
from pixelspace.data.decode import SUFFIXES, examine, read, shown
from pixelspace.errors import DataError

FORMAT = 2
_SHOWN = 20  # bad files that a summary names
_ALONE = 64  # files from which on reading is shared over processes
_CHUNK = 16  # files a process is handed at a time
_SECONDS = 30.0  # a decoder may take on a file


@dataclass(frozen=True, slots=True)
class Entry:
    """A file by its name below the root. `reason` is "" for a good image; width and height are as shown, upright;
    `mode` is Pillow's name for the pixels in the file, `notes` what of the file could not be used."""

    name: str
    bytes: int
    mtime_ns: int
    sha256: str = ""
    width: int = 0
    height: int = 0
    mode: str = ""
    notes: tuple[str, ...] = ()
    reason: str = ""
    label: int = -1
    texts: tuple[str, ...] = ()


def _counts(counts: Counter[str]) -> str:
    return ", ".join(f"{n:,} {shown(what)}" for what, n in counts.most_common(_SHOWN))


@dataclass(frozen=True)
class Index:
    """All images of a folder, good and bad, in order of name."""

    root: str
    classes: tuple[str, ...]
    entries: tuple[Entry, ...]
    ignored: dict[str, int]

    @cached_property
    def good(self) -> tuple[Entry, ...]:
        """The images that can be used."""
        return tuple(entry for entry in self.entries if not entry.reason)

    @cached_property
    def bad(self) -> tuple[Entry, ...]:
        """The files that cannot, each with its reason."""
        return tuple(entry for entry in self.entries if entry.reason)

    @cached_property
    def fingerprint(self) -> str:
        """A hash of classes, names, contents, labels and captions of the good images."""
        rows = [(entry.name, entry.sha256, entry.label, entry.texts) for entry in self.good]
        return hashlib.sha256(json.dumps([self.classes, rows]).encode()).hexdigest()

    @cached_property
    def duplicates(self) -> int:
        """How many good images are byte for byte the same as another before them."""
        return len(self.good) - len({entry.sha256 for entry in self.good})

    def check(self, max_bad_share: float) -> None:
        """Refuses a folder without a good image, or with too many bad ones.

        Raises:
            DataError: what was found instead.
        """
        named = "; ".join(f"{shown(entry.name)}: {entry.reason}" for entry in self.bad[:3])
        if not self.entries:
            others = _counts(Counter(self.ignored)) or "nothing"
            raise DataError(f"{self.root}: no image files ({' '.join(SUFFIXES)}) at any depth; found {others}")
        if not self.good:
            raise DataError(f"{self.root}: none of its {len(self.bad):,} image files can be read: {named}")
        if len(self.bad) > max_bad_share * len(self.entries):
            raise DataError(
                f"{self.root}: {len(self.bad):,} of {len(self.entries):,} image files are bad, more than the "
                f"{100 * max_bad_share:.4g}% allowed: {named}; mend or remove them, or raise max_bad_share"
            )

    def smaller_than(self, height: int, width: int) -> int:
        """How many good images must be enlarged for this size."""
        return sum(entry.height < height or entry.width < width for entry in self.good)

    def summary(self) -> str:
        """What people want to know, a few lines."""
        lines = [f"{self.root}: {len(self.good):,} good images, {len(self.bad):,} bad"]
        if self.good:
            sides = sorted(min(entry.width, entry.height) for entry in self.good)
            lines.append(f"shorter side: {sides[0]} to {sides[-1]}, median {sides[len(sides) // 2]}")
            lines.append(f"pixels: {_counts(Counter(entry.mode for entry in self.good))}; all are read as RGB")
            lines.append(
                f"duplicates: {self.duplicates:,}; captions: {sum(bool(entry.texts) for entry in self.good):,}"
            )
        if notes := Counter(note for entry in self.good for note in entry.notes):
            lines.append(f"not used: {_counts(notes)}")
        if self.classes:
            counts = Counter(entry.label for entry in self.good)
            named = ", ".join(f"{shown(name)} {counts[i]:,}" for i, name in enumerate(self.classes[:_SHOWN]))
            lines.append(f"{len(self.classes):,} classes: {named}{', ...' if len(self.classes) > _SHOWN else ''}")
        elif self.good:
            lines.append("no classes: some images lie at the top, and no labels.csv or metadata.jsonl has labels")
        lines += [f"bad: {shown(entry.name)}: {entry.reason}" for entry in self.bad[:_SHOWN]]
        if len(self.bad) > _SHOWN:
            lines.append(f"... and {len(self.bad) - _SHOWN:,} more")
        if self.ignored:
            lines.append(f"ignored: {_counts(Counter(self.ignored))}")
        return "\n".join(lines)


class _File(NamedTuple):
    """An image file as the folder lists it, not yet read; `refused` says why it shall not be."""

    name: str
    size: int
    mtime_ns: int
    refused: str = ""


def _listed(path: str, name: str, top: str) -> _File:
    try:
        if os.path.islink(path) and os.path.commonpath([top, os.path.realpath(path)]) != top:
            return _File(name, 0, 0, "a link out of the folder")
        status = os.stat(path)
    except OSError as error:
        return _File(name, 0, 0, f"{'a link to nothing' if os.path.islink(path) else 'gone'}: {error.strerror}")
    if not stat.S_ISREG(status.st_mode):
        return _File(name, 0, 0, "not a regular file")
    return _File(name, status.st_size, status.st_mtime_ns)


def _walk(root: Path, ignored: Counter[str]) -> Iterator[_File]:
    def unreadable(error: OSError) -> None:
        ignored[f"unreadable folders ({error.strerror})"] += 1

    top = os.path.realpath(root)
    for folder, folders, files in os.walk(root, onerror=unreadable):  # which does not follow links to folders
        below = os.path.relpath(folder, root)
        for name in folders:
            if name.startswith("."):
                ignored["hidden"] += 1
            elif os.path.islink(os.path.join(folder, name)):
                ignored["links to folders"] += 1
        folders[:] = [name for name in folders if not name.startswith(".")]
        for file in files:
            suffix = os.path.splitext(file)[1].lower()
            if file.startswith("."):
                ignored["hidden"] += 1
            elif suffix in SUFFIXES:
                yield _listed(os.path.join(folder, file), os.path.normpath(os.path.join(below, file)), top)
            elif below != "." or file not in labels.FILES:
                ignored[suffix or "without suffix"] += 1


def _read(root: Path, file: _File) -> Entry:
    entry = Entry(file.name, file.size, file.mtime_ns, reason=file.refused)
    if file.refused:
        return entry
    try:
        data = read(root / file.name)
    except DataError as error:
        return replace(entry, mtime_ns=-1, reason=str(error))  # may pass: to be read again at the next start
    try:
        decoded = examine(data)
    except DataError as error:
        return replace(entry, reason=str(error))
    width, height = decoded.image.size
    digest = hashlib.sha256(data).hexdigest()
    return replace(entry, sha256=digest, width=width, height=height, mode=decoded.mode, notes=decoded.notes)


def _read_in_time(root: Path, seconds: float, file: _File) -> Entry:
    signal.setitimer(signal.ITIMER_REAL, seconds)  # its signal ends this process
    try:
        return _read(root, file)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _pool(workers: int) -> ProcessPoolExecutor:
    context = multiprocessing.get_context("forkserver")
    # An interrupt is the parent's to handle.
    return ProcessPoolExecutor(workers, context, initializer=signal.signal, initargs=(signal.SIGINT, signal.SIG_IGN))


def processes_start() -> bool:
    """False in a script that starts training without `if __name__ == "__main__"`."""
    with _pool(1) as pool:
        try:
            return pool.submit(os.getpid).result() > 0
        except BrokenProcessPool:
            return False


def _read_all(root: Path, files: list[_File], seconds: float = _SECONDS) -> Iterator[Entry]:
    """The entries of `files`, in order. A file whose decoder crashes or hangs ends its process, and only that."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if len(files) < _ALONE or not processes_start():
        yield from (_read(root, file) for file in tqdm(files, desc="reading images", unit="file", disable=None))
        return
    task = partial(_read_in_time, root, seconds)
    done, careful = 0, False
    with tqdm(total=len(files), desc="reading images", unit="file", disable=None) as bar:
        while done < len(files):
            # A broken pool does not say which file broke it. One process takes those under way again, one by one.
            part = files[done : done + _CHUNK * (2 * cores + 1)] if careful else files[done:]
            try:
                with _pool(1 if careful else cores) as pool:
                    for entry in pool.map(task, part, chunksize=1 if careful else _CHUNK):
                        yield entry
                        done += 1
                        bar.update()
                careful = False
            except BrokenProcessPool:
                if careful:
                    file = files[done]
                    reason = f"its decoder crashed or took over {seconds:.4g} seconds"
                    yield Entry(file.name, file.size, file.mtime_ns, reason=reason)
                    done += 1
                    bar.update()
                careful = not careful


def _labelled(root: Path, entries: list[Entry]) -> tuple[tuple[str, ...], list[Entry]]:
    file, rows = labels.read_rows(root)
    known = {entry.name for entry in entries}
    for name, row in rows.items():
        if name not in known:
            raise DataError(f"{row.where}: there is no image {name!r}")
    if file:
        entries = [
            replace(entry, texts=rows[entry.name].texts)
            if entry.name in rows
            else replace(entry, reason=entry.reason or f"has no row in {file}")
            for entry in entries
        ]
    classes, numbers = labels.classes_of(rows)
    if classes:
        return classes, [
            replace(entry, label=numbers[entry.name])
            if entry.name in numbers
            else replace(entry, reason=entry.reason or f"has no label in {file}")
            for entry in entries
        ]
    folders = [Path(entry.name).parts[0] if os.sep in entry.name else None for entry in entries]
    if None in folders:
        return (), entries
    classes = tuple(sorted({str(folder) for folder in folders}, key=os.fsencode))
    at = {name: i for i, name in enumerate(classes)}
    return classes, [replace(e, label=at[str(folder)]) for e, folder in zip(entries, folders, strict=True)]


def _cache_file(root: Path, cache: Path) -> Path:
    return cache / "index" / f"{hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:32]}.json"


def _load(path: Path) -> dict[str, Entry]:
    try:
        stored = parse_json(path.read_text(encoding="utf-8"))
        if stored["format"] != FORMAT:
            return {}
        return {row[0]: Entry(*row[:7], notes=tuple(row[7]), reason=row[8]) for row in stored["entries"]}
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return {}  # absent or not ours: everything is read again


def _store(path: Path, entries: Iterable[Entry]) -> None:
    rows = [[e.name, e.bytes, e.mtime_ns, e.sha256, e.width, e.height, e.mode, e.notes, e.reason] for e in entries]
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft.write_text(json.dumps({"format": FORMAT, "entries": rows}), encoding="utf-8")
        draft.replace(path)
    except OSError:
        with suppress(OSError):
            draft.unlink()
        # No cache, then: the next start reads the images again.


def load_or_build(root: Path, cache: Path | None) -> Index:
    """The index of `root`, from the `cache` folder as far as files are unchanged.

    Interrupted, it keeps what was read so far.

    Raises:
        DataError: no such folder, or a labels file that is wrong, with its line.
    """
    if not os.path.isdir(root):
        what = "is a file, not a folder" if os.path.exists(root) else "no such folder"
        raise DataError(f"{root}: {what}; give a folder of images")
    place = _cache_file(root, cache) if cache else None
    kept = _load(place) if place else {}
    ignored: Counter[str] = Counter()
    files = sorted(_walk(root, ignored), key=lambda file: os.fsencode(file.name))
    entries = {
        file.name: entry
        for file in files
        if not file.refused
        and (entry := kept.get(file.name))
        and (entry.bytes, entry.mtime_ns) == (file.size, file.mtime_ns)
    }
    changed = [file for file in files if file.name not in entries]
    try:
        for entry in _read_all(root, changed):
            entries[entry.name] = entry
    finally:
        if place and entries != kept:
            _store(place, entries.values())
    classes, labelled = _labelled(root, [entries[file.name] for file in files])
    return Index(str(root), classes, tuple(labelled), dict(ignored))
