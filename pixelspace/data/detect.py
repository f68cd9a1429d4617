"""Which kind of data lies at a path: a table from the surest sign to the least sure."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pixelspace.data import container, decode
from pixelspace.data.clips import Clips
from pixelspace.data.coco import coco_at
from pixelspace.data.dataset import Source
from pixelspace.data.folder import Folder
from pixelspace.data.latents import Latents, is_latents
from pixelspace.data.parquet import SUFFIXES as PARQUET
from pixelspace.data.parquet import Parquet
from pixelspace.data.remote import is_url
from pixelspace.data.shard_index import is_index
from pixelspace.data.shards import COMPRESSED, SUFFIX, Shards
from pixelspace.data.webvid import TABLES

_CLIPS = (*container.SUFFIXES, ".gif", ".apng")  # a WebP may well be a single image, and counts as one


def _holds_shards(path: str) -> bool:
    """Whether `path` is an index of tar shards, a tar or a pattern of tars, or a folder with tars right in it."""
    if path.partition("?")[0].lower().endswith((SUFFIX, *COMPRESSED)):
        return True
    return not is_url(path) and (is_index(Path(path)) or _has_files(path, SUFFIX, *COMPRESSED))


def _has_files(folder: str, *suffixes: str) -> bool:
    try:
        with os.scandir(folder) as entries:
            return any(entry.name.lower().endswith(suffixes) and entry.is_file() for entry in entries)
    except OSError:
        return False  # not a folder, or none that can be read: what opens it says so


def _holds_parquet(path: str) -> bool:
    """Whether `path` is a Parquet file, a pattern of them, or a folder with some right in it."""
    return path.partition("?")[0].lower().endswith(PARQUET) or (not is_url(path) and _has_files(path, *PARQUET))


def _is_coco(path: str) -> bool:
    return not is_url(path) and path.lower().endswith(".json") and Path(path).is_file()


def _holds_clips(path: str) -> bool:
    """Whether `path` is a folder with WebVid's CSV, or with more clips than images at any depth."""
    if is_url(path):
        return False
    if any(Path(path).glob(TABLES)):
        return True
    more = 0
    for _, folders, files in os.walk(path):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            suffix = "" if name.startswith(".") else os.path.splitext(name)[1].lower()
            more += (suffix in _CLIPS) - (suffix in decode.SUFFIXES)
    return more > 0


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of data by name, whether a path is of it, and the source of one that is."""

    name: str
    is_at: Callable[[str], bool]
    source: Callable[[str], Source]


KINDS = (
    Kind("latents", lambda path: not is_url(path) and is_latents(Path(path)), Latents),
    Kind("tar shards", _holds_shards, Shards),
    Kind("Parquet files", _holds_parquet, Parquet),
    Kind("tar shards elsewhere", is_url, Shards),
    Kind("COCO's captions", _is_coco, coco_at),
    Kind("a folder of clips", _holds_clips, Clips),
    Kind("a folder of images", lambda path: True, Folder),
)


def source_of(path: str) -> Source:
    """What lies at `path`, on disk or elsewhere, by the first of `KINDS` that it is of."""
    return next(kind.source(path) for kind in KINDS if kind.is_at(path))
