"""Captions that belong to a set of images, one each, in the images' order."""

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pixelspace.config import parse_json
from pixelspace.data.coco import drawn, is_coco, parse_captions
from pixelspace.data.decode import shown
from pixelspace.errors import DataError, UserError
from pixelspace.random import Rng

COCO_COUNT, COCO_SEED = 30_000, 0
KEYS = ("caption", "text", "prompt")
_KEYS = ", ".join(KEYS)


def _only(found: list[str], where: str) -> str:
    """The one key that holds the caption."""
    if len(found) != 1:
        raise DataError(f"{where}: expected one of {_KEYS}; found {', '.join(found) or 'none of them'}")
    return found[0]


def _caption(item: Any, where: str) -> tuple[str, str]:
    if isinstance(item, dict):
        item = item[_only([key for key in KEYS if key in item], where)]
    if not isinstance(item, str):
        raise DataError(f"{where}: expected a string, or an object with one of {_KEYS}; found {json.dumps(item)[:80]}")
    return where, item


def _lines(text: str) -> list[str]:
    # Not splitlines, which also breaks at characters that may stand in a caption.
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    return lines[:-1] if not lines[-1] else lines


def _txt(text: str, path: Path) -> Iterator[tuple[str, str]]:
    yield from ((f"{path}:{n}", line) for n, line in enumerate(_lines(text), 1))


def _coco(data: dict[str, Any], path: Path) -> Iterator[tuple[str, str]]:
    try:
        images = parse_captions(data)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    for image in images:
        if image.reason:
            raise DataError(f"{path}: {image.reason}")
    yield from ((f"{path}: {file}", caption) for file, caption in drawn(images, COCO_COUNT, Rng(COCO_SEED)))


def _json(text: str, path: Path) -> Iterator[tuple[str, str]]:
    items = parse_json(text)
    if is_coco(items):
        yield from _coco(items, path)
        return
    if not isinstance(items, list):
        raise DataError(f"{path}: expected a list, found {type(items).__name__}")
    yield from (_caption(item, f"{path}: item {n}") for n, item in enumerate(items, 1))


def _jsonl(text: str, path: Path) -> Iterator[tuple[str, str]]:
    for n, line in enumerate(_lines(text), 1):
        where = f"{path}:{n}"
        try:
            item = parse_json(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{where}: not JSON: {error}") from error
        yield _caption(item, where)


def _csv(text: str, path: Path) -> Iterator[tuple[str, str]]:
    rows = csv.reader(io.StringIO(text, newline=""), strict=True)
    names = next(rows, [])
    column = names.index(_only([name for name in names if name in KEYS], f"{path}:1"))
    for row in rows:
        where = f"{path}:{rows.line_num}"
        if len(row) != len(names):
            raise DataError(f"{where}: expected {len(names)} fields, found {len(row)}")
        yield where, row[column]


_READERS = {".txt": _txt, ".json": _json, ".jsonl": _jsonl, ".csv": _csv}


def read_prompts(path: Path) -> tuple[str, ...]:
    """The captions in a .txt (one a line), a .json (a list), a .jsonl or a .csv. Objects and rows name theirs
    `caption`, `text` or `prompt`. Of COCO's annotations (.json) they are one each of 30,000 images, or of all where
    there are fewer, drawn by a fixed seed and in order of the images' files.

    Raises:
        UserError: another kind of file.
        DataError: absent, damaged, or without a caption somewhere, with the line.
    """
    if path.suffix.lower() not in _READERS:
        raise UserError(f"{path}: expected captions in {', '.join(_READERS)}; found {path.suffix or 'no suffix'!r}")
    try:
        text = path.read_bytes().decode("utf-8-sig")
        found = list(_READERS[path.suffix.lower()](text, path))
    except DataError:
        raise
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 at byte {error.start}; save it as UTF-8") from error
    except (OSError, ValueError, RecursionError, csv.Error) as error:
        raise DataError(f"{path}: not readable as {path.suffix.lower()}: {shown(str(error))}") from error
    for where, caption in found:
        if not caption.strip():
            raise DataError(f"{where}: an empty caption; every image has its own")
    if not found:
        raise DataError(f"{path}: holds no captions")
    return tuple(caption for _, caption in found)
