"""Images made of other images, or of a model."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from pixelspace.data.sources import Dataset
from pixelspace.data.transforms import Crop, Cut, fit
from pixelspace.errors import DataError
from pixelspace.evaluation.images import Images
from pixelspace.random import Rng


@dataclass(frozen=True)
class Drawn(Images):
    """Images that `draw` makes when they are wanted, `chunk` at a time; each is a function of its number."""

    source: str
    fingerprint: str
    shape: tuple[int, ...]
    count: int
    draw: Callable[[range], Tensor]
    chunk: int = 64

    def __len__(self) -> int:
        return self.count

    def name(self, index: int) -> str:
        return f"image {index}"

    def read(self, numbers: range) -> Tensor:
        return self.draw(numbers)


@dataclass(frozen=True)
class Samples(Images):
    """Images of a data set, cut to one size as training does; `ids` says which (None: all)."""

    dataset: Dataset
    size: tuple[int, int]
    crop: Crop = "center"
    ids: tuple[int, ...] | None = None

    @property
    def source(self) -> str:  # type: ignore[override]
        return "training images"

    @cached_property
    def fingerprint(self) -> str:  # type: ignore[override]
        return f"{self.dataset.fingerprint}, {self.size[0]}x{self.size[1]}, {self.crop}, {len(self)}"

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        return (3, *self.size)

    def __len__(self) -> int:
        return len(self.dataset if self.ids is None else self.ids)

    def _id(self, index: int) -> int:
        return index if self.ids is None else self.ids[index]

    def name(self, index: int) -> str:
        return self.dataset.name(self._id(index))

    def read(self, numbers: range) -> Tensor:
        return torch.stack([self.dataset.cut(self._id(i), Cut(self.size, self.crop)).image for i in numbers])


@dataclass(frozen=True)
class Resized(Images):
    """Images brought to `size` by Pillow's antialiased bicubic filter and rounded, the middle kept where the aspect is
    another."""

    images: Images
    size: tuple[int, int]

    @property
    def source(self) -> str:  # type: ignore[override]
        return self.images.source

    @property
    def chunk(self) -> int:  # type: ignore[override]
        return self.images.chunk

    @property
    def fingerprint(self) -> str:  # type: ignore[override]
        return f"{self.images.fingerprint}, resized to {self.size[0]}x{self.size[1]}"

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        return (3, *self.size)

    def __len__(self) -> int:
        return len(self.images)

    def name(self, index: int) -> str:
        return self.images.name(index)

    def read(self, numbers: range) -> Tensor:
        return torch.stack([fit(image, Cut(self.size)) for image in self.images.read(numbers)])


@dataclass(frozen=True)
class Chosen(Images):
    """`count` of the images, drawn without replacement by `seed` and kept in their order."""

    images: Images
    count: int
    seed: int

    def __post_init__(self) -> None:
        if self.count > len(self.images):
            raise DataError(f"{self.images.source}: {len(self.images):,} images, {self.count:,} are wanted")

    @cached_property
    def numbers(self) -> tuple[int, ...]:
        """Which ones."""
        rows = Rng(self.seed).subset("chosen images", torch.zeros(1, dtype=torch.int64), len(self.images), self.count)
        return tuple(rows[0].tolist())

    @property
    def source(self) -> str:  # type: ignore[override]
        return self.images.source

    @property
    def chunk(self) -> int:  # type: ignore[override]
        return self.images.chunk

    @property
    def fingerprint(self) -> str:  # type: ignore[override]
        return f"{self.images.fingerprint}, {self.count} chosen by seed {self.seed}"

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        return self.images.shape

    def __len__(self) -> int:
        return self.count

    def name(self, index: int) -> str:
        return self.images.name(self.numbers[index])

    def read(self, numbers: range) -> Tensor:
        return torch.cat([self.images.read(range(i, i + 1)) for i in self.numbers[numbers.start : numbers.stop]])
