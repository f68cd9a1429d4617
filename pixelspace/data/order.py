"""Which sample stands at a global position: a pure function, the same for any number of processes and workers."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np

from pixelspace.random import Rng


class Order(ABC):
    """Samples by global position."""

    @abstractmethod
    def at(self, p: int) -> int:
        """The number, in the data set, of the sample at position p from 0 on."""

    @abstractmethod
    def instead(self, p: int, tries: int) -> int:
        """What takes the place of a sample at p that cannot be read, and of `tries` - 1 others after it."""


@dataclass(frozen=True, eq=False)
class Shuffled(Order):
    """The samples `ids` (n,) int64, each once an epoch, every epoch in a new order."""

    ids: np.ndarray
    rng: Rng

    def at(self, p: int) -> int:
        return int(self.ids[self.rng.sample_id(p, len(self.ids))])

    def instead(self, p: int, tries: int) -> int:
        return int(self.ids[self.rng.key("substitute", p, tries) % len(self.ids)])
