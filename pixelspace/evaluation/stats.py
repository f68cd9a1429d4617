"""Mean and covariance of features, in float64 and in any number of parts."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from pixelspace.errors import DataError
from pixelspace.evaluation.rows import check_rows


@dataclass(frozen=True)
class Moments:
    """Of `count` rows (0: a file did not say): their mean (D,) and covariance (D, D), both float64 on the CPU.

    The covariance has the divisor count - 1, as everywhere but in StyleGAN's code.
    """

    count: int
    mean: Tensor
    cov: Tensor


class Accumulator:
    """Moments of rows that come in batches; equal to rounding for every order and split (Chan et al. 1979)."""

    def __init__(self) -> None:
        self.count = 0
        self._mean = self._squares = torch.zeros(0, dtype=torch.float64)

    def add(self, rows: Tensor) -> None:
        """Takes rows (n, D) in.

        Raises:
            DataError: other shapes, another width than before, or a number that is not finite.
        """
        if not len(rows):
            return
        check_rows(rows, "features", first=self.count)
        part = rows.detach().cpu().double()
        mean = part.mean(0)
        centred = part - mean
        self._merge(len(part), mean, centred.T @ centred)

    def merge(self, other: "Accumulator") -> None:
        """Takes in all that another one has.

        Raises:
            DataError: of another width.
        """
        if other.count:
            self._merge(other.count, other._mean, other._squares)

    def _merge(self, count: int, mean: Tensor, squares: Tensor) -> None:
        if not self.count:
            self.count, self._mean, self._squares = count, mean.clone(), squares.clone()
            return
        if len(mean) != len(self._mean):
            raise DataError(f"features: rows of {len(mean)} numbers after rows of {len(self._mean)}")
        total = self.count + count
        step = mean - self._mean
        self._mean += step * (count / total)
        self._squares += squares + torch.outer(step, step) * (self.count * count / total)
        self.count = total

    def moments(self) -> Moments:
        """Of all rows so far.

        Raises:
            DataError: fewer than two rows.
        """
        if self.count < 2:
            raise DataError(f"features: a covariance needs two rows or more, found {self.count}")
        return Moments(self.count, self._mean.clone(), self._squares / (self.count - 1))


def moments(parts: Iterable[Tensor]) -> Moments:
    """Of the rows (n, D) of all parts."""
    sums = Accumulator()
    for part in parts:
        sums.add(part)
    return sums.moments()
