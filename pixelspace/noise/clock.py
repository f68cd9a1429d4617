"""What a network is told of sigma: c_noise."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from pixelspace.config import value
from pixelspace.noise.tables import Table


class Clock(ABC):
    """c_noise as a function of sigma."""

    @abstractmethod
    def __call__(self, sigma: Tensor) -> Tensor:
        """c_noise at `sigma`, elementwise, in its dtype."""


@value
class LogSigma(Clock):
    """ln(sigma) / 4 (Karras et al. 2022, Table 1)."""

    def __call__(self, sigma: Tensor) -> Tensor:
        return sigma.log() / 4


@value
class TableIndex(Clock):
    """The time of a discrete schedule: t - 1 at its entry t, exactly, and even in ln sigma between two entries.

    Levels beyond either end are told as that end: the network learnt no others.
    """

    table: Table

    def __call__(self, sigma: Tensor) -> Tensor:
        entries = self.table.sigmas[1:].to(sigma.dtype).to(sigma.device)
        sigma = sigma.contiguous().clamp(entries[0], entries[-1])
        below = (torch.searchsorted(entries, sigma, right=True) - 1).clamp(max=len(entries) - 2)
        low, high = entries[below], entries[below + 1]
        return below + (sigma / low).log() / (high / low).log()
