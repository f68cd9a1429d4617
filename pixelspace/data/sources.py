"""Where training images come from. A `Source` is a value; opened, it is a `Dataset` that workers can be sent."""

import hashlib
import json
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from torch import Tensor

from pixelspace.config import nearest, value
from pixelspace.data.codec import Codec
from pixelspace.data.decode import decode, examine, read, shown
from pixelspace.data.index import load_or_build
from pixelspace.data.labels import MAX_CLASSES
from pixelspace.data.transforms import Cut, fit, to_tensor
from pixelspace.errors import DataError, ResourceError, UserError


class Sample(NamedTuple):
    """An image uint8 (3, H, W), its label (-1: none) and its caption ("": none)."""

    image: Tensor
    label: int
    text: str


class Dataset(ABC):
    """Samples by number. `fingerprint` changes when any of them does; `holds_images` is false where a sample's `image`
    is something computed of one."""

    classes: tuple[str, ...]
    fingerprint: str
    holds_images: ClassVar[bool] = True

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def name(self, index: int) -> str:
        """What a sample is called in messages."""

    @abstractmethod
    def __getitem__(self, index: int) -> Sample:
        """Raises DataError for a sample that cannot be read."""

    def check(self, size: tuple[int, int], flip: bool, codec: Codec) -> None:
        """Raises UserError where samples as they are stored cannot be cut to `size`, mirrored, or read by `codec`."""
        return  # images can

    def cut(self, index: int, cut: Cut) -> Sample:
        """The sample as it enters a batch: an image cut to size, or the stored form of one."""
        sample = self[index]
        return sample._replace(image=fit(sample.image, cut))


class Source(ABC):
    """A data set as a value."""

    @abstractmethod
    def open(self, cache: Path | None = None) -> Dataset:
        """The data set; what it finds out once it keeps in the folder `cache`."""


class _Image(NamedTuple):
    file: str
    sha256: str
    label: int
    text: str


@dataclass(frozen=True)
class FolderDataset(Dataset):
    """The good images of an indexed folder. An image that is no more what the index saw is refused."""

    root: Path
    classes: tuple[str, ...]
    fingerprint: str
    images: tuple[_Image, ...] = field(repr=False)

    def __len__(self) -> int:
        return len(self.images)

    def name(self, index: int) -> str:
        return shown(self.images[index].file)

    def __getitem__(self, index: int) -> Sample:
        file, sha256, label, text = self.images[index]
        try:
            data = read(self.root / file)
        except DataError as error:
            raise DataError(f"{shown(file)}: {error}") from error
        if hashlib.sha256(data).hexdigest() != sha256:
            raise DataError(f"{shown(file)}: changed since the folder was indexed; start again to index it anew")
        return Sample(to_tensor(decode(data, file)), label, text)


@value
class Folder(Source):
    """A folder of images at any depth; see `data.index` for labels and captions. At most `max_bad_share` may be bad."""

    path: str
    max_bad_share: float = 0.1

    def __post_init__(self) -> None:
        if not 0 <= self.max_bad_share < 1:
            raise ValueError(f"Folder: max_bad_share must be in [0, 1), found {self.max_bad_share}")

    def open(self, cache: Path | None = None) -> FolderDataset:
        root = Path(self.path)
        index = load_or_build(root, cache)
        index.check(self.max_bad_share)
        images = tuple(_Image(entry.name, entry.sha256, entry.label, entry.text) for entry in index.good)
        return FolderDataset(root, index.classes, index.fingerprint, images)


@dataclass(frozen=True)
class _Table(Dataset):
    rows: Any  # a datasets.Dataset whose images are not decoded
    source: "HuggingFace"
    classes: tuple[str, ...]
    fingerprint: str

    def __len__(self) -> int:
        return len(self.rows)

    def name(self, index: int) -> str:
        return f"row {index}"

    def _label(self, row: dict[str, Any]) -> int:
        label = row[self.source.label_key] if self.source.label_key else None
        if isinstance(label, str):
            label = self.classes.index(label)
        if label is not None and not -1 <= label < len(self.classes):
            raise DataError(f"label {label} is not from 0 to {len(self.classes) - 1}, nor -1 for none")
        return -1 if label is None else label

    def __getitem__(self, index: int) -> Sample:
        row = self.rows[index]
        try:
            image = row[self.source.image_key] or {}
            data = image.get("bytes") or (read(Path(image["path"])) if image.get("path") else b"")
            text = row[self.source.text_key] if self.source.text_key else None
            return Sample(to_tensor(examine(data).image), self._label(row), text or "")
        except DataError as error:
            raise DataError(f"{self.name(index)}: {error}") from error


def _classes(feature: Any, rows: Any, key: str) -> tuple[str, ...]:
    if names := getattr(feature, "names", None):
        return tuple(names)
    values = [value for value in rows.unique(key) if value is not None]
    if all(isinstance(value, str) for value in values):
        return tuple(sorted(values))
    if all(isinstance(value, int) and -1 <= value < MAX_CLASSES for value in values):
        return tuple(str(i) for i in range(max(values, default=-1) + 1))
    raise UserError(f"column {key!r} holds {feature}; labels are names or whole numbers from 0 on (-1 for none)")


@value
class HuggingFace(Source):
    """A data set of the Hugging Face hub or its cache, or one that `save_to_disk` wrote (extra `hf-data`).

    Labels are class labels, names or numbers. Images are not looked at before they are wanted.
    """

    path: str
    split: str = "train"
    image_key: str = "image"
    label_key: str | None = None
    text_key: str | None = None

    def open(self, cache: Path | None = None) -> Dataset:
        try:
            import datasets  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise ResourceError("datasets is not installed; pip install 'pixelspace[hf-data]'") from error
        try:
            if (Path(self.path) / "state.json").is_file():
                rows = datasets.load_from_disk(self.path)
            elif (Path(self.path) / "dataset_dict.json").is_file():
                rows = datasets.load_from_disk(self.path)[self.split]
            else:
                rows = datasets.load_dataset(self.path, split=self.split)
        except (OSError, ValueError, LookupError, datasets.exceptions.DatasetsError) as error:
            raise DataError(f"{self.path}, split {self.split}: {type(error).__name__}: {error}") from error
        for key in filter(None, (self.image_key, self.label_key, self.text_key)):
            if key not in rows.column_names:
                raise UserError(f"{self.path}: no column {key!r}; {nearest(key, rows.column_names)}")
        if self.text_key and rows.features[self.text_key] != datasets.Value("string"):
            raise UserError(f"{self.path}: column {self.text_key!r} holds {rows.features[self.text_key]}, not strings")
        if not len(rows):
            raise DataError(f"{self.path}, split {self.split}: has no rows")
        found = (rows._fingerprint, len(rows), self.image_key, self.label_key, self.text_key)
        try:
            images = rows.cast_column(self.image_key, datasets.Image(decode=False))
        # By the column's type datasets raises the first, pyarrow the others: its ArrowInvalid is a ValueError, its
        # ArrowNotImplementedError a NotImplementedError.
        except (TypeError, ValueError, NotImplementedError) as error:
            what = rows.features[self.image_key]
            raise UserError(f"{self.path}: column {self.image_key!r} holds {what}, not images") from error
        classes = _classes(rows.features[self.label_key], rows, self.label_key) if self.label_key else ()
        return _Table(images, self, classes, hashlib.sha256(json.dumps(found).encode()).hexdigest())
