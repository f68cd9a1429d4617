"""Images that are made when they are wanted: by a model, of a data set, of other images."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pixelspace.data.dataset import Dataset
from pixelspace.data.transforms import Crop, Cut, fit
from pixelspace.evaluation.images import Images, chunk_of
from pixelspace.random import Rng


def _numbered(index: int) -> str:
    return f"image {index}"


@dataclass(frozen=True)
class Made(Images):
    """Images that `make` gives by their numbers, uint8 (n, *shape); each is a function of its number alone."""

    source: str
    fingerprint: str
    shape: tuple[int, ...]
    count: int
    make: Callable[[range], Tensor]
    chunk: int = 64
    named: Callable[[int], str] = _numbered
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return self.count

    def name(self, index: int) -> str:
        return self.named(index)

    def read(self, numbers: range) -> Tensor:
        return self.make(numbers)


def samples(dataset: Dataset, ids: Sequence[int], size: tuple[int, int], crop: Crop) -> Images:
    """The samples `ids` of a data set of images, cut to `size`."""

    def make(numbers: range) -> Tensor:
        return torch.stack([dataset.cut(ids[i], Cut(size, crop)).image for i in numbers])

    shape = (3, *size)
    return Made(
        source="training images",
        fingerprint=f"{dataset.fingerprint}, {Rng(0).key(*ids):016x}, {size}, {crop}",
        shape=shape,
        count=len(ids),
        make=make,
        chunk=chunk_of(shape),
        named=lambda index: dataset.name(ids[index]),
    )


def resized(images: Images, size: tuple[int, int]) -> Images:
    """Brought to `size` by Pillow's antialiased bicubic filter and rounded; of another aspect the middle is kept."""
    cut, shape = Cut(size), (3, *size)
    return Made(
        source=images.source,
        fingerprint=f"{images.fingerprint}, resized to {size}",
        shape=shape,
        count=len(images),
        make=lambda numbers: torch.stack([fit(image, cut) for image in images.read(numbers)]),
        chunk=images.chunk,
        named=images.name,
        notes=(*images.notes, f"brought from {images.shape[-2]}x{images.shape[-1]} to {size[0]}x{size[1]}"),
    )


def choice(n: int, count: int, seed: int) -> list[int]:
    """`count` of the numbers below n, ascending, drawn without replacement by `seed`."""
    return Rng(seed).subset("chosen images", torch.zeros(1, dtype=torch.int64), n, count)[0].tolist()


def chosen(images: Images, count: int, seed: int) -> Images:
    """Those of the images that `choice` says, in their order."""
    numbers = choice(len(images), count, seed)
    return Made(
        source=images.source,
        fingerprint=f"{images.fingerprint}, {count} by seed {seed}",
        shape=images.shape,
        count=count,
        make=lambda some: torch.cat([images.read(range(i, i + 1)) for i in numbers[some.start : some.stop]]),
        chunk=images.chunk,
        named=lambda index: images.name(numbers[index]),
        notes=(*images.notes, f"{count:,} of {len(images):,} images, drawn by seed {seed}"),
    )
