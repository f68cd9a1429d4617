"""A folder of short videos, each file checked against what the index saw of it."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from pixelspace.config import value
from pixelspace.data.clip_file import Key, frames
from pixelspace.data.clip_index import load_or_build
from pixelspace.data.codec import Codec
from pixelspace.data.dataset import Dataset, Sample, Source
from pixelspace.data.decode import shown
from pixelspace.data.index import Entry, Index
from pixelspace.data.packed import Captions, Strings
from pixelspace.data.preparation import Preparation
from pixelspace.data.report import report
from pixelspace.data.transforms import Cut, fit, seen_corner
from pixelspace.errors import DataError, UserError


@dataclass(frozen=True, eq=False)
class _Files:
    """What an index says of n good clips: bytes and times (n, 2), SHA-256 (n, 32), labels (n,), heights, widths and
    frames (n, 3), seconds (n,), and all keys (m, 2), one clip's behind another's up to `key_ends` (n,)."""

    names: Strings
    states: np.ndarray
    sha256: np.ndarray
    labels: np.ndarray
    texts: Captions
    shapes: np.ndarray
    seconds: np.ndarray
    keys: np.ndarray
    key_ends: np.ndarray

    @classmethod
    def of(cls, entries: Sequence[Entry]) -> "_Files":
        digests = bytes.fromhex("".join(entry.sha256 for entry in entries))
        keys = [key for entry in entries for key in entry.keys]
        return cls(
            names=Strings.of(entry.name for entry in entries),
            states=np.array([(entry.bytes, entry.mtime_ns) for entry in entries], dtype=np.int64),
            sha256=np.frombuffer(digests, dtype=np.uint8).reshape(len(entries), 32),
            labels=np.array([entry.label for entry in entries], dtype=np.int32),
            texts=Captions.of(entry.texts for entry in entries),
            shapes=np.array([(entry.height, entry.width, entry.frames) for entry in entries], dtype=np.int32),
            seconds=np.array([entry.seconds for entry in entries]),
            keys=np.array(keys, dtype=np.int64).reshape(len(keys), 2),
            key_ends=np.cumsum([len(entry.keys) for entry in entries], dtype=np.int64),
        )

    def keys_of(self, i: int) -> tuple[Key, ...]:
        """The keys of clip i."""
        begin = int(self.key_ends[i - 1]) if i else 0
        return tuple((number, at) for number, at in self.keys[begin : int(self.key_ends[i])].tolist())


@dataclass(frozen=True)
class ClipDataset(Dataset):
    """The good clips of an indexed folder: `frames` of each, every `stride`-th. One that is no more what the index saw
    is refused."""

    root: Path
    classes: tuple[str, ...]
    fingerprint: str
    frames: int
    stride: int
    clips: _Files = field(repr=False, compare=False)
    holds_images: ClassVar[bool] = False

    def __len__(self) -> int:
        return len(self.clips.names)

    def name(self, index: int) -> str:
        return shown(self.clips.names[index])

    def texts(self, index: int) -> tuple[str, ...]:
        return self.clips.texts[index]

    def columns(self) -> tuple[str, ...]:
        return *super().columns(), "height", "width", "frames", "seconds", "fps"

    def column(self, name: str) -> np.ndarray:
        if name in ("height", "width", "frames"):
            return self.clips.shapes[:, ("height", "width", "frames").index(name)].astype(np.float64)
        if name in ("seconds", "fps"):
            seconds = np.where(self.clips.seconds > 0, self.clips.seconds, np.nan)
            return seconds if name == "seconds" else self.clips.shapes[:, 2] / seconds
        return self.clips.texts.counts() if name == "captions" else super().column(name)

    def _checked(self, index: int) -> Path:
        path = self.root / self.clips.names[index]
        try:
            status = path.stat()
            if (status.st_size, status.st_mtime_ns) != tuple(self.clips.states[index]):
                with path.open("rb") as file:
                    if hashlib.file_digest(file, "sha256").digest() != self.clips.sha256[index].tobytes():
                        raise DataError("changed since the folder was indexed; start again to index it anew")
        except OSError as error:
            raise DataError(f"cannot be read: {error.strerror}") from error
        return path

    def _frames(self, index: int, time: float) -> Iterator[Tensor]:
        """Frames uint8 (3, H, W) from the share `time` of the room there is on."""
        span = (self.frames - 1) * self.stride + 1
        start = int(time * (int(self.clips.shapes[index, 2]) - span + 1))
        try:
            path = self._checked(index)
            for pixels in frames(path, range(start, start + span, self.stride), self.clips.keys_of(index)):
                yield torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)
        except DataError as error:
            raise DataError(f"{self.name(index)}: {error}") from error

    def _sample(self, index: int, images: list[Tensor]) -> Sample:
        return Sample(torch.stack(images, 1), int(self.clips.labels[index]), self.clips.texts[index])

    def __getitem__(self, index: int) -> Sample:
        index = range(len(self))[index]
        return self._sample(index, list(self._frames(index, 0.5)))

    def cut(self, index: int, cut: Cut) -> Sample:
        index = range(len(self))[index]
        height, width, _ = self.clips.shapes[index].tolist()
        sample = self._sample(index, [fit(frame, cut) for frame in self._frames(index, cut.time)])
        return sample._replace(size=(height, width), corner=seen_corner(height, width, cut))

    def check(self, size: tuple[int, int], flip: bool, codec: Codec) -> None:
        if codec.identity():
            raise UserError(
                f"{self.root}: clips, and {type(codec).__name__} is for images; set stages.N.codec to Pixels"
            )


@value
class Clips(Source):
    """A folder of videos at any depth: MP4, MOV, WebM, Matroska, AVI (extra `video`), GIF, animated WebP and APNG.

    A sample is `frames` frames, every `stride`-th of the file's, from a place drawn for each position in training, and
    out of the middle in validation. Shorter files count as bad, of which there may be `max_bad_share`. For captions see
    `data.clip_index`; `table` names WebVid's CSV where there are several at the top.
    """

    kind: ClassVar[str] = "a folder of clips"
    path: str
    frames: int = 16
    stride: int = 1
    max_bad_share: float = 0.1
    table: str = ""

    def __post_init__(self) -> None:
        for name, number in (("frames", self.frames), ("stride", self.stride)):
            if number < 1:
                raise ValueError(f"Clips: {name} must be at least 1, found {number}")
        if not 0 <= self.max_bad_share < 1:
            raise ValueError(f"Clips: max_bad_share must be in [0, 1), found {self.max_bad_share}")

    def _index(self, cache: Path | None) -> Index:
        return load_or_build(Path(self.path), cache, self.frames, self.stride, self.table)

    def prepare(self, cache: Path, how: Preparation) -> None:
        how.only(self.kind)
        report(self._index(cache), cache, how, self.max_bad_share)

    def open(self, cache: Path | None = None) -> ClipDataset:
        index = self._index(cache)
        index.check(self.max_bad_share)
        fingerprint = hashlib.sha256(f"{index.fingerprint} {self.frames} {self.stride}".encode()).hexdigest()
        return ClipDataset(Path(self.path), index.classes, fingerprint, self.frames, self.stride, _Files.of(index.good))
