"""What is in one shard, a tar whose members `KEY.jpg`, `KEY.txt`, `KEY.json` and `KEY.cls` make a sample (WebDataset).

A key is a member's name up to the first dot behind the last slash, and the members of a sample follow one another. The
caption is the .txt's, or what the .json has under a given key; numbers at the top of the .json are kept. Every image is
read once, hashed and decoded. Other members are counted, and not read: pickles could run anything.
"""

import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from pixelspace.data.decode import MAX_BYTES, SUFFIXES, examine, shown
from pixelspace.data.labels import MAX_CLASSES, MAX_TEXT
from pixelspace.data.tar import Member, members, read_at
from pixelspace.errors import DataError

PICKLES = (".pkl", ".pickle", ".pyd", ".pth", ".pt")
MAX_NUMBERS = 256  # names of numbers in a shard's metadata, and likewise of its keys and of suffixes
_MAX_JSON, _MAX_LABEL, _MAX_NAME = 1 << 20, 64, 100
_READ = {".txt": (MAX_TEXT, "caption"), ".json": (_MAX_JSON, "metadata"), ".cls": (_MAX_LABEL, "label")}

Examine = Callable[[int, bytes], tuple[int, int, str, tuple[str, ...]]]


@dataclass(frozen=True, slots=True)
class Row:
    """A good sample: where its image lies, what it holds upright, and what is said of it."""

    key: str
    offset: int
    size: int
    sha256: bytes
    width: int
    height: int
    mode: str
    notes: tuple[str, ...]
    label: int
    texts: tuple[str, ...]
    numbers: dict[str, float]


@dataclass
class Scan:
    """A shard's good samples in order; the bad ones, each by a member or key, with the reason; what is wrong with the
    shard itself ("": nothing); how many captions are blank; and what was ignored, by suffix."""

    rows: list[Row] = field(default_factory=list)
    bad: list[tuple[str, str]] = field(default_factory=list)
    fault: str = ""
    blank: int = 0
    ignored: Counter[str] = field(default_factory=Counter)
    pickles: list[str] = field(default_factory=list)
    text_keys: set[str] = field(default_factory=set)


def examined(offset: int, data: bytes) -> tuple[int, int, str, tuple[str, ...]]:
    """Width and height of an image upright, the mode of its pixels, and what of it could not be used."""
    decoded = examine(data)
    return (*decoded.image.size, decoded.mode, decoded.notes)


def _caption(text: str) -> str:
    if len(text.encode("utf-8", "surrogatepass")) > MAX_TEXT:
        raise DataError(f"caption over {MAX_TEXT} bytes")
    if "\0" in text:
        raise DataError(f"caption holds a NUL at character {text.index(chr(0))}")
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise DataError("caption holds half a surrogate pair")
    return text.strip()


def _decoded(data: bytes) -> str:
    try:
        return data.decode().removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise DataError(f"not UTF-8 at byte {error.start}") from error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(found := dict(pairs)) < len(pairs):
        again = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"the key {again!r} stands twice")
    return found


def _metadata(data: bytes) -> dict[str, Any]:
    try:
        # img2dataset writes what was absent as NaN.
        found = json.loads(_decoded(data), object_pairs_hook=_object, parse_constant=float)
    except (ValueError, RecursionError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"not JSON: {error}") from error
    if not isinstance(found, dict):
        raise DataError(f"expected a JSON object, found {type(found).__name__}")
    return found


def _numbers(metadata: dict[str, Any]) -> dict[str, float]:
    found = {}
    for name, number in metadata.items():
        if isinstance(number, int | float) and not isinstance(number, bool):
            try:
                number = float(number)
            except OverflowError:
                continue
            if math.isfinite(number):
                found[name] = number
    return found


def _label(data: bytes) -> int:
    text = data.strip()
    if not text.isdigit() or int(text) >= MAX_CLASSES:
        raise DataError(f"a label is a whole number from 0 to {MAX_CLASSES - 1}, found {shown(repr(text)[2:-1])!r}")
    return int(text)


class _Sample:
    """One sample's members by suffix, each of which can be read."""

    def __init__(self, file: int, kept: list[tuple[Member, str]]):
        self.file, self.by = file, dict[str, Member]()
        for member, suffix in kept:
            if member.refused:
                raise DataError(f"{shown(member.name)}: {member.refused}")
            known = "an image" if suffix in SUFFIXES else suffix
            if (other := self.by.setdefault(known, member)) is not member:
                what = "an image" if suffix in SUFFIXES and other.name != member.name else "that name"
                raise DataError(
                    f"two members with {what}: {shown(other.name)} at byte {other.offset:,}, "
                    f"{shown(member.name)} at byte {member.offset:,}"
                )
        if "an image" not in self.by:
            raise DataError(f"no image; found {' '.join(shown(one) for one in self.by)}")

    def read(self, suffix: str, parse: Callable[[bytes], Any]) -> Any:
        """The member parsed, or None; faults name it."""
        if suffix not in self.by:
            return None
        member, (most, what) = self.by[suffix], _READ[suffix]
        if member.bytes > most:
            raise DataError(f"{shown(member.name)}: {what} over {most} bytes")
        try:
            return parse(read_at(self.file, member.offset, member.bytes))
        except DataError as error:
            raise DataError(f"{shown(member.name)}: {error}") from error


