"""Discrete schedules: noise levels that stand in a table, as original DDPM code has them.

A table has entries 0 to n: gamma = alpha^2 = 1 / (1 + sigma^2), computed in float64 and kept in float32, of which entry
0 is the clean image. Training takes the entries 1 to n alike; sampling in fewer steps takes some of them. The three
here are those of Matryoshka diffusion (Gu et al. 2024).
"""

import math
from abc import abstractmethod
from functools import cache

import torch
from torch import Tensor

from pixelspace.config import value
from pixelspace.errors import UserError
from pixelspace.noise.levels import Levels


def shifted(gammas: Tensor, ratio: float) -> Tensor:
    """A table whose signal-to-noise ratio is divided by `ratio`, in the table's own dtype."""
    return gammas if ratio == 1 else 1 / (1 + ratio / (gammas / (1 - gammas)))


def vdm_weights(gammas: Tensor) -> Tensor:
    """SNR(t - 1) / SNR(t) - 1 for each entry t, in the table's own dtype: what a step adds to the variational bound, of
    an eps loss (Kingma et al. 2021). Entries 0 and 1, before which all is clean, have that of entry 2."""
    before, here = gammas[1:-1], gammas[2:]
    weights = before * (1 - here) / (1 - before) / here - 1
    return torch.cat([weights[:1], weights[:1], weights])


class Table(Levels):
    """The levels of a table: entry ceil(n u) at quantile u. `rescale` divides the signal-to-noise ratio of all."""

    steps: int
    rescale: float

    def __post_init__(self) -> None:
        if self.steps < 2:
            raise ValueError(f"{type(self).__name__}: steps must be at least 2, found {self.steps}")
        if self.rescale <= 0:
            raise ValueError(f"{type(self).__name__}: rescale must be positive, found {self.rescale}")

    @abstractmethod
    def signal(self) -> Tensor:
        """(steps + 1,) float64: gamma of each entry before `rescale`, falling from 1."""

    @property
    def gammas(self) -> Tensor:
        """(steps + 1,) float32: gamma of each entry."""
        return _gammas(self)

    @property
    def sigmas(self) -> Tensor:
        """(steps + 1,) float64: sigma of each entry, from 0 on."""
        return _sigmas(self)

    def __call__(self, u: Tensor) -> Tensor:
        entry = (u.double() * self.steps).ceil().long().clamp(1, self.steps)
        return self.sigmas.to(u.device)[entry].to(u.dtype)

    def entries(self, steps: int) -> Tensor:
        """(steps + 1,) int64: the entries from which sampling goes in so many steps, evenly from the highest to 0.

        As originally, sampling in fewer steps than n begins below entry n.

        Raises:
            UserError: more steps than the table has.
        """
        if steps > self.steps:
            name = type(self).__name__
            raise UserError(f"steps {steps}: the levels are {name}'s, which has {self.steps}; ask for as many or fewer")
        places = torch.arange(steps + 1, dtype=torch.float64)
        return (places * (self.steps + 1) / (steps + 1)).round().long().flip(0)  # halves to the even entry

    def schedule(self, steps: int) -> Tensor:
        return self.sigmas[self.entries(steps)[:-1]]


@cache
def _gammas(table: Table) -> Tensor:
    return shifted(table.signal().float(), table.rescale)


@cache
def _sigmas(table: Table) -> Tensor:
    gammas = table.gammas.double()
    return ((1 - gammas) / gammas).sqrt()


def _clean_first(gammas: Tensor) -> Tensor:
    return torch.cat([torch.ones(1, dtype=torch.float64), gammas])


@value
class SquaredCosine(Table):
    """cos^2 of the time, in steps that keep at least 0.001 of the signal (Nichol and Dhariwal 2021, Eq. 17)."""

    steps: int = 1000
    rescale: float = 1.0

    def signal(self) -> Tensor:
        time = torch.arange(self.steps + 1, dtype=torch.float64) / self.steps
        share = ((time + 0.008) / 1.008 * (math.pi / 2)).cos() ** 2
        betas = (1 - share[1:] / share[:-1]).clamp(max=0.999)
        return _clean_first((1 - betas).log().cumsum(0).exp())


@value
class LinearBeta(Table):
    """beta rises evenly from step to step (Ho et al. 2020, section 4)."""

    steps: int = 1000
    beta_start: float = 1e-4
    beta_end: float = 0.02
    rescale: float = 1.0

    def __post_init__(self) -> None:
        Table.__post_init__(self)
        if not 0 < self.beta_start <= self.beta_end < 1:
            found = f"{self.beta_start} and {self.beta_end}"
            raise ValueError(f"LinearBeta: needs 0 < beta_start <= beta_end < 1, found {found}")

    def signal(self) -> Tensor:
        betas = torch.linspace(self.beta_start, self.beta_end, self.steps, dtype=torch.float64)
        return _clean_first((1 - betas).cumprod(0))


@value
class LimitedCosine(Table):
    """The cosine schedule between log-SNR 5 and -5, both ends included."""

    steps: int = 1000
    rescale: float = 1.0

    def signal(self) -> Tensor:
        low, high = math.atan(math.exp(-2.5)), math.atan(math.exp(2.5))
        angle = (high - low) * torch.linspace(0, 1, self.steps, dtype=torch.float64) + low
        return _clean_first((-2 * angle.tan().log()).sigmoid())
