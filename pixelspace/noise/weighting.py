"""Loss weights, as factors on the squared error of the network's output.

A weight w(sigma) on the error of `denoised` is c_out^2 w on that of the output, whatever the parametrisation.
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from pixelspace.config import value
from pixelspace.noise.clock import TableIndex
from pixelspace.noise.process import Coeffs
from pixelspace.noise.tables import Table, vdm_weights


class Weighting(ABC):
    """How much each noise level counts."""

    @abstractmethod
    def __call__(self, sigma: Tensor, c: Coeffs) -> Tensor:
        """The factor on the output's squared error, shaped as sigma."""


def _check_gamma(name: str, gamma: float) -> None:
    if gamma <= 0:
        raise ValueError(f"{name}: gamma must be positive, found {gamma}")


@value
class Unit(Weighting):
    """1 on the output's error; with EDM preconditioning, EDM's own weight."""

    def __call__(self, sigma: Tensor, c: Coeffs) -> Tensor:
        return torch.ones_like(sigma)


@value
class EDMWeight(Weighting):
    """(sigma^2 + sigma_data^2) / (sigma sigma_data)^2 on `denoised` (Karras et al. 2022, Table 1)."""

    sigma_data: float = 0.5

    def __post_init__(self) -> None:
        if self.sigma_data <= 0:
            raise ValueError(f"EDMWeight: sigma_data must be positive, found {self.sigma_data}")

    def __call__(self, sigma: Tensor, c: Coeffs) -> Tensor:
        return c.c_out**2 * (sigma**2 + self.sigma_data**2) / (sigma * self.sigma_data) ** 2


@value
class SNR(Weighting):
    """1 / sigma^2 on `denoised`: unit weight on the noise's error (Ho et al. 2020, Eq. 14)."""

    def __call__(self, sigma: Tensor, c: Coeffs) -> Tensor:
        return (c.c_out / sigma) ** 2


@value
class MinSNR(Weighting):
    """min(1 / sigma^2, gamma) on `denoised` (Hang et al. 2023)."""

    gamma: float = 5.0

    def __post_init__(self) -> None:
        _check_gamma("MinSNR", self.gamma)

    def __call__(self, sigma: Tensor, c: Coeffs) -> Tensor:
        return c.c_out**2 * (sigma**-2).clamp(max=self.gamma)


@value
class SoftMinSNR(Weighting):
    """1 / (sigma^2 + 1 / gamma) on `denoised` (Crowson et al. 2024, Eq. 4); gamma = 1 / sigma_data^2 in the paper."""

    gamma: float = 4.0

    def __post_init__(self) -> None:
        _check_gamma("SoftMinSNR", self.gamma)

    def __call__(self, sigma: Tensor, c: Coeffs) -> Tensor:
        return c.c_out**2 / (sigma**2 + 1 / self.gamma)


@value
class VDM(Weighting):
    """What each entry of a table adds to the variational bound (`vdm_weights`), over its mean, times the weight `on`.

    The original divides a batch's loss by the sum of its weights; the mean over the table is what that tends to in
    large batches, and does not tie one sample's loss to the others'.
    """

    table: Table
    on: Weighting = Unit()

    def __call__(self, sigma: Tensor, c: Coeffs) -> Tensor:
        weights = vdm_weights(self.table.gammas)[1:].to(sigma.dtype).to(sigma.device)
        entry = TableIndex(self.table)(sigma).round().long()
        return weights[entry] / weights.mean() * self.on(sigma, c)
