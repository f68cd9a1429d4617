"""Features of many images on disk, in blocks that each stand whole or not at all.

A block holds the features of 256 images in order, so that what is computed of them depends neither on how many
processes shared the work nor on where it was once stopped.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import safetensors
import torch
from safetensors.torch import save
from torch import Tensor
from tqdm import tqdm

from pixelspace.config import value
from pixelspace.data.grid import grid_image, save_image
from pixelspace.errors import CheckpointError, DataError
from pixelspace.evaluation.features import BATCH, Extractor, Opened, extract
from pixelspace.evaluation.images import Images
from pixelspace.evaluation.stats import Moments, moments
from pixelspace.files import Seal, drop_abandoned, publish
from pixelspace.foreign import read_safetensors
from pixelspace.nn.weights import digest

BLOCK = 256
BEGUN = "features.begun.json"
PIXELS = "pixels.sha256"  # the first half of each image's hash, so that copies are found
_AGAIN = "run the same command again"

Network = tuple[Extractor, Opened]


@value
class Features:
    """What a folder of features holds: of which images, seen by which networks (name and SHA-256 of the weights)."""

    source: str
    fingerprint: str
    count: int
    networks: tuple[tuple[str, str], ...]
    captions: str = ""

    @property
    def blocks(self) -> list[range]:
        """The numbers of the images of each block."""
        return [range(start, min(start + BLOCK, self.count)) for start in range(0, self.count, BLOCK)]


_SEAL = Seal("features", 1, {"Features": Features}, _AGAIN)


@dataclass(frozen=True)
class Rows:
    """The features of all images of a folder, in their order. Each block is checked once, when it is first read."""

    folder: Path
    described: Features
    _sound: set[int] = field(default_factory=set, repr=False, compare=False)

    def __len__(self) -> int:
        return self.described.count

    def _path(self, block: int) -> Path:
        return self.folder / f"block-{block:05d}.safetensors"

    def _check(self, block: int) -> None:
        if block in self._sound:
            return
        path = self._path(block)
        try:
            tensors, stated = read_safetensors(path)
        except CheckpointError as error:
            raise DataError(f"{error}; {_AGAIN}") from error
        if stated.get("sha256") != digest(tensors):
            raise DataError(f"{path}: is damaged: its SHA-256 is not the one it states; {_AGAIN}")
        self._sound.add(block)

    def read(self, block: int, key: str) -> Tensor:
        """A block's rows of `Extractor.key`.

        Raises:
            DataError: absent or damaged.
        """
        self._check(block)
        try:
            with safetensors.safe_open(self._path(block), "pt") as file:
                return file.get_tensor(key)
        except (safetensors.SafetensorError, OSError) as error:
            raise DataError(f"{self._path(block)}: cannot be read as features: {error}; {_AGAIN}") from error

    def stands(self, block: int) -> bool:
        """Whether a block is whole."""
        if not self._path(block).exists():
            return False
        try:
            self._check(block)
        except DataError:
            return False
        return True

    @property
    def complete(self) -> bool:
        """Whether all blocks are whole."""
        return all(self.stands(block) for block in range(len(self.described.blocks)))

    def write(self, block: int, tensors: Mapping[str, Tensor]) -> None:
        """Publishes a block."""
        drop_abandoned(self._path(block))
        publish(self._path(block), save(dict(tensors), {"sha256": digest(tensors)}), _AGAIN)

    def parts(self, key: str) -> Iterable[Tensor]:
        """The rows of `Extractor.key`, block by block."""
        return (self.read(block, key) for block in range(len(self.described.blocks)))

    def rows(self, key: str) -> Tensor:
        """All rows of `Extractor.key`, float32 (count, D)."""
        return torch.cat(list(self.parts(key)))

    def moments(self, key: str) -> Moments:
        """Mean and covariance of the rows of `Extractor.key`."""
        return moments(self.parts(key))

    def check_differ(self) -> None:
        """Raises DataError where all images are equal."""
        if self.repeated == len(self) - 1:
            raise DataError(f"{self.described.source}: all {len(self):,} images are equal; there is nothing to measure")

    @cached_property
    def repeated(self) -> int:
        """How many images have exactly the pixels of one before them."""
        seen = torch.cat(list(self.parts(PIXELS)))
        return len(seen) - len(torch.unique(seen, dim=0))


def _pixel_hashes(images: Tensor) -> Tensor:
    digests = [hashlib.sha256(image.contiguous().numpy().data).digest()[:16] for image in images]
    return torch.frombuffer(bytearray(b"".join(digests)), dtype=torch.int64).reshape(-1, 2)


def _picture(folder: Path, number: int) -> Path:
    return folder / f"{number:06d}.png"


def _block(
    images: Images,
    numbers: range,
    networks: Sequence[Network],
    captions: Sequence[str] | None,
    kept: Path | None,
    done: Callable[[int], object],
) -> dict[str, Tensor]:
    parts: list[dict[str, Tensor]] = []
    chunk = max(BATCH, images.chunk - images.chunk % BATCH)  # networks see a whole batch in any case
    for start in range(numbers.start, numbers.stop, chunk):
        some = range(start, min(start + chunk, numbers.stop))
        pixels = images.read(some)
        found = {PIXELS: _pixel_hashes(pixels)}
        for extractor, opened in networks:
            found |= {extractor.key(name): rows for name, rows in extract(opened, pixels).items()}
            if captions is not None and opened.embed_text is not None:
                found[extractor.key(extractor.text_output)] = opened.embed_text(captions[some.start : some.stop])
        for name, rows in found.items():
            if not (finite := rows.isfinite().all(1)).all():
                bad = some[int((~finite).nonzero()[0])]
                raise DataError(f"{images.source}: {images.name(bad)}: its {name} is not finite")
        if kept is not None:
            for number, image in zip(some, pixels, strict=True):
                frames = image[None] if image.ndim == 3 else image.transpose(0, 1)
                save_image(grid_image(frames, len(frames), gap=0), _picture(kept, number))
        parts.append(found)
        done(len(some))
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def compute(
    images: Images,
    networks: Sequence[Network],
    folder: Path,
    *,
    captions: Sequence[str] | None = None,
    keep: bool = False,
    rank: int = 0,
    world: int = 1,
    progress: bool = False,
) -> Rows:
    """Fills `folder` with the features of `images` by `networks`; what stands there already is left.

    With `keep` the images are written too, as `images/000000.png` and on, a clip as its frames in a row; blocks whose
    images are not there are computed again. Of `world` processes that share the work each has its `rank`, and leaves
    the blocks of the others alone.

    Raises:
        UserError: the folder holds other features.
        DataError: an image that cannot be read, or features that are not finite.
        ResourceError: the disk is full or refuses.
    """
    said = hashlib.sha256(json.dumps(list(captions)).encode()).hexdigest() if captions is not None else ""
    seen_by = tuple(sorted((extractor.name, opened.sha256) for extractor, opened in networks))
    described = Features(images.source, images.fingerprint, len(images), seen_by, said)
    _SEAL.begin(folder, BEGUN, described)
    rows = Rows(folder, described)
    mine = range(rank, len(described.blocks), world)
    kept = folder / "images" if keep else None

    def stands(block: int) -> bool:
        shown = kept is None or all(_picture(kept, number).exists() for number in described.blocks[block])
        return shown and rows.stands(block)

    to_do = [block for block in mine if not stands(block)]
    total, left = (sum(len(described.blocks[block]) for block in some) for some in (mine, to_do))
    with tqdm(total=total, initial=total - left, unit="img", desc=images.source, disable=not progress) as bar:
        for block in to_do:
            rows.write(block, _block(images, described.blocks[block], networks, captions, kept, bar.update))
    return rows
