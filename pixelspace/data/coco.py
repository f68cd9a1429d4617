"""Images with the captions of a COCO annotation file, such as captions_val2014.json (Chen et al. 2015)."""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch

from pixelspace.config import parse_json, value
from pixelspace.data.dataset import Source
from pixelspace.data.folder import FolderDataset
from pixelspace.data.index import Entry, Index, scan
from pixelspace.data.labels import captions
from pixelspace.data.preparation import Preparation
from pixelspace.data.report import report
from pixelspace.errors import DataError, UserError
from pixelspace.random import Rng, permuted


@dataclass(frozen=True, slots=True)
class Captioned:
    """An image's file below the folder of images, its captions, and where the annotations list it ("images[7]").
    `reason` says why its captions cannot be used."""

    where: str
    file: str
    texts: tuple[str, ...] = ()
    reason: str = ""


def is_coco(data: Any) -> bool:
    """Whether what a JSON file holds is laid out as COCO's annotations are."""
    return isinstance(data, dict) and {"images", "annotations"} <= data.keys()


def _items(data: dict[str, Any], kind: str, keys: dict[str, type]) -> Iterator[tuple[str, list[Any]]]:
    """Of each item its place and what it has under `keys`."""
    if not isinstance(data[kind], list):
        raise DataError(f"{kind}: expected a list, found {type(data[kind]).__name__}")
    for i, item in enumerate(data[kind]):
        where = f"{kind}[{i}]"
        for key, wanted in keys.items():
            found = item.get(key) if isinstance(item, dict) else None
            if not isinstance(found, wanted) or isinstance(found, bool):
                raise DataError(f"{where}: expected {key}, {wanted.__name__}; found {item!r:.100}")
        yield where, [item[key] for key in keys]


def parse_captions(data: dict[str, Any]) -> tuple[Captioned, ...]:
    """The images that annotations list, in their order, each with all its captions.

    Raises:
        DataError: what is wrong with which item.
    """
    table: dict[int, Captioned] = {}
    files: dict[str, str] = {}
    for where, (number, name) in _items(data, "images", {"id": int, "file_name": str}):
        file = os.path.normpath(name)
        if number in table:
            raise DataError(f"{where}: id {number} is that of {table[number].where} too")
        if file in files:
            raise DataError(f"{where}: {name!r:.100} is the file of {files[file]} too")
        table[number], files[file] = Captioned(where, file), where
    for where, (number, text) in _items(data, "annotations", {"image_id": int, "caption": object}):
        if number not in table:
            raise DataError(f"{where}: there is no image of id {number}")
        image = table[number]
        try:
            table[number] = replace(image, texts=image.texts + captions(where, text))
        except DataError as error:
            table[number] = replace(image, reason=image.reason or str(error))
    return tuple(table.values())


def read_captions(path: Path) -> tuple[Captioned, ...]:
    """`parse_captions` of a file.

    Raises:
        DataError: naming the file.
    """
    try:
        data = parse_json(path.read_text(encoding="utf-8-sig"))
        if not is_coco(data):
            raise DataError("expected COCO's captions, an object with images and annotations")
        return parse_captions(data)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 at byte {error.start}") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not JSON: {error}") from error


def drawn(images: Iterable[Captioned], count: int, rng: Rng) -> tuple[tuple[str, str], ...]:
    """Of `count` images, or all where there are fewer, the file and one caption each, both drawn by `rng`; in order of
    the files, and of none that has no caption."""
    having = sorted((image for image in images if image.texts), key=lambda image: image.file)
    chosen = sorted(permuted(i, len(having), rng.key("images")) for i in range(min(count, len(having))))
    picks = rng.uniform("caption", torch.tensor(chosen, dtype=torch.int64))[:, 0].tolist()
    found = [(having[i], u) for i, u in zip(chosen, picks, strict=True)]
    return tuple((image.file, image.texts[int(u * len(image.texts))]) for image, u in found)


@value
class Coco(Source):
    """The images that a COCO `annotations` file lists, in the folder `images`, each with all its captions; others
    there are left alone. At most `max_bad_share` of those listed may be missing or bad."""

    kind: ClassVar[str] = "images with COCO's captions"
    images: str
    annotations: str
    max_bad_share: float = 0.1

    def __post_init__(self) -> None:
        if not 0 <= self.max_bad_share < 1:
            raise ValueError(f"Coco: max_bad_share must be in [0, 1), found {self.max_bad_share}")

    def _index(self, cache: Path | None) -> Index:
        path, root = Path(self.annotations), Path(self.images)
        listed = read_captions(path)
        found = scan(root, cache, sidecars=False)
        entries = {entry.name: entry for entry in found.entries}

        def described(image: Captioned) -> Entry:
            entry = entries.get(image.file) or Entry(image.file, 0, 0, reason=f"no such image; {path.name} lists it")
            wrong = f"{path.name}: {image.reason}" if image.reason else ""
            return replace(entry, reason=entry.reason or wrong, texts=image.texts)

        rows = sorted(map(described, listed), key=lambda entry: os.fsencode(entry.name))
        return Index(str(root), (), tuple(rows), found.ignored)

    def open(self, cache: Path | None = None) -> FolderDataset:
        index = self._index(cache)
        index.check(self.max_bad_share)
        return FolderDataset.of(Path(self.images), index)

    def prepare(self, cache: Path, how: Preparation) -> None:
        how.only(self.kind)
        report(self._index(cache), cache, how, self.max_bad_share)


def coco_at(annotations: str) -> Coco:
    """The images of an `annotations` file where COCO has them: in the file's folder, or the one above, or there in a
    folder named like the split (val2014 for captions_val2014.json).

    Raises:
        DataError: the file is not COCO's captions.
        UserError: the images lie elsewhere.
    """
    path = Path(annotations)
    listed = [image.file for image in read_captions(path)]
    split = path.stem.rpartition("_")[2]
    above = path.resolve().parent.parent
    places = (path.parent / split, above / split, path.parent, above)
    for place in places:
        if any((place / file).is_file() for file in listed if not os.path.isabs(file) and file[:2] != ".."):
            return Coco(str(place), annotations)
    raise UserError(
        f"{annotations}: none of its {len(listed):,} images lies in {', '.join(map(str, places))}; say where they are "
        "with Coco(images, annotations) in a recipe.py"
    )
