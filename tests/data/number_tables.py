"""Data sets of nothing but numbers, for the tests of filters and orders."""

from dataclasses import dataclass, field

import numpy as np
import torch

from pixelspace.data.dataset import Dataset, Sample


@dataclass(frozen=True)
class Table(Dataset):
    """Samples that are their own number, with columns; `per_file` lie together in each file."""

    numbers: dict[str, np.ndarray] = field(default_factory=dict)
    count: int = 0
    per_file: int = 0
    prefix: str = ""

    classes = ()

    @property
    def fingerprint(self) -> str:
        return f"table {self.prefix} {len(self)}"

    def __len__(self) -> int:
        return self.count or len(next(iter(self.numbers.values())))

    def name(self, index: int) -> str:
        return f"{self.prefix}{index}"

    def __getitem__(self, index: int) -> Sample:
        return Sample(torch.full((3, 8, 8), index % 256, dtype=torch.uint8), texts=(str(index),))

    def columns(self) -> tuple[str, ...]:
        return *super().columns(), *self.numbers

    def column(self, name: str) -> np.ndarray:
        return self.numbers[name] if name in self.numbers else super().column(name)

    def files(self) -> np.ndarray:
        return np.arange(0, len(self), self.per_file) if self.per_file else super().files()


def sized(heights, widths) -> Table:
    return Table({"height": np.asarray(heights, dtype=float), "width": np.asarray(widths, dtype=float)})
