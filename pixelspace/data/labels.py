"""Labels and captions from a file at the top of a folder of images.

`labels.csv` has the columns file and label, and maybe text; `metadata.jsonl` rows with file_name, and label or text
(a string, or a list of captions of the same image); what else of a row is a number is kept as one of the image.
Labels are all whole numbers from 0 on, or else names.

Classes that are ids get the names that a text file gives them, `n01440764 tench, Tinca tinca` a line, of which the
first counts. That of ImageNet is found by itself.
"""

import csv
import math
import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pixelspace.config import parse_json
from pixelspace.errors import DataError

Labelling = Literal["auto", "none"]

NAMES = "LOC_synset_mapping.txt"
FILES = ("labels.csv", "metadata.jsonl", NAMES)
MAX_CLASSES, MAX_TEXT = 100_000, 8192  # bytes of UTF-8
_KEYS = ("file_name", "label", "text")
_WORDNET = re.compile(r"n\d{8}")
_ABOVE = 4  # where ImageNet's names lie above ILSVRC/Data/CLS-LOC/train


@dataclass(frozen=True, slots=True)
class Row:
    """What is said of one image, and where ("labels.csv:7")."""

    where: str
    label: int | str | None
    texts: tuple[str, ...]
    numbers: dict[str, float]

    @property
    def line(self) -> str:
        """The line's number."""
        return self.where.rpartition(":")[2]


def _csv_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file, strict=True)
        try:
            columns = reader.fieldnames or []
            if not {"file", "label"} <= set(columns):
                raise DataError(f"{path}:1: expected the columns file,label; found {','.join(columns) or 'nothing'}")
            for row in reader:
                where = f"{path}:{reader.line_num}"
                if None in row or None in row.values():
                    raise DataError(f"{where}: expected {len(columns)} fields; put quotes round names with commas")
                yield where, {"file_name": row["file"], "label": row["label"], "text": row.get("text", "")}
        except csv.Error as error:
            raise DataError(f"{path}:{reader.line_num}: not CSV: {error}") from error