def _texts(sample: _Sample, metadata: dict[str, Any], text_key: str | None) -> list[str]:
    if text_key is None:
        text = sample.read(".txt", lambda data: _caption(_decoded(data)))
        return [] if text is None else [text]
    found = metadata.get(text_key)
    texts = found if isinstance(found, list) else [] if found is None else [found]
    try:
        if not all(isinstance(text, str) for text in texts):
            raise DataError(f"{shown(text_key)!r} must be a string or a list of strings, found {found!r:.100}")
        return [_caption(text) for text in texts]
    except DataError as error:
        raise DataError(f"{shown(sample.by['.json'].name)}: {error}") from error


def _suffix(name: str) -> str:
    base = name.rpartition("/")[2]
    return base[base.index(".") :].lower() if "." in base else ""


def _groups(found: Iterable[Member], scan: Scan) -> tuple[dict[str, list[Member]], dict[str, tuple[Member, Member]]]:
    """Members by key, and of keys that come back behind another one the two members that show it."""
    groups, back, last = dict[str, list[Member]](), dict[str, tuple[Member, Member]](), None
    try:
        for member in found:
            name = member.name.removeprefix("./")
            if name.rpartition("/")[2].startswith("."):
                scan.ignored["hidden"] += 1
                continue
            key = name[: len(name) - len(_suffix(name))]
            if key in groups and key != last:
                back.setdefault(key, (groups[key][0], member))
            groups.setdefault(key, []).append(member)
            last = key
    except DataError as error:
        scan.fault = str(error)
        if last is not None and not groups[last][-1].refused:
            whole = groups[last][-1]
            groups[last].append(
                Member(whole.name, whole.offset, 0, "followed by damage; more of its sample may be lost")
            )
    return groups, back


def _is_a_name(name: str) -> bool:
    return name.isprintable() and 0 < len(name) <= _MAX_NAME


def _kept(found: list[Member], scan: Scan) -> list[tuple[Member, str]]:
    """The members, with their suffixes, that make a sample; the others are counted."""
    kept = []
    for member in found:
        suffix = _suffix(member.name)
        if suffix in SUFFIXES or suffix in _READ or member.refused:
            kept.append((member, suffix))
        else:
            what = shown(suffix)[:_MAX_NAME] or "without suffix"
            known = what in scan.ignored or len(scan.ignored) < MAX_NUMBERS
            scan.ignored[what if known else "of yet other suffixes"] += 1
            if PurePosixPath(member.name).suffix.lower() in PICKLES:
                scan.pickles.append(shown(member.name))
    return kept


def _row(sample: _Sample, key: str, text_key: str | None, look: Examine) -> tuple[Row, dict[str, Any], int]:
    """The sample, its metadata and how many captions were blank."""
    metadata = sample.read(".json", _metadata) or {}
    texts = _texts(sample, metadata, text_key)
    label = sample.read(".cls", _label)
    image = sample.by["an image"]
    try:
        if image.bytes > MAX_BYTES:
            raise DataError(f"over {MAX_BYTES >> 20} MiB")
        data = read_at(sample.file, image.offset, image.bytes)
        width, height, mode, notes = look(image.offset, data)
    except DataError as error:
        raise DataError(f"{shown(image.name)}: {error}") from error
    row = Row(
        key=key,
        offset=image.offset,
        size=image.bytes,
        sha256=hashlib.sha256(data).digest(),
        width=width,
        height=height,
        mode=mode,
        notes=notes,
        label=-1 if label is None else label,
        texts=tuple(text for text in texts if text),
        numbers=_numbers(metadata),
    )
    return row, metadata, len(texts) - len(row.texts)


def scan_shard(file: int, size: int, text_key: str | None = None, look: Examine = examined) -> Scan:
    """What is in the shard of `size` bytes that is open as `file`. `look` decodes an image, by its offset and bytes."""
    scan, names = Scan(), dict[str, None]()
    groups, back = _groups(members(file, size), scan)
    for key, found in groups.items():
        if not (kept := _kept(found, scan)):
            continue
        try:
            if key in back:
                one, other = back[key]
                raise DataError(
                    f"the key comes back behind another: {shown(one.name)} at byte {one.offset:,}, "
                    f"{shown(other.name)} at byte {other.offset:,}; pack a sample's members one behind the other"
                )
            row, metadata, blank = _row(_Sample(file, kept), key, text_key, look)
        except DataError as error:
            scan.bad.append((key, str(error)))
            continue
        for name in [name for name in row.numbers if name not in names]:
            if len(names) < MAX_NUMBERS and _is_a_name(name):
                names[name] = None
            else:
                scan.ignored["numbers with odd names, or too many of them"] += 1
                del row.numbers[name]
        for name, text in metadata.items():
            room = name == text_key or len(scan.text_keys) < MAX_NUMBERS
            if room and isinstance(text, str | list) and _is_a_name(name):
                scan.text_keys.add(name)
        scan.blank += blank
        scan.rows.append(row)
    return scan
