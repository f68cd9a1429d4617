"""Where training images come from. A `Source` is a value; opened, it is a `Dataset` that workers can be sent."""

import hashlib
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

from torch import Tensor

from pixelspace.config import nearest, value
from pixelspace.data.decode import decode
from pixelspace.data.index import Index, load_or_build
from pixelspace.data.transforms import to_tensor
from pixelspace.errors import DataError, ResourceError, UserError


class Sample(NamedTuple):
    """An image uint8 (3, H, W), its label (-1: none) and its caption ("": none)."""

    image: Tensor
    label: int
    text: str


class Dataset(Protocol):
    """Samples by number. `fingerprint` changes when any of them does."""

    @property
    def classes(self) -> tuple[str, ...]: ...
    @property
    def fingerprint(self) -> str: ...
    def __len__(self) -> int: ...
    def name(self, index: int) -> str: ...
    def __getitem__(self, index: int) -> Sample:
        """Raises DataError for a sample that cannot be read."""
        ...


class Source(ABC):
    """A data set as a value."""

    @abstractmethod
    def open(self, cache: Path | None = None) -> Dataset:
        """The data set; what it finds out once it keeps in the folder `cache`."""


@dataclass(frozen=True)
class FolderDataset:
    """The good images of an indexed folder."""

    root: Path
    index: Index

    @property
    def classes(self) -> tuple[str, ...]:
        return self.index.classes

    @property
    def fingerprint(self) -> str:
        return self.index.fingerprint

    def __len__(self) -> int:
        return len(self.index.good)

    def name(self, index: int) -> str:
        return self.index.good[index].name

    def __getitem__(self, index: int) -> Sample:
        entry = self.index.good[index]
        try:
            data = (self.root / entry.name).read_bytes()
        except OSError as error:
            raise DataError(f"{entry.name}: {error.strerror}") from error
        return Sample(to_tensor(decode(data, entry.name)), entry.label, entry.text)


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
        return FolderDataset(root, index)


@dataclass(frozen=True)
class _Rows:
    table: object
    image_key: str
    label_key: str | None
    classes: tuple[str, ...]
    fingerprint: str

    def __len__(self) -> int:
        return len(self.table)  # type: ignore[arg-type]

    def name(self, index: int) -> str:
        return f"row {index}"

    def __getitem__(self, index: int) -> Sample:
        row = self.table[index]  # type: ignore[index]
        encoded = row[self.image_key]
        data = encoded.get("bytes") or Path(encoded["path"]).read_bytes()
        label = row[self.label_key] if self.label_key else -1
        if self.classes and not -1 <= label < len(self.classes):
            raise DataError(f"row {index}: label {label} is out of range 0 to {len(self.classes) - 1}")
        return Sample(to_tensor(decode(data, f"row {index}")), int(label), "")


@value
class HuggingFace(Source):
    """A data set of the Hugging Face hub or its cache, or one that `save_to_disk` wrote (extra `hf-data`)."""

    path: str
    split: str = "train"
    image_key: str = "image"
    label_key: str | None = None

    def open(self, cache: Path | None = None) -> Dataset:
        try:
            import datasets  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise ResourceError("datasets is not installed; pip install 'pixelspace[hf-data]'") from error
        if (Path(self.path) / "state.json").is_file():
            table = datasets.load_from_disk(self.path)
        elif (Path(self.path) / "dataset_dict.json").is_file():
            table = datasets.load_from_disk(self.path)[self.split]
        else:
            table = datasets.load_dataset(self.path, split=self.split)
        for key in filter(None, (self.image_key, self.label_key)):
            if key not in table.column_names:
                raise UserError(f"{self.path}: no column {key!r}; {nearest(key, table.column_names)}")
        table = table.cast_column(self.image_key, datasets.Image(decode=False))
        feature = table.features[self.label_key] if self.label_key else None
        names = tuple(feature.names) if feature is not None and isinstance(feature, datasets.ClassLabel) else ()
        if self.label_key and not names:
            names = tuple(str(i) for i in range(max(table[self.label_key]) + 1))
        fingerprint = hashlib.sha256(f"{self}/{table._fingerprint}".encode()).hexdigest()
        return _Rows(table, self.image_key, self.label_key, names, fingerprint)
