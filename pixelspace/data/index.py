"""What is in a folder of images, found out once: which files are good, their sizes, hashes, labels and captions.

Classes are those of a `labels.csv` or `metadata.jsonl` at the top (see `data.labels`), or else the first folder level
if all images lie in folders. Captions are in one of these files, or each in a file of its own (see `data.sidecars`).
Other files without an image's suffix are ignored and counted, and so are hidden ones and links to folders; a link to a
file must stay in the folder. The index is kept in a cache folder, and only files whose name, size or time changed are
read again.
"""

import hashlib
import json
import math
import multiprocessing
import os
import signal
import stat
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields, replace
from functools import cached_property, partial
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from pixelspace.config import parse_json
from pixelspace.data import labels
from pixelspace.data.decode import SUFFIXES, examine, read, shown
from pixelspace.data.sidecars import SUFFIX, Sidecar, paired, read_sidecars
from pixelspace.errors import DataError

FORMAT = 3
_SHOWN = 20  # bad files that a summary names


@dataclass(frozen=True, slots=True)
class Entry:
    """A file by its name below the root. `reason` is "" for a good image; width and height are as shown, upright;
    `mode` is Pillow's name for the pixels in the file, or a codec's, `notes` what of the file could not be used,
    `numbers` those of the index's columns; `frames`, `seconds` and `keys` are a clip's (see `data.clip_file`)."""

    name: str
    bytes: int
    mtime_ns: int
    sha256: str = ""
    width: int = 0
    height: int = 0
    mode: str = ""
    notes: tuple[str, ...] = ()
    reason: str = ""
    frames: int = 0
    seconds: float = 0.0
    keys: tuple[tuple[int, int], ...] = ()
    label: int = -1
    texts: tuple[str, ...] = ()
    numbers: tuple[float, ...] = ()


class File(NamedTuple):
    """A file as the folder lists it, not yet read, and its caption's; `refused` says why it shall not be."""

    name: str
    size: int
    mtime_ns: int
    refused: str = ""
    caption: Sidecar | None = None


def _read(root: Path, file: File) -> Entry:
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


class Kind(NamedTuple):
    """What is looked for in a folder: what one is called, its suffixes, and how a file below a root is read, in how
    many seconds at most. From `alone` files on reading is shared over processes, `chunk` at a time."""

    noun: str
    suffixes: tuple[str, ...]
    read: Callable[[Path, File], Entry]
    seconds: float
    alone: int
    chunk: int


IMAGES = Kind("image", SUFFIXES, _read, seconds=30.0, alone=64, chunk=16)


def _counts(counts: Counter[str]) -> str:
    return ", ".join(f"{n:,} {shown(what)}" for what, n in counts.most_common(_SHOWN))


def _spread(what: str, numbers: Iterable[float]) -> str:
    ranked = sorted(numbers)
    return f"{what}: {ranked[0]:.4g} to {ranked[-1]:.4g}, median {ranked[len(ranked) // 2]:.4g}"


def _summed_up(clips: Sequence[Entry]) -> list[str]:
    timed = [clip for clip in clips if clip.seconds]
    lines = [_spread("frames", (clip.frames for clip in clips))]
    if timed:
        lines.append(_spread("seconds", (clip.seconds for clip in timed)))
        lines.append(_spread("frames a second", (clip.frames / clip.seconds for clip in timed)))
    if len(timed) < len(clips):
        lines.append(f"without times: {len(clips) - len(timed):,}")
    return lines


def _captions_of(good: Sequence[Entry], noun: str) -> str:
    captioned, texts = sum(bool(entry.texts) for entry in good), Counter(text for entry in good for text in entry.texts)
    found = f"captions: {captioned:,} {noun}s have one, {len(good) - captioned:,} none"
    if not texts:
        return found
    return (
        f"{found}; {texts.total() - len(texts):,} repeat another; the longest has {max(map(len, texts)):,} characters"
    )