def _json_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").split("\n"), 1):
        where = f"{path}:{number}"
        if not line.strip():
            continue
        try:
            row = parse_json(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{where}: not JSON: {error}") from error
        if not isinstance(row, dict):
            raise DataError(f"{where}: expected an object with file_name, found {row!r:.100}")
        yield where, row


def _label(where: str, label: object) -> int | str | None:
    if isinstance(label, str):
        label = label.strip()
        if label.isascii() and label.isdecimal() and len(label) < 19:
            return label
        try:
            float(label)
        except ValueError:
            if label:
                return label
    elif label is None or (isinstance(label, int) and not isinstance(label, bool) and label >= 0):
        return label
    raise DataError(f"{where}: a label is a name or a whole number from 0 on, found {label!r:.100}")


def _text(where: str, text: object) -> str:
    if not isinstance(text, str):
        raise DataError(f"{where}: text must be a string, found {text!r:.100}")
    if "\0" in text or any("\ud800" <= character <= "\udfff" for character in text):
        raise DataError(f"{where}: text holds a NUL or half a surrogate pair")
    if len(text.encode()) > MAX_TEXT:
        raise DataError(f"{where}: text is over {MAX_TEXT} bytes")
    return text.strip()


def captions(where: str, found: object) -> tuple[str, ...]:
    """A caption or a list of them, without those that are blank.

    Raises:
        DataError: one is no text, or too long, by the place `where` it stands.
    """
    texts = [_text(where, text) for text in (found if isinstance(found, list) else [found])]
    return tuple(text for text in texts if text)


def _numbers(where: str, row: dict[str, Any]) -> dict[str, float]:
    numbers = {}
    for name, found in row.items():
        if name in _KEYS or isinstance(found, bool) or not isinstance(found, int | float):
            continue
        try:
            numbers[name] = float(found)
        except OverflowError:
            numbers[name] = math.inf
        if math.isinf(numbers[name]):
            raise DataError(f"{where}: {name} is out of range: {found!r:.100}")
    return numbers


def read_rows(root: Path) -> tuple[str, dict[str, Row]]:
    """The name of the labels file and its rows by image; ("", {}) without one.

    Raises:
        DataError: what is wrong with it, by file and line.
    """
    there = [name for name in FILES[:2] if (root / name).is_file()]
    if len(there) > 1:
        raise DataError(f"{root}: found both {' and '.join(there)}; keep the one that is meant")
    table: dict[str, Row] = {}
    for file in there:
        path = root / file
        try:
            for where, row in (_csv_rows if file == "labels.csv" else _json_rows)(path):
                name = row.get("file_name")
                if not isinstance(name, str) or not name:
                    raise DataError(f"{where}: expected the name of an image, found {name!r:.100}")
                name = os.path.normpath(name)
                if name in table:
                    raise DataError(f"{where}: {name!r} stands twice, first in line {table[name].line}")
                label, texts = _label(where, row.get("label")), captions(where, row.get("text", ""))
                table[name] = Row(where, label, texts, _numbers(where, row))
        except UnicodeDecodeError as error:
            raise DataError(f"{path}: not UTF-8 at byte {error.start}") from error
        except OSError as error:
            raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    return (there[0] if there else ""), table


def classes_of(rows: dict[str, Row]) -> tuple[tuple[str, ...], dict[str, int]]:
    """Class names, and the class of each image that has a label: numbers stay, names are numbered in order.

    Raises:
        DataError: a number too large to be a class.
    """
    labels = {name: row.label for name, row in rows.items() if row.label is not None}
    if all(str(label).isdecimal() for label in labels.values()):
        numbers = {name: int(label) for name, label in labels.items()}
        for name, number in numbers.items():
            if number >= MAX_CLASSES:
                raise DataError(f"{rows[name].where}: the label {number} is over {MAX_CLASSES - 1}; number from 0 on")
        return tuple(str(i) for i in range(max(numbers.values(), default=-1) + 1)), numbers
    names = tuple(sorted({str(label) for label in labels.values()}))
    at = {name: i for i, name in enumerate(names)}
    return names, {name: at[str(label)] for name, label in labels.items()}


def _read_names(path: Path) -> dict[str, str]:
    table: dict[str, str] = {}
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 at byte {error.start}") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        id, *rest = line.split(None, 1)
        name = rest[0].split(",")[0].strip() if rest else ""
        if not name:
            raise DataError(f"{path}:{number}: expected an id and a name, found {line.strip()!r:.100}")
        if id in table:
            raise DataError(f"{path}:{number}: {id!r:.100} stands twice")
        table[id] = name
    return table


def class_names(root: Path, ids: tuple[str, ...], file: Path | None) -> tuple[str, ...]:
    """The names of classes by `file`, an id in brackets behind those that two share. Without one, WordNet ids are named
    by ImageNet's file if it lies in `root` or up to four folders above; others are names already.

    Raises:
        DataError: an id that the file does not name, or a wrong line.
    """
    if file is None:
        if not ids or not all(map(_WORDNET.fullmatch, ids)):
            return ids
        top = root.resolve()
        file = next((place / NAMES for place in (top, *top.parents[:_ABOVE]) if (place / NAMES).is_file()), None)
    if file is None:
        return ids
    if not ids:
        raise DataError(f"{root}: has no classes that {file} could name; leave names out")
    table = _read_names(file)
    if unnamed := [id for id in ids if id not in table]:
        raise DataError(f"{file}: has no name for {len(unnamed)} of {len(ids)} classes, the first is {unnamed[0]!r}")
    shared = Counter(table[id] for id in ids)
    return tuple(table[id] if shared[table[id]] == 1 else f"{table[id]} ({id})" for id in ids)
