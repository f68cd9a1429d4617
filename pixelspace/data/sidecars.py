"""Captions in text files of their own: `photo.txt` beside `photo.jpg`.

The whole file is one caption, in UTF-8 with or without a byte order mark; its lines are joined by single spaces. An
empty one is no caption.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from os.path import splitext
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from pixelspace.data.decode import shown
from pixelspace.data.labels import MAX_TEXT
from pixelspace.errors import DataError

SUFFIX = ".txt"
_BOM = b"\xef\xbb\xbf"
_TOGETHER, _THREADS = 4096, 16  # files that threads share: on a network's disk reading is waiting
_BREAKS = re.compile(r"\s*[\r\n]\s*")


class Sidecar(NamedTuple):
    """A caption's file by its name below the root, and what it holds, "" for none. `reason` says why that cannot be
    used."""

    name: str
    bytes: int
    mtime_ns: int
    text: str = ""
    reason: str = ""


def paired(images: Iterable[str], texts: Iterable[str]) -> tuple[dict[str, tuple[str, str]], int]:
    """The text file that belongs to each image of one folder, by stem, and why it cannot be used where that is not
    clear; and how many text files belong to none."""
    captions, alike = defaultdict(list), defaultdict(list)
    for text in sorted(texts):
        captions[splitext(text)[0]].append(text)
    for image in sorted(images) if captions else ():
        alike[splitext(image)[0]].append(image)
    found, alone = {}, 0
    for stem, these in captions.items():
        refused = ""
        if len(these) > 1:
            refused = f"{' and '.join(map(shown, these))} both lie beside it; keep one"
        elif len(alike[stem]) > 1:
            refused = f"may belong to {' or to '.join(map(shown, alike[stem]))}; give each image a stem of its own"
        found |= {image: (these[0], refused) for image in alike[stem]}
        alone += 0 if alike[stem] else len(these)
    return found, alone


def parse(data: bytes) -> str:
    """The caption that a file's bytes say.

    Raises:
        DataError: with the bare reason.
    """
    if len(data.removeprefix(_BOM)) > MAX_TEXT:
        raise DataError(f"over {MAX_TEXT} bytes")
    try:
        text = data.decode().removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise DataError(f"not UTF-8 at byte {error.start}") from error
    if "\0" in text:
        raise DataError("holds a NUL")
    return _BREAKS.sub(" ", text.strip())


def _read(root: Path, file: Sidecar) -> Sidecar:
    try:
        with (root / file.name).open("rb") as opened:
            return file._replace(text=parse(opened.read(len(_BOM) + MAX_TEXT + 1)))
    except OSError as error:
        return file._replace(mtime_ns=-1, reason=f"cannot be read: {error.strerror}")  # may pass
    except DataError as error:
        return file._replace(reason=str(error))


def read_sidecars(root: Path, files: Sequence[Sidecar]) -> Iterator[Sidecar]:
    """What `files` hold, in order."""
    with ThreadPoolExecutor(_THREADS) as pool, tqdm(total=len(files), desc="reading captions", disable=None) as bar:
        for begin in range(0, len(files), _TOGETHER):
            part = files[begin : begin + _TOGETHER]
            yield from pool.map(_read, [root] * len(part), part)
            bar.update(len(part))
