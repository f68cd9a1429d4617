"""Images to be judged: all of one size, by number, from wherever they are."""

import math
from abc import ABC, abstractmethod

from torch import Tensor

_CHUNK_BYTES = 256 << 20


def chunk_of(shape: tuple[int, ...]) -> int:
    """How many images or clips of `shape` are read at a time: 64, or what 256 MiB hold."""
    return max(1, min(64, _CHUNK_BYTES // math.prod(shape)))


class Images(ABC):
    """Images, or clips, of one `shape`: (3, H, W) or (3, T, H, W). `fingerprint` changes when any does; `source`
    names them in reports, `notes` say what a reader of numbers should know of them, and `chunk` are read at a time."""

    chunk: int = 64
    notes: tuple[str, ...] = ()
    source: str
    fingerprint: str
    shape: tuple[int, ...]

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def name(self, index: int) -> str:
        """What one is called in messages and files."""

    @abstractmethod
    def read(self, numbers: range) -> Tensor:
        """uint8 (n, *shape) on the CPU.

        Raises:
            DataError: one that cannot be read, by name.
        """
