"""What is in a folder of clips, found out once, as `data.index` does for images: every frame of every file is decoded.

Captions come out of WebVid's CSV at the top of the folder (see `data.webvid`), or else from where those of images do. A
CSV says which clips there are: others are ignored and counted, and rows without a clip are bad.
"""

import hashlib
import os
from collections import Counter
from dataclasses import replace
from pathlib import Path

from pixelspace.data import labels
from pixelspace.data.clip_file import SUFFIXES, examine
from pixelspace.data.decode import shown
from pixelspace.data.index import Entry, File, Index, Kind, Scan, labelled, scan
from pixelspace.data.webvid import Row, find, read_table
from pixelspace.errors import DataError


def _read(root: Path, file: File) -> Entry:
    entry = Entry(file.name, file.size, file.mtime_ns, reason=file.refused)
    if file.refused:
        return entry
    try:
        with (root / file.name).open("rb") as opened:
            digest = hashlib.file_digest(opened, "sha256").hexdigest()
    except OSError as error:
        return replace(entry, mtime_ns=-1, reason=f"cannot be read: {error.strerror}")  # may pass
    try:
        film = examine(root / file.name)
    except DataError as error:
        return replace(entry, reason=str(error))
    return replace(
        entry,
        sha256=digest,
        width=film.width,
        height=film.height,
        mode=film.codec,
        notes=film.notes,
        frames=film.frames,
        seconds=film.seconds,
        keys=film.keys,
    )


CLIPS = Kind("clip", SUFFIXES, _read, seconds=300.0, alone=1, chunk=1)


def _listed(found: Scan, table: str, rows: list[Row]) -> Index:
    if found.captioned:
        raise DataError(
            f"{found.root}: found captions in {table} and in files beside the clips ({shown(found.captioned)}); "
            "keep those that are meant"
        )
    if file := labels.read_rows(Path(found.root))[0]:
        raise DataError(f"{found.root}: found both {table} and {file}; keep the one that is meant")
    known, lines, entries = {entry.name: entry for entry in found.entries}, dict[str, int](), list[Entry]()
    for row in rows:
        where = f"{table}:{row.line}"
        name = next((name for name in row.files if name in known), row.files[0])
        if row.reason:
            entries.append(Entry(where, 0, 0, reason=row.reason))
        elif name in lines:
            entries.append(Entry(where, 0, 0, reason=f"{shown(name)} stands twice, first in line {lines[name]}"))
        else:
            entry = known.get(name, Entry(name, 0, 0, reason=f"no such file, and {where} lists it"))
            entries.append(replace(entry, texts=(row.text,) if row.text else ()))
            lines[name] = row.line
    ignored = Counter(found.ignored)
    ignored[".csv"] -= 1
    ignored[f"clips not in {table}"] = len(known.keys() - lines.keys())
    entries.sort(key=lambda entry: os.fsencode(entry.name))
    return Index(found.root, (), tuple(entries), dict(+ignored), kind=found.kind)


def load_or_build(root: Path, cache: Path | None, frames: int, stride: int, table: str = "") -> Index:
    """The index of `root`, from the `cache` folder as far as files are unchanged. Clips too short for `frames` at a
    `stride` are bad. `table` is the name of WebVid's CSV where there are several.

    Raises:
        DataError: no such folder, or a file of captions or labels that is wrong, with its line.
    """
    name = find(root, table)
    rows = read_table(root / name) if name else []  # before clips are decoded, which takes long
    found = scan(root, cache, kind=CLIPS)
    index = _listed(found, name, rows) if name else labelled(found, "auto", None)
    span = (frames - 1) * stride + 1

    def long_enough(entry: Entry) -> Entry:
        if entry.reason or entry.frames >= span:
            return entry
        return replace(entry, reason=f"{entry.frames} frames; {frames} at a stride of {stride} take {span}")

    return replace(index, entries=tuple(map(long_enough, index.entries)))