@dataclass(frozen=True)
class Index:
    """All images of a folder, good and bad, in order of name; `columns` are the names of their numbers."""

    root: str
    classes: tuple[str, ...]
    entries: tuple[Entry, ...]
    ignored: dict[str, int]
    columns: tuple[str, ...] = ()
    kind: Kind = IMAGES

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
        """A hash of classes, names, contents, labels, captions and numbers of the good images."""
        digest = hashlib.sha256(f"[{json.dumps(self.classes)}, [".encode())
        for i, entry in enumerate(self.good):  # one by one: of a million, their JSON is large
            row = json.dumps((entry.name, entry.sha256, entry.label, entry.texts))
            digest.update(f"{', ' if i else ''}{row}".encode())
        digest.update(b"]]")
        if self.columns:
            digest.update(json.dumps([self.columns, [entry.numbers for entry in self.good]]).encode())
        return digest.hexdigest()

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
            raise DataError(
                f"{self.root}: no {self.kind.noun} files ({' '.join(self.kind.suffixes)}) at any depth; found {others}"
            )
        if not self.good:
            raise DataError(f"{self.root}: none of its {len(self.bad):,} {self.kind.noun} files can be read: {named}")
        if len(self.bad) > max_bad_share * len(self.entries):
            raise DataError(
                f"{self.root}: {len(self.bad):,} of {len(self.entries):,} {self.kind.noun} files are bad, more "
                f"than the {100 * max_bad_share:.4g}% allowed: {named}; mend or remove them, or raise max_bad_share"
            )

    def smaller_than(self, height: int, width: int) -> int:
        """How many good images must be enlarged for this size."""
        return sum(entry.height < height or entry.width < width for entry in self.good)

    def summary(self) -> str:
        """What people want to know, a few lines."""
        lines = [f"{self.root}: {len(self.good):,} good {self.kind.noun}s, {len(self.bad):,} bad"]
        if self.good:
            sides = sorted(min(entry.width, entry.height) for entry in self.good)
            lines.append(f"shorter side: {sides[0]} to {sides[-1]}, median {sides[len(sides) // 2]}")
            lines.append(f"pixels: {_counts(Counter(entry.mode for entry in self.good))}; all are read as RGB")
            lines.append(_captions_of(self.good, self.kind.noun))
            lines.append(f"duplicates: {self.duplicates:,} {self.kind.noun}s")
            lines += _summed_up(self.good) if self.good[0].frames else []
        if notes := Counter(note for entry in self.good for note in entry.notes):
            lines.append(f"not used: {_counts(notes)}")
        if self.classes:
            counts = Counter(entry.label for entry in self.good)
            named = ", ".join(f"{shown(name)} {counts[i]:,}" for i, name in enumerate(self.classes[:_SHOWN]))
            lines.append(f"{len(self.classes):,} classes: {named}{', ...' if len(self.classes) > _SHOWN else ''}")
        elif any(os.sep not in entry.name for entry in self.entries):
            lines.append("no classes: some images lie at the top, and no labels.csv or metadata.jsonl has labels")
        lines += [f"bad: {shown(entry.name)}: {entry.reason}" for entry in self.bad[:_SHOWN]]
        if len(self.bad) > _SHOWN:
            lines.append(f"... and {len(self.bad) - _SHOWN:,} more")
        if self.ignored:
            lines.append(f"ignored: {_counts(Counter(self.ignored))}")
        return "\n".join(lines)


def _listed(path: str, name: str, top: str) -> File:
    try:
        if os.path.islink(path) and os.path.commonpath([top, os.path.realpath(path)]) != top:
            return File(name, 0, 0, "a link out of the folder")
        status = os.stat(path)
    except OSError as error:
        return File(name, 0, 0, f"{'a link to nothing' if os.path.islink(path) else 'gone'}: {error.strerror}")
    if not stat.S_ISREG(status.st_mode):
        return File(name, 0, 0, "not a regular file")
    return File(name, status.st_size, status.st_mtime_ns)


def _walk(
    root: Path, ignored: Counter[str], sidecars: bool = True, suffixes: tuple[str, ...] = SUFFIXES
) -> Iterator[File]:
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

        images, texts = list[str](), list[str]()
        for file in files:
            suffix = os.path.splitext(file)[1].lower()
            if file.startswith("."):
                ignored["hidden"] += 1
            elif suffix in suffixes:
                images.append(file)
            elif below == "." and file in labels.FILES:
                continue
            elif sidecars and suffix == SUFFIX:
                texts.append(file)
            else:
                ignored[suffix or "without suffix"] += 1
        captions, unpaired = paired(images, texts)
        if unpaired:
            ignored[SUFFIX] += unpaired
        for image in images:
            file = _listed(os.path.join(folder, image), os.path.normpath(os.path.join(below, image)), top)
            if image in captions:
                text, refused = captions[image]
                caption = _listed(os.path.join(folder, text), os.path.normpath(os.path.join(below, text)), top)
                sidecar = Sidecar(caption.name, caption.size, caption.mtime_ns, reason=refused or caption.refused)
                file = file._replace(caption=sidecar)
            yield file


