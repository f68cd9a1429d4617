"""What was found in one shard, on disk: a safetensors file with a row for each good sample, and the bad ones by name.

Columns are `offset` and `size` of the image in the shard, `sha256`, `shape` (height, width), `label`, `length`
(characters of the longest caption), `known_by` (a hash of shard and key), `same_key` (a hash of the key), and
`number.0` and so on for the numbers of the metadata, NaN where one is absent. Keys stand one behind the other in `keys`
up to `key_ends`; captions in `texts` up to `text_ends`, of which a sample's end before `caption_ends`. `bad` is JSON:
rows of key and reason.
"""

import hashlib
import json
import math
import os
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from safetensors.numpy import save

from pixelspace.config import from_data, parse_json, to_data, value
from pixelspace.data.shard_scan import Scan
from pixelspace.errors import DataError
from pixelspace.files import drop_abandoned, publish

AGAIN = "run `pixelspace prepare` again"
_MAX_HEADER = 1 << 20
_KINDS = {"U8": np.uint8, "I32": np.int32, "I64": np.int64, "U64": np.uint64, "F64": np.float64}
_COLUMNS = {  # with a row for each sample
    **{"offset": "I64", "size": "I64", "sha256": "U8", "shape": "I32", "label": "I32", "length": "I32"},
    **{"known_by": "U64", "same_key": "U64", "key_ends": "I64", "caption_ends": "I64"},
}
_OTHERS = {"keys": "U8", "text_ends": "I64", "texts": "U8", "bad": "U8"}

Counts = tuple[tuple[str, int], ...]


@value
class Part:
    """A shard and how it was read; and in numbers what it holds. `content` is a hash of its good samples, `classes` one
    more than its highest label, `captioned` how many samples have a caption, `fault` what is wrong with the tar."""

    shard: str
    bytes: int
    mark: str
    text_key: str | None
    good: int
    bad: int
    content: str
    classes: int
    captioned: int
    blank: int
    fault: str
    numbers: tuple[str, ...]
    text_keys: tuple[str, ...]
    modes: Counts
    notes: Counts
    ignored: Counts
    pickles: tuple[str, ...]


def part_path(folder: Path, shard: str) -> Path:
    """Where the part of a shard lies."""
    return folder / f"part-{hashlib.sha256(os.fsencode(shard)).hexdigest()[:32]}.safetensors"


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(_bytes(text), digest_size=8).digest(), "little")


def name_of(shard: str, key: str) -> str:
    """What a sample is known by."""
    return f"{shard}:{key}"


def _blob(pieces: list[bytes]) -> np.ndarray:
    return np.frombuffer(b"".join(pieces), dtype=np.uint8)


def _ends(lengths: list[int]) -> np.ndarray:
    return np.cumsum(np.array(lengths, dtype=np.int64), dtype=np.int64)


def write_part(folder: Path, shard: str, size: int, mark: str, text_key: str | None, scan: Scan) -> None:
    """Publishes what `scan` found.

    Raises:
        ResourceError: the disk is full or refuses.
    """
    rows = scan.rows
    numbers = tuple(sorted({name for row in rows for name in row.numbers}))
    keys, texts = [_bytes(row.key) for row in rows], [text.encode() for row in rows for text in row.texts]
    known = [(row.key.encode("utf-8", "surrogateescape").hex(), row.sha256.hex(), row.label, row.texts) for row in rows]
    part = Part(
        shard=shard,
        bytes=size,
        mark=mark,
        text_key=text_key,
        good=len(rows),
        bad=len(scan.bad),
        content=hashlib.sha256(json.dumps(known).encode()).hexdigest(),
        classes=max((row.label for row in rows), default=-1) + 1,
        captioned=sum(bool(row.texts) for row in rows),
        blank=scan.blank,
        fault=scan.fault,
        numbers=numbers,
        text_keys=tuple(sorted(scan.text_keys)),
        modes=tuple(Counter(row.mode for row in rows).items()),
        notes=tuple(Counter(note for row in rows for note in row.notes).items()),
        ignored=tuple(scan.ignored.items()),
        pickles=tuple(scan.pickles[:3]),
    )
    tensors = {
        "offset": np.array([row.offset for row in rows], dtype=np.int64),
        "size": np.array([row.size for row in rows], dtype=np.int64),
        "sha256": _blob([row.sha256 for row in rows]).reshape(-1, 32),
        "shape": np.array([(row.height, row.width) for row in rows], dtype=np.int32).reshape(-1, 2),
        "label": np.array([row.label for row in rows], dtype=np.int32),
        "length": np.array([max(map(len, row.texts), default=0) for row in rows], dtype=np.int32),
        "known_by": np.array([_hash(name_of(shard, row.key)) for row in rows], dtype=np.uint64),
        "same_key": np.array([_hash(row.key) for row in rows], dtype=np.uint64),
        "key_ends": _ends([len(key) for key in keys]),
        "keys": _blob(keys),
        "caption_ends": _ends([len(row.texts) for row in rows]),
        "text_ends": _ends([len(text) for text in texts]),
        "texts": _blob(texts),
        "bad": _blob([json.dumps(scan.bad).encode()]),
    }
    for i, name in enumerate(numbers):
        tensors[f"number.{i}"] = np.array([row.numbers.get(name, math.nan) for row in rows], dtype=np.float64)
    path = part_path(folder, shard)
    drop_abandoned(path)
    publish(path, save(tensors, {"part": json.dumps(to_data(part))}), AGAIN)


