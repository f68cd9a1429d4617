"""What is in a folder of images, found out once: which files are good, their sizes, hashes, labels and captions.

Classes are the first folder level if all images lie in folders, or those of a `labels.csv` (columns file, label)
or `metadata.jsonl` (rows with file_name, and label or text) at the top. Other files are ignored and counted. The index
is kept in a cache folder, and only files whose name, size or time changed are read again.
"""

import csv
import hashlib
import json
import multiprocessing
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from tqdm import tqdm

from pixelspace.config import parse_json
from pixelspace.data.decode import SUFFIXES, decode
from pixelspace.errors import DataError

FORMAT = 1
_SHOWN = 20  # bad files that a summary names
_ALONE = 64  # files from which on reading is shared over processes


@dataclass(frozen=True, slots=True)
class Entry:
    """A file by its name below the root. `reason` is "" for a good image; width and height are as shown, upright."""

    name: str
    bytes: int
    mtime_ns: int
    sha256: str
    width: int
    height: int
    reason: str
    label: int = -1
    text: str = ""


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
        """A hash of names, contents, labels and captions of the good images."""
        lines = [f"{e.name}\0{e.sha256}\0{e.label}\0{e.text}\n" for e in self.good]
        return hashlib.sha256("".join([*self.classes, *lines]).encode("utf-8", "surrogateescape")).hexdigest()

    def check(self, max_bad_share: float) -> None:
        """Refuses a folder without a good image, or with too many bad ones.

        Raises:
            DataError: what was found instead.
        """
        named = "; ".join(f"{entry.name}: {entry.reason}" for entry in self.bad[:3])
        if not self.entries:
            others = ", ".join(f"{n} {suffix}" for suffix, n in sorted(self.ignored.items())) or "nothing"
            raise DataError(f"{self.root}: no image files ({' '.join(SUFFIXES)}) at any depth; found {others}")
        if not self.good:
            raise DataError(f"{self.root}: none of its {len(self.bad)} image files can be read: {named}")
        if len(self.bad) > max_bad_share * len(self.entries):
            raise DataError(
                f"{self.root}: {len(self.bad)} of {len(self.entries)} image files are bad, more than the "
                f"{max_bad_share:.0%} allowed: {named}; mend or remove them, or raise max_bad_share"
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
            copies = len(self.good) - len({entry.sha256 for entry in self.good})
            lines.append(f"duplicates: {copies:,}; captions: {sum(bool(entry.text) for entry in self.good):,}")
        if self.classes:
            counts = Counter(entry.label for entry in self.good)
            named = ", ".join(f"{name} {counts[i]:,}" for i, name in enumerate(self.classes[:_SHOWN]))
            lines.append(f"{len(self.classes)} classes: {named}{', ...' if len(self.classes) > _SHOWN else ''}")
        lines += [f"bad: {entry.name}: {entry.reason}" for entry in self.bad[:_SHOWN]]
        if len(self.bad) > _SHOWN:
            lines.append(f"... and {len(self.bad) - _SHOWN:,} more")
        if self.ignored:
            lines.append("ignored: " + ", ".join(f"{n} {suffix}" for suffix, n in sorted(self.ignored.items())))
        return "\n".join(lines)


def _walk(root: Path, ignored: Counter[str]) -> Iterator[tuple[str, os.stat_result]]:
    seen: set[tuple[int, int]] = set()
    top = os.path.realpath(root)
    for folder, folders, files in os.walk(root, followlinks=True):
        here = os.stat(folder)
        folders[:] = [name for name in folders if not name.startswith(".")]
        if (here.st_dev, here.st_ino) in seen:
            folders[:] = []
            continue
        seen.add((here.st_dev, here.st_ino))
        for file in files:
            path = os.path.join(folder, file)
            suffix = os.path.splitext(file)[1].lower()
            if file.startswith(".") or suffix not in SUFFIXES:
                ignored[suffix or "without suffix"] += 1
            elif os.path.commonpath([top, os.path.realpath(path)]) != top:
                ignored["links out of the folder"] += 1
            elif not os.path.isfile(path):
                ignored["dangling links"] += 1
            else:
                yield os.path.relpath(path, root), os.stat(path)


def _read(job: tuple[str, str, int, int]) -> Entry:
    root, name, size, mtime_ns = job
    shown = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    try:
        data = Path(root, name).read_bytes()
        image = decode(data, shown)
    except OSError as error:
        return Entry(name, size, mtime_ns, "", 0, 0, error.strerror or "unreadable")
    except DataError as error:
        return Entry(name, size, mtime_ns, "", 0, 0, str(error).removeprefix(f"{shown}: "))
    return Entry(name, size, mtime_ns, hashlib.sha256(data).hexdigest(), image.width, image.height, "")


def _read_all(jobs: list[tuple[str, str, int, int]]) -> Iterable[Entry]:
    if len(jobs) < _ALONE:
        return map(_read, jobs)
    with multiprocessing.get_context("forkserver").Pool() as pool:
        shared = pool.imap(_read, jobs, chunksize=16)
        return list(tqdm(shared, total=len(jobs), desc="reading images", unit="file", disable=None))


def _rows(root: Path) -> tuple[str, dict[str, dict[str, Any]]]:
    """The name of the labels file and its rows by image name; ("", {}) without one."""
    table: dict[str, dict[str, Any]] = {}

    def add(where: str, row: dict[str, Any], key: str) -> None:
        name = row.get(key)
        if not isinstance(name, str) or not name:
            raise DataError(f"{where}: expected a row with {key!r}, found {row}")
        name = os.path.normpath(name)
        if name in table:
            raise DataError(f"{where}: {name!r} stands twice")
        if not isinstance(row.get("text", ""), str):
            raise DataError(f"{where}: text must be a string, found {row['text']!r}")
        table[name] = row

    labels, metadata = root / "labels.csv", root / "metadata.jsonl"
    try:
        if labels.is_file():
            with labels.open(newline="", encoding="utf-8-sig") as file:
                reader = csv.DictReader(file)
                if not {"file", "label"} <= set(reader.fieldnames or ()):
                    raise DataError(f"{labels}: expected the columns file,label, found {reader.fieldnames}")
                for row in reader:
                    add(f"{labels}:{reader.line_num}", {k: v for k, v in row.items() if k}, "file")
            return labels.name, table
        if metadata.is_file():
            for number, line in enumerate(metadata.read_text(encoding="utf-8").splitlines(), 1):
                where = f"{metadata}:{number}"
                try:
                    row = parse_json(line)
                except ValueError as error:
                    raise DataError(f"{where}: not JSON: {error}") from error
                add(where, row if isinstance(row, dict) else {"": row}, "file_name")
            return metadata.name, table
    except UnicodeDecodeError as error:
        raise DataError(f"{labels if labels.is_file() else metadata}: not UTF-8: {error}") from error
    return "", table


def _label_names(file: str, labels: dict[str, Any]) -> tuple[tuple[str, ...], dict[str, int]]:
    """Class names and each image's class, from labels that are all names or all numbers."""
    numbers = {}
    for name, label in labels.items():
        if isinstance(label, str) and label.strip().isdecimal():
            label = int(label)
        if (
            isinstance(label, bool)
            or not isinstance(label, int | str)
            or label == ""
            or label in range(-1, -(10**6), -1)
        ):
            raise DataError(f"{file}: the label of {name!r} must be a name or a number from 0 on, found {label!r}")
        numbers[name] = label
    if all(isinstance(label, int) for label in numbers.values()):
        return tuple(str(i) for i in range(max(numbers.values()) + 1)), numbers
    names = tuple(sorted({str(label) for label in numbers.values()}))
    return names, {name: names.index(str(label)) for name, label in numbers.items()}


def _labelled(root: Path, entries: list[Entry]) -> tuple[tuple[str, ...], list[Entry]]:
    file, rows = _rows(root)
    known = {entry.name for entry in entries}
    for name in rows:
        if name not in known:
            raise DataError(f"{root / file}: names {name!r}, which is not an image here")
    entries = [replace(entry, text=rows.get(entry.name, {}).get("text", "")) for entry in entries]
    labels = {name: row["label"] for name, row in rows.items() if row.get("label") is not None}
    if labels:
        classes, numbers = _label_names(file, labels)
        missing = f"has no label in {file}"
        return classes, [
            replace(entry, label=numbers[entry.name])
            if entry.name in numbers
            else replace(entry, reason=entry.reason or missing)
            for entry in entries
        ]
    folders = [Path(entry.name).parts[0] if len(Path(entry.name).parts) > 1 else None for entry in entries]
    if None in folders:
        return (), entries
    classes = tuple(sorted({str(folder) for folder in folders}))
    at = {name: i for i, name in enumerate(classes)}
    return classes, [replace(e, label=at[str(folder)]) for e, folder in zip(entries, folders, strict=True)]


def _cache_file(root: Path, cache: Path) -> Path:
    return cache / "index" / f"{hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:32]}.json"


def _load(path: Path) -> dict[str, Entry]:
    try:
        stored = parse_json(path.read_text(encoding="utf-8"))
        if stored["format"] != FORMAT:
            return {}
        return {row[0]: Entry(*row) for row in stored["entries"]}
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        return {}  # absent or not ours: everything is read again


def _store(path: Path, entries: Iterable[Entry]) -> None:
    rows = [[e.name, e.bytes, e.mtime_ns, e.sha256, e.width, e.height, e.reason] for e in entries]
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(json.dumps({"format": FORMAT, "entries": rows}), encoding="utf-8")
        partial.replace(path)
    except OSError:
        partial.unlink(missing_ok=True)  # no cache, then: the next start reads the images again


def load_or_build(root: Path, cache: Path | None) -> Index:
    """The index of `root`, from the `cache` folder as far as files are unchanged.

    Raises:
        DataError: no such folder, or a labels file that is wrong, with its line.
    """
    if not root.is_dir():
        what = "is a file, not a folder" if root.exists() else "no such folder"
        raise DataError(f"{root}: {what}; give a folder of images with --data")
    kept = _load(_cache_file(root, cache)) if cache else {}
    ignored: Counter[str] = Counter()
    found = sorted(_walk(root, ignored), key=lambda item: os.fsencode(item[0]))
    jobs = [
        (str(root), name, stat.st_size, stat.st_mtime_ns)
        for name, stat in found
        if (entry := kept.get(name)) is None or (entry.bytes, entry.mtime_ns) != (stat.st_size, stat.st_mtime_ns)
    ]
    fresh = {entry.name: entry for entry in _read_all(jobs)}
    entries = [fresh.get(name) or kept[name] for name, _ in found]
    if cache and (jobs or len(kept) != len(entries)):
        _store(_cache_file(root, cache), entries)
    classes, entries = _labelled(root, entries)
    return Index(str(root), classes, tuple(entries), dict(ignored))
