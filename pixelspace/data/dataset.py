"""What training images come as. A `Source` is a value; opened, it is a `Dataset` that workers can be sent."""

import hashlib
from abc import ABC, abstractmethod
from fractions import Fraction
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np
from PIL import Image
from torch import Tensor

from pixelspace.config import nearest
from pixelspace.data.codec import Codec
from pixelspace.data.keep import Keep
from pixelspace.data.preparation import Preparation
from pixelspace.data.transforms import Cut, cut_out, fit, seen_corner, to_tensor
from pixelspace.errors import UserError


class Sample(NamedTuple):
    """An image uint8 (3, H, W), or a clip (3, T, H, W), its label (-1: none) and its captions.

    Of one that was cut, `size` is the height and width before (0: not known), and `corner` the first row and column
    that were kept after resizing, see `seen_corner`.
    """

    image: Tensor
    label: int = -1
    texts: tuple[str, ...] = ()
    size: tuple[int, int] = (0, 0)
    corner: tuple[int, int] = (0, 0)


class Share(NamedTuple):
    """Samples of a larger data set that are drawn in a share of their own: all of `dataset` that pass the filters
    `keep`, numbered from `start` on there."""

    dataset: "Dataset"
    start: int = 0
    weight: Fraction = Fraction(1)
    keep: tuple[Keep, ...] = ()


def _as_cut(sample: Sample, height: int, width: int, cut: Cut) -> Sample:
    return sample._replace(size=(height, width), corner=seen_corner(height, width, cut))


class Dataset(ABC):
    """Samples by number. `fingerprint` changes when any of them does; `holds_images` is false where a sample's `image`
    is a clip, or something computed of an image."""

    classes: tuple[str, ...]
    fingerprint: str
    holds_images: ClassVar[bool] = True

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def name(self, index: int) -> str:
        """What a sample is called in messages, and known by: see `keys`."""

    @abstractmethod
    def __getitem__(self, index: int) -> Sample:
        """Raises DataError for a sample that cannot be read."""

    def texts(self, index: int) -> tuple[str, ...]:
        """A sample's captions, without its image where that can be done."""
        return self[index].texts

    def column(self, name: str) -> np.ndarray:
        """float64 (n,), a number of every sample, NaN where it is not known: `captions` (how many), `caption_length`
        (characters of the longest), and where images were looked at `width` and `height`; or one of the samples' own
        metadata, by its name there.

        Raises:
            UserError: no sample has such a number.
        """
        if name == "captions":
            return np.array([len(self.texts(i)) for i in range(len(self))], dtype=np.float64)
        if name == "caption_length":
            lengths = [max(map(len, self.texts(i)), default=0) for i in range(len(self))]
            return np.array(lengths, dtype=np.float64)
        raise UserError(f"{type(self).__name__}: no sample has {name!r}; {nearest(name, self.columns())}")

    def columns(self) -> tuple[str, ...]:
        """The names that `column` knows."""
        return "captions", "caption_length"

    def keys(self) -> np.ndarray:
        """uint64 (n,): a hash of what each sample is known by, the same wherever and among whatever else it lies."""
        names = (self.name(i).encode("utf-8", "surrogateescape") for i in range(len(self)))
        hashes = [int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "little") for name in names]
        return np.array(hashes, dtype=np.uint64)

    def files(self) -> np.ndarray:
        """int64, ascending from 0: the first sample of each file in which many lie together; one where none do."""
        return np.zeros(1, dtype=np.int64)

    def parts(self) -> tuple[Share, ...]:
        """What it is a mixture of, in the order of the numbers."""
        return (Share(self),)

    def check(self, size: tuple[int, int], flip: bool, codec: Codec) -> None:
        """Raises UserError where samples as they are stored cannot be cut to `size`, mirrored, or read by `codec`."""
        return  # images can

    def cut(self, index: int, cut: Cut) -> Sample:
        """The sample as it enters a batch: an image cut to size, or the stored form of one."""
        sample = self[index]
        height, width = sample.image.shape[-2:]
        return _as_cut(sample._replace(image=fit(sample.image, cut)), height, width, cut)


class Picture(NamedTuple):
    """A decoded sample: an RGB image, its label (-1: none) and its captions."""

    image: Image.Image
    label: int = -1
    texts: tuple[str, ...] = ()


class Pictures(Dataset):
    """Samples that are decoded as they are asked for. What Pillow decoded is cut by Pillow, so that only what is kept
    becomes a tensor."""

    @abstractmethod
    def picture(self, index: int) -> Picture:
        """Raises DataError for a sample that cannot be read."""

    def __getitem__(self, index: int) -> Sample:
        image, label, texts = self.picture(index)
        return Sample(to_tensor(image), label, texts)

    def cut(self, index: int, cut: Cut) -> Sample:
        image, label, texts = self.picture(index)
        return _as_cut(Sample(cut_out(image, cut), label, texts), image.height, image.width, cut)


class Source(ABC):
    """A data set as a value; `kind` says in a few words what it is of. A sample has so many `frames`."""

    kind: ClassVar[str] = "such data"
    frames: int = 1

    @abstractmethod
    def open(self, cache: Path | None = None) -> Dataset:
        """The data set; what it finds out once it keeps in the folder `cache`."""

    def prepare(self, cache: Path, how: Preparation) -> None:
        """Looks at everything once, keeps what it finds out in the folder `cache`, says what there is, and only then
        refuses too many bad samples.

        Raises:
            UserError: an option that this kind has no use for.
            DataError: the data cannot be used.
        """
        how.only(self.kind)
        dataset = self.open(cache)
        captioned = int((dataset.column("captions") > 0).sum())
        how.say(f"{self.kind}: {len(dataset):,} samples, {len(dataset.classes):,} classes")
        how.say(f"captions: {captioned:,} samples have one, {len(dataset) - captioned:,} none")