@dataclass(frozen=True)
class PartFile:
    """A part as it lies on disk. Nothing of it is kept in memory but where its columns begin."""

    path: Path

    @cached_property
    def _header(self) -> tuple[Part, dict[str, tuple[str, int, int]], int]:
        try:
            with self.path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                length = int.from_bytes(file.read(8), "little")
                if length > _MAX_HEADER:
                    raise ValueError(f"a header of {length:,} bytes")
                header = parse_json(file.read(length).decode())
            part = from_data(parse_json(header.pop("__metadata__")["part"]), {"Part": Part})
            kinds = _COLUMNS | _OTHERS | {f"number.{i}": "F64" for i in range(len(part.numbers))}
            columns, end = {}, 8 + length
            for name, kind in kinds.items():
                begin, stop = header[name]["data_offsets"]
                count = math.prod(header[name]["shape"])
                if header[name]["dtype"] != kind or stop - begin != count * np.dtype(_KINDS[kind]).itemsize:
                    raise ValueError(f"{name} is {header[name]}")
                wide = {"sha256": 32, "shape": 2}.get(name, 1)
                if name not in _OTHERS and count != wide * part.good:
                    raise ValueError(f"{name} has {count:,} numbers for {part.good:,} samples")
                columns[name], end = (kind, 8 + length + begin, count), end + stop - begin
            if size != end:
                raise ValueError(f"{size:,} bytes, expected {end:,}")
        except OSError as error:
            raise DataError(f"{self.path}: cannot be read: {error.strerror}; {AGAIN}") from error
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise DataError(f"{self.path}: is damaged: {error}; delete it and {AGAIN}") from error
        return part, columns, size

    @property
    def part(self) -> Part:
        """What it says of the shard.

        Raises:
            DataError: it is absent or damaged.
        """
        return self._header[0]

    def column(self, name: str) -> np.ndarray:
        """All of a column, or of the bytes that another one divides."""
        kind, begin, count = self._header[1][name]
        try:
            found = np.fromfile(self.path, _KINDS[kind], count, offset=begin)
        except OSError as error:
            raise DataError(f"{self.path}: cannot be read: {error.strerror}; {AGAIN}") from error
        if len(found) != count:
            raise DataError(f"{self.path}: is damaged: cut short; delete it and {AGAIN}")
        return found.reshape(-1, 32) if name == "sha256" else found.reshape(-1, 2) if name == "shape" else found

    def number(self, name: str) -> np.ndarray:
        """A number of the metadata, NaN where it is absent."""
        if name not in self.part.numbers:
            return np.full(self.part.good, math.nan)
        return self.column(f"number.{self.part.numbers.index(name)}")

    @cached_property
    def bad(self) -> list[tuple[str, str]]:
        """The bad samples' keys and what is wrong with them."""
        return [(key, reason) for key, reason in json.loads(self.column("bad").tobytes())]

    @cached_property
    def places(self) -> dict[str, tuple[int, int]]:
        """Where each column begins in the file, and the bytes of a number in it."""
        return {name: (begin, np.dtype(_KINDS[kind]).itemsize) for name, (kind, begin, _) in self._header[1].items()}


@dataclass(frozen=True, slots=True)
class Rows:
    """Single rows of a part that is open as `file`."""

    part: PartFile
    file: int

    def _read(self, name: str, start: int, count: int) -> bytes:
        begin, wide = self.part.places[name]
        try:
            data = os.pread(self.file, count * wide, begin + start * wide)
        except OSError as error:
            raise DataError(f"{self.part.path}: cannot be read: {error.strerror}; {AGAIN}") from error
        if len(data) != count * wide:
            raise DataError(f"{self.part.path}: is damaged: cut short; {AGAIN}")
        return data

    def number(self, name: str, i: int) -> int:
        """Row i of a column of whole numbers."""
        return int.from_bytes(self._read(name, i, 1), "little", signed=True)

    def sha256(self, i: int) -> bytes:
        """Of row i's image."""
        return self._read("sha256", 32 * i, 32)

    def _span(self, ends: str, i: int) -> tuple[int, int]:
        data = self._read(ends, max(i - 1, 0), 2 if i else 1)
        return int.from_bytes(data[:-8], "little"), int.from_bytes(data[-8:], "little")

    def key(self, i: int) -> str:
        """Row i's key in its shard."""
        start, stop = self._span("key_ends", i)
        return self._read("keys", start, stop - start).decode("utf-8", "surrogateescape")

    def texts(self, i: int) -> tuple[str, ...]:
        """Row i's captions."""
        start, stop = self._span("caption_ends", i)
        spans = [self._span("text_ends", one) for one in range(start, stop)]
        return tuple(self._read("texts", one, other - one).decode() for one, other in spans)
