"""Strings of millions of samples in a few arrays, which take little memory and are quick to send to a worker."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Strings:
    """n strings in UTF-8, one behind the other up to `ends` (n,) int64; names of files that are none are kept too."""

    text: bytes
    ends: np.ndarray

    @classmethod
    def of(cls, strings: Iterable[str]) -> "Strings":
        """These strings, packed."""
        parts = [string.encode("utf-8", "surrogateescape") for string in strings]
        return cls(b"".join(parts), np.cumsum([len(part) for part in parts], dtype=np.int64))

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, i: int) -> str:
        begin = int(self.ends[i - 1]) if i else 0
        return self.text[begin : int(self.ends[i])].decode("utf-8", "surrogateescape")


@dataclass(frozen=True, eq=False)
class Captions:
    """The captions of n samples: those of all, one sample's behind another's up to `ends` (n,) int64."""

    strings: Strings
    ends: np.ndarray

    @classmethod
    def of(cls, texts: Iterable[tuple[str, ...]]) -> "Captions":
        """The captions of each sample, packed."""
        texts = list(texts)
        strings = Strings.of(text for these in texts for text in these)
        return cls(strings, np.cumsum([len(these) for these in texts], dtype=np.int64))

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, i: int) -> tuple[str, ...]:
        begin = int(self.ends[i - 1]) if i else 0
        return tuple(self.strings[j] for j in range(begin, int(self.ends[i])))

    def counts(self) -> np.ndarray:
        """float64 (n,): captions of each sample."""
        return np.diff(self.ends, prepend=0).astype(np.float64)