def _read_in_time(read: Callable[[Path, File], Entry], root: Path, seconds: float, file: File) -> Entry:
    signal.setitimer(signal.ITIMER_REAL, seconds)  # its signal ends this process
    try:
        return read(root, file)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


@contextmanager
def _pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    context = multiprocessing.get_context("forkserver")
    # An interrupt is the parent's to handle.
    pool = ProcessPoolExecutor(workers, context, initializer=signal.signal, initargs=(signal.SIGINT, signal.SIG_IGN))
    try:
        yield pool
    finally:  # whatever ends it, what is not begun is given up: one that waits for it all may wait for hours
        pool.shutdown(cancel_futures=True)


def processes_start() -> bool:
    """False in a script that starts training without `if __name__ == "__main__"`."""
    with _pool(1) as pool:
        try:
            return pool.submit(os.getpid).result() > 0
        except BrokenProcessPool:
            return False


def _read_all(root: Path, files: list[File], kind: Kind = IMAGES) -> Iterator[Entry]:
    """The entries of `files`, in order. A file whose decoder crashes or hangs ends its process, and only that."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    reading = f"reading {kind.noun}s"
    if len(files) < kind.alone or not processes_start():
        yield from (kind.read(root, file) for file in tqdm(files, desc=reading, unit="file", disable=None))
        return
    task = partial(_read_in_time, kind.read, root, kind.seconds)
    done, careful = 0, False
    with tqdm(total=len(files), desc=reading, unit="file", disable=None) as bar:
        while done < len(files):
            # A broken pool does not say which file broke it. One process takes those under way again, one by one.
            part = files[done : done + kind.chunk * (2 * cores + 1)] if careful else files[done:]
            try:
                with _pool(1 if careful else cores) as pool:
                    for entry in pool.map(task, part, chunksize=1 if careful else kind.chunk):
                        yield entry
                        done += 1
                        bar.update()
                careful = False
            except BrokenProcessPool:
                if careful:
                    file = files[done]
                    reason = f"its decoder crashed or took over {kind.seconds:.4g} seconds"
                    yield Entry(file.name, file.size, file.mtime_ns, reason=reason)
                    done += 1
                    bar.update()
                careful = not careful


class Scan(NamedTuple):
    """What lies in a folder before labels are looked up. `captioned` is the first caption's file, "" for none."""

    root: str
    entries: tuple[Entry, ...]
    ignored: dict[str, int]
    captioned: str
    kind: Kind


def _captioned(entry: Entry, caption: Sidecar | None) -> Entry:
    if caption is None:
        return entry
    reason = entry.reason or (f"its caption {shown(caption.name)}: {caption.reason}" if caption.reason else "")
    return replace(entry, reason=reason, texts=(caption.text,) if caption.text else ())


def _by_folder(names: list[str]) -> tuple[tuple[str, ...], dict[str, int]]:
    """Classes and each image's by the first folder; none if an image lies at the top."""
    folders = {name: name.partition(os.sep)[0] for name in names if os.sep in name}
    if len(folders) < len(names):
        return (), {}
    classes = tuple(sorted(set(folders.values()), key=os.fsencode))
    at = {name: i for i, name in enumerate(classes)}
    return classes, {name: at[folder] for name, folder in folders.items()}


def labelled(found: Scan, labelling: labels.Labelling, names: Path | None) -> Index:
    """What a folder holds, with labels, and with captions and numbers out of a labels file."""
    root = Path(found.root)
    file, rows = labels.read_rows(root)
    known = {entry.name for entry in found.entries}
    for name, row in rows.items():
        if name not in known:
            raise DataError(f"{row.where}: there is no {found.kind.noun} {name!r}")
    if found.captioned and (row := next((row for row in rows.values() if row.texts), None)):
        raise DataError(
            f"{root}: found captions in {file} (line {row.line}) and in files beside the {found.kind.noun}s "
            f"({shown(found.captioned)}); keep those that are meant"
        )
    classes, numbers = tuple[str, ...](), dict[str, int]()
    if labelling == "auto":
        classes, numbers = labels.classes_of(rows)
        if not classes:
            classes, numbers = _by_folder([entry.name for entry in found.entries])
        classes = labels.class_names(root, classes, names)
    columns = tuple(sorted({name for row in rows.values() for name in row.numbers}))

    def described(entry: Entry) -> Entry:
        row, reason = rows.get(entry.name), entry.reason
        if file and row is None:
            reason = reason or f"has no row in {file}"
        if classes and entry.name not in numbers:
            reason = reason or f"has no label in {file}"
        return replace(
            entry,
            reason=reason,
            label=numbers.get(entry.name, -1),
            texts=(row.texts if row else ()) or entry.texts,
            numbers=tuple(row.numbers.get(name, math.nan) if row else math.nan for name in columns),
        )

    return Index(found.root, classes, tuple(map(described, found.entries)), found.ignored, columns, found.kind)


