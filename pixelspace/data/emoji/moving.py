"""Clips that need no download: each packaged emoji drifts one way and comes in again at the other side."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from pixelspace.config import value
from pixelspace.data.dataset import Dataset, Sample, Source
from pixelspace.data.emoji import Emoji, EmojiDataset
from pixelspace.data.transforms import Cut, fit, seen_corner

_WAYS = {"down": (4, 0), "right": (0, 4), "up": (-4, 0), "left": (0, -4)}  # pixels of 64 a frame


@dataclass(frozen=True)
class MovingEmojiDataset(Dataset):
    """Clips uint8 (3, frames, 64, 64); the captions say which way the emoji drifts."""

    still: EmojiDataset
    frames: int
    holds_images: ClassVar[bool] = False

    @property
    def classes(self) -> tuple[str, ...]:
        return self.still.classes

    @property
    def fingerprint(self) -> str:
        return f"{self.still.fingerprint}/{self.frames} frames"

    def __len__(self) -> int:
        return len(self.still)

    def name(self, index: int) -> str:
        return self.still.name(index)

    def _way(self, index: int) -> str:
        return list(_WAYS)[index % len(_WAYS)]

    def texts(self, index: int) -> tuple[str, ...]:
        return tuple(f"{text}, moving {self._way(index)}" for text in self.still.texts(index))

    def _frames(self, index: int) -> list[Tensor]:
        y, x = _WAYS[self._way(index)]
        return [self.still[index].image.roll((k * y, k * x), (1, 2)) for k in range(self.frames)]

    def __getitem__(self, index: int) -> Sample:
        index = range(len(self))[index]
        return Sample(torch.stack(self._frames(index), 1), self.still[index].label, self.texts(index))

    def cut(self, index: int, cut: Cut) -> Sample:
        sample, frames = self[index], [fit(frame, cut) for frame in self._frames(index)]
        height, width = sample.image.shape[-2:]
        corner = seen_corner(height, width, cut)
        return sample._replace(image=torch.stack(frames, 1), size=(height, width), corner=corner)


@value
class MovingEmoji(Source):
    """The packaged emoji of the named `groups`, or of all, as clips of so many `frames`; see `Emoji`."""

    kind: ClassVar[str] = "packaged clips"
    groups: tuple[str, ...] = ()
    frames: int = 16

    def __post_init__(self) -> None:
        Emoji(self.groups)
        if self.frames < 1:
            raise ValueError(f"MovingEmoji: frames must be at least 1, found {self.frames}")

    def open(self, cache: Path | None = None) -> MovingEmojiDataset:
        return MovingEmojiDataset(Emoji(self.groups).open(cache), self.frames)
