"""The one noise process, x = x0 + sigma * noise, and what a network predicts in it, by EDM's four coefficients.

Every parametrisation of the field is a `Precond`: denoised = c_skip x + c_out F(c_in x, c_noise) (Karras et al. 2022,
Eq. 7). Variance preserving and rectified-flow models are the same process with another c_in: their scaled state is
c_in x. `c_noise` is the `Clock`'s word for sigma / shift, ln(sigma) / 4 unless a network was trained with another.
"""

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor

from pixelspace.config import value
from pixelspace.noise.clock import Clock, LogSigma


class Coeffs(NamedTuple):
    """c_skip, c_out and c_in at some sigma, each shaped as that sigma."""

    c_skip: Tensor
    c_out: Tensor
    c_in: Tensor


class Precond(ABC):
    """What the network's output means. `says_noise`: all of the noise is in it, as in eps and v."""

    says_noise = False

    @abstractmethod
    def __call__(self, sigma: Tensor) -> Coeffs:
        """The coefficients at `sigma`, elementwise."""


@value
class EDM(Precond):
    """Unit-variance input and target for data of standard deviation `sigma_data` (Karras et al. 2022, Table 1)."""

    sigma_data: float = 0.5

    def __post_init__(self) -> None:
        if self.sigma_data <= 0:
            raise ValueError(f"EDM: sigma_data must be positive, found {self.sigma_data}")

    def __call__(self, sigma: Tensor) -> Coeffs:
        total = (sigma**2 + self.sigma_data**2).sqrt()
        return Coeffs((self.sigma_data / total) ** 2, sigma * self.sigma_data / total, 1 / total)


@value
class VPEps(Precond):
    """Variance-preserving input, noise prediction (Ho et al. 2020)."""

    says_noise = True

    def __call__(self, sigma: Tensor) -> Coeffs:
        return Coeffs(torch.ones_like(sigma), -sigma, (1 + sigma**2).rsqrt())


@value
class VPV(Precond):
    """Variance-preserving input, v = alpha noise - sigma_vp x0 (Salimans and Ho 2022)."""

    says_noise = True

    def __call__(self, sigma: Tensor) -> Coeffs:
        alpha = (1 + sigma**2).rsqrt()
        return Coeffs(alpha**2, -sigma * alpha, alpha)


@value
class X0(Precond):
    """Variance-preserving input, prediction of the clean image itself."""

    def __call__(self, sigma: Tensor) -> Coeffs:
        return Coeffs(torch.zeros_like(sigma), torch.ones_like(sigma), (1 + sigma**2).rsqrt())


@value
class RectifiedFlow(Precond):
    """Straight paths x_t = (1 - t) x0 + t noise with t = sigma / (1 + sigma), velocity noise - x0 (Liu et al. 2022)."""

    says_noise = True

    def __call__(self, sigma: Tensor) -> Coeffs:
        scale = 1 / (1 + sigma)
        return Coeffs(scale, -sigma * scale, scale)


def expand(sigma: Tensor, x: Tensor) -> Tensor:
    """`sigma` of shape (B,) or () with trailing ones, so that it broadcasts to x (B, ...)."""
    return sigma.reshape(sigma.shape + (1,) * (x.ndim - sigma.ndim)) if sigma.ndim <= 1 else sigma


@value
class Process:
    """Corruption and its undoing, for sigma of shape (B,) or broadcastable to x.

    `shift` divides sigma before the noise embedding alone: a network that learnt its levels at 64 px and now works at
    256 px is as noisy at 4 sigma as it was at sigma, and is asked about sigma (Hoogeboom et al. 2023, section 3.1).
    """

    precond: Precond
    shift: float = 1.0
    clock: Clock = LogSigma()

    def __post_init__(self) -> None:
        if self.shift <= 0:
            raise ValueError(f"Process: shift must be positive, found {self.shift}")

    def corrupt(self, x0: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
        """x = x0 + sigma noise."""
        return x0 + expand(sigma, x0) * noise

    def c_noise(self, sigma: Tensor) -> Tensor:
        """What a backbone is told of sigma, elementwise."""
        return self.clock(sigma / self.shift)

    def inputs(self, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """All a backbone sees: c_in x, and c_noise (B,)."""
        scaled = self.precond(expand(sigma, x)).c_in * x
        return scaled, self.c_noise(sigma).reshape(-1).expand(x.shape[0])

    def target(self, x0: Tensor, x: Tensor, sigma: Tensor) -> Tensor:
        """What the network should say: (x0 - c_skip x) / c_out."""
        c = self.precond(expand(sigma, x))
        return (x0 - c.c_skip * x) / c.c_out

    def denoised(self, out: Tensor, x: Tensor, sigma: Tensor) -> Tensor:
        """The estimate of x0 that the network's output means: c_skip x + c_out out."""
        c = self.precond(expand(sigma, x))
        return c.c_skip * x + c.c_out * out