def index_path(root: Path, cache: Path, noun: str) -> Path:
    """Where the index of `root` is kept."""
    folder = "index" if noun == "image" else f"{noun}s"
    return cache / folder / f"{hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:32]}.json"


_KEPT = attrgetter(*[field.name for field in fields(Entry)][:12])  # what follows is looked up at every start


def _entry(row: list[Any]) -> Entry:
    keys = tuple((number, at) for number, at in row[11])
    return Entry(*row[:7], notes=tuple(row[7]), reason=row[8], frames=row[9], seconds=row[10], keys=keys)


def _load(path: Path) -> tuple[dict[str, Entry], dict[str, Sidecar]]:
    try:
        stored = parse_json(path.read_text(encoding="utf-8"))
        if stored["format"] != FORMAT:
            return {}, {}
        entries = {row[0]: _entry(row) for row in stored["entries"]}
        return entries, {row[0]: Sidecar(*row) for row in stored["captions"]}
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return {}, {}  # absent or not ours: everything is read again


def _store(path: Path, entries: Iterable[Entry], captions: Iterable[Sidecar]) -> None:
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"format": FORMAT, "entries": list(map(_KEPT, entries)), "captions": list(captions)})
        draft.write_text(text, encoding="utf-8")
        draft.replace(path)
    except OSError:
        with suppress(OSError):
            draft.unlink()
        # No cache, then: the next start reads the images again.


def scan(root: Path, cache: Path | None, sidecars: bool = True, kind: Kind = IMAGES) -> Scan:
    """The files of a kind in `root`, with the captions beside them if `sidecars`, from the `cache` folder as far as
    they are unchanged.

    Interrupted, it keeps what was read so far.

    Raises:
        DataError: no such folder.
    """
    if not os.path.isdir(root):
        what = "is a file, not a folder" if os.path.exists(root) else "no such folder"
        raise DataError(f"{root}: {what}; give a folder of {kind.noun}s")
    place = index_path(root, cache, kind.noun) if cache else None
    kept = _load(place) if place else ({}, {})
    ignored: Counter[str] = Counter()
    files = sorted(_walk(root, ignored, sidecars, kind.suffixes), key=lambda file: os.fsencode(file.name))
    entries = {
        file.name: entry
        for file in files
        if not file.refused
        and (entry := kept[0].get(file.name))
        and (entry.bytes, entry.mtime_ns) == (file.size, file.mtime_ns)
    }
    beside = [file.caption for file in files if file.caption and not file.caption.reason]
    captions = {} if sidecars else kept[1]
    for file in beside:
        if (caption := kept[1].get(file.name)) and caption[:3] == file[:3]:  # name, size and time
            captions[file.name] = caption
    try:
        for caption in read_sidecars(root, [file for file in beside if file.name not in captions]):
            captions[caption.name] = caption
        for entry in _read_all(root, [file for file in files if file.name not in entries], kind):
            entries[entry.name] = entry
    finally:
        if place and (entries, captions) != kept:
            _store(place, entries.values(), captions.values())
    found = [
        _captioned(entries[file.name], file.caption and captions.get(file.caption.name, file.caption)) for file in files
    ]
    first = next((file.caption.name for file in files if file.caption), "")
    return Scan(str(root), tuple(found), dict(ignored), first, kind)


def load_or_build(
    root: Path, cache: Path | None, labelling: labels.Labelling = "auto", names: Path | None = None
) -> Index:
    """The index of `root`: see `scan`. `names` is a file of the classes' names: see `data.labels`.

    Raises:
        DataError: no such folder, or a file of labels or names that is wrong, with its line.
    """
    return labelled(scan(root, cache), labelling, names)
