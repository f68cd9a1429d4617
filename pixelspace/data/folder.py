"""A folder of images, each file checked against what the index saw of it."""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pixelspace.config import value
from pixelspace.data.dataset import Dataset, Sample, Source
from pixelspace.data.decode import decode, read, shown
from pixelspace.data.index import load_or_build
from pixelspace.data.transforms import to_tensor
from pixelspace.errors import DataError


class _Image(NamedTuple):
    file: str
    sha256: str
    label: int
    texts: tuple[str, ...]
    size: tuple[int, int]


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

    def texts(self, index: int) -> tuple[str, ...]:
        return self.images[index].texts

    def columns(self) -> tuple[str, ...]:
        return *super().columns(), "height", "width"

    def column(self, name: str) -> np.ndarray:
        if name not in ("height", "width"):
            return super().column(name)
        return np.array([image.size[name == "width"] for image in self.images], dtype=np.float64)

    def __getitem__(self, index: int) -> Sample:
        file, sha256, label, texts, _ = self.images[index]
        try:
            data = read(self.root / file)
        except DataError as error:
            raise DataError(f"{shown(file)}: {error}") from error
        if hashlib.sha256(data).hexdigest() != sha256:
            raise DataError(f"{shown(file)}: changed since the folder was indexed; start again to index it anew")
        return Sample(to_tensor(decode(data, file)), label, texts)


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
        images = tuple(
            _Image(entry.name, entry.sha256, entry.label, entry.texts, (entry.height, entry.width))
            for entry in index.good
        )
        return FolderDataset(root, index.classes, index.fingerprint, images)
