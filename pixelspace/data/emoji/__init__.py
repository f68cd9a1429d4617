"""The packaged demo set: 1,500 captioned Fluent 3-D emoji at 64 px in 8 groups (Microsoft, MIT; see NOTICE).

`benchmarks/build_emoji_atlas.py` makes its two files, `atlas.webp` and `emoji.json`.
"""

import hashlib
import io
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from pathlib import Path

from PIL import Image
from torch import Tensor

from pixelspace.config import nearest, parse_json, value
from pixelspace.data.dataset import Dataset, Sample, Source
from pixelspace.data.transforms import to_tensor

GROUPS = ("smileys", "people", "animals", "food", "travel", "activities", "objects", "symbols")


def _read(name: str) -> bytes:
    return files(__name__).joinpath(name).read_bytes()


@cache
def _described() -> dict:
    return parse_json(_read("emoji.json").decode())


@cache
def _atlas() -> Tensor:
    """uint8 (3, H, W), decoded once a process."""
    with Image.open(io.BytesIO(_read("atlas.webp"))) as sheet:
        return to_tensor(sheet.convert("RGB"))


@cache
def _digest() -> str:
    return hashlib.sha256(_read("atlas.webp") + _read("emoji.json")).hexdigest()


@dataclass(frozen=True)
class EmojiDataset(Dataset):
    """The emoji of some groups, which are its classes."""

    classes: tuple[str, ...]
    entries: tuple[tuple[int, int, str], ...] = field(repr=False)  # (place in the atlas, label, caption)

    @property
    def fingerprint(self) -> str:
        return f"{_digest()}/{','.join(self.classes)}"

    def __len__(self) -> int:
        return len(self.entries)

    def name(self, index: int) -> str:
        return self.entries[index][2].partition(";")[0]

    def texts(self, index: int) -> tuple[str, ...]:
        """What it is called, and that with words it goes by."""
        return tuple(dict.fromkeys((self.name(index), self.entries[index][2])))

    def __getitem__(self, index: int) -> Sample:
        place, label, _ = self.entries[index]
        side, columns = _described()["side"], _described()["columns"]
        y, x = place // columns * side, place % columns * side
        return Sample(_atlas()[:, y : y + side, x : x + side].contiguous(), label, self.texts(index))


@value
class Emoji(Source):
    """The packaged emoji of the named `groups`, or of all; the groups are the classes, in the order given."""

    groups: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for i, group in enumerate(self.groups):
            if group not in GROUPS:
                raise ValueError(f"Emoji: no group {group!r}; {nearest(group, GROUPS)}")
            if group in self.groups[:i]:
                raise ValueError(f"Emoji: the group {group!r} stands twice; name each once")

    def open(self, cache: Path | None = None) -> EmojiDataset:
        labels = {group: label for label, group in enumerate(self.groups or GROUPS)}
        entries = enumerate(_described()["emoji"])
        return EmojiDataset(
            tuple(labels), tuple((place, labels[group], text) for place, (group, text) in entries if group in labels)
        )
