"""Noise levels: a `Levels` is the quantile function u in (0, 1) -> sigma, increasing.

The same object serves training (stratified u) and sampling (a grid of u), and can be plotted. Densities follow the
papers named at each; the parameters of k-diffusion's configurations are in `interop.k_diffusion`. Levels that stand in
a table are in `noise.tables`.
"""

import math
from abc import ABC, abstractmethod
from functools import cache

import torch
from torch import Tensor

from pixelspace.config import value


class Levels(ABC):
    """A distribution of sigma, by its quantile function."""

    @abstractmethod
    def __call__(self, u: Tensor) -> Tensor:
        """sigma at quantile u, elementwise, in u's dtype."""

    def schedule(self, steps: int) -> Tensor:
        """(steps,) float64: the levels that sampling visits, from the highest to the lowest."""
        return self(torch.linspace(1, 0, steps, dtype=torch.float64))


def _check_range(name: str, low: float, high: float) -> None:
    if not 0 < low < high:
        raise ValueError(f"{name}: needs 0 < sigma_min < sigma_max, found {low} and {high}")


def _check_positive(name: str, **settings: float) -> None:
    for key, number in settings.items():
        if number <= 0:
            raise ValueError(f"{name}: {key} must be positive, found {number}")


def _lerp(low: float, high: float, u: Tensor) -> Tensor:
    return low + (high - low) * u


def _interior(u: Tensor) -> Tensor:
    return u * (1 - 2e-7) + 1e-7  # keeps unbounded quantiles finite at u = 0 and 1


@value
class Karras(Levels):
    """Even in sigma^(1/rho) (Karras et al. 2022, Eq. 5)."""

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0

    def __post_init__(self) -> None:
        _check_range("Karras", self.sigma_min, self.sigma_max)
        _check_positive("Karras", rho=self.rho)

    def __call__(self, u: Tensor) -> Tensor:
        return _lerp(self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho), u) ** self.rho


@value
class LogUniform(Levels):
    """Even in ln sigma; as a grid, the exponential schedule. `rho` other than 1 makes it polyexponential."""

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 1.0

    def __post_init__(self) -> None:
        _check_range("LogUniform", self.sigma_min, self.sigma_max)
        _check_positive("LogUniform", rho=self.rho)

    def __call__(self, u: Tensor) -> Tensor:
        return _lerp(math.log(self.sigma_min), math.log(self.sigma_max), u**self.rho).exp()


@value
class VP(Levels):
    """The continuous variance-preserving schedule, even in its time from eps to 1 (Song et al. 2021, Eq. 32)."""

    beta_d: float = 19.9
    beta_min: float = 0.1
    eps: float = 1e-3

    def __post_init__(self) -> None:
        _check_positive("VP", beta_d=self.beta_d, beta_min=self.beta_min, eps=self.eps)

    def __call__(self, u: Tensor) -> Tensor:
        t = _lerp(self.eps, 1.0, u)
        return (self.beta_d * t**2 / 2 + self.beta_min * t).expm1().sqrt()


@cache
def _iddpm_table(steps: int, low: float, high: float) -> Tensor:
    alpha_bar = [math.sin(0.5 * math.pi * j / steps / 1.008) ** 2 for j in range(steps + 1)]
    found = [0.0]
    for j in range(steps, 0, -1):
        found.append(math.sqrt((found[-1] ** 2 + 1) / max(alpha_bar[j - 1] / alpha_bar[j], 0.001) - 1))
    return torch.tensor([sigma for sigma in found if low <= sigma <= high], dtype=torch.float64)


@value
class IDDPM(Levels):
    """The levels of improved DDPM's cosine schedule in `steps` steps (Karras et al. 2022, Table 1), each as likely."""

    sigma_min: float = 0.002
    sigma_max: float = 81.0
    steps: int = 1000

    def __post_init__(self) -> None:
        _check_range("IDDPM", self.sigma_min, self.sigma_max)
        _check_positive("IDDPM", steps=self.steps)
        if not len(_iddpm_table(self.steps, self.sigma_min, self.sigma_max)):
            raise ValueError(f"IDDPM: no level lies between sigma_min {self.sigma_min} and sigma_max {self.sigma_max}")

    def __call__(self, u: Tensor) -> Tensor:
        table = _iddpm_table(self.steps, self.sigma_min, self.sigma_max)
        last = len(table) - 1
        place = last - (last * (1 - u.double()) + 0.5).floor().long()
        return table.to(u.device)[place].to(u.dtype)


@value
class LogNormal(Levels):
    """ln sigma ~ N(loc, scale^2) (Karras et al. 2022, Table 1)."""

    loc: float = -1.2
    scale: float = 1.2

    def __post_init__(self) -> None:
        _check_positive("LogNormal", scale=self.scale)

    def __call__(self, u: Tensor) -> Tensor:
        return (self.loc + self.scale * torch.special.ndtri(_interior(u))).exp()


@value
class SplitLogNormal(Levels):
    """ln sigma with its own normal scale on each side of `loc`, continuous there."""

    loc: float
    scale_low: float
    scale_high: float

    def __post_init__(self) -> None:
        _check_positive("SplitLogNormal", scale_low=self.scale_low, scale_high=self.scale_high)

    def __call__(self, u: Tensor) -> Tensor:
        u, share = _interior(u), self.scale_low / (self.scale_low + self.scale_high)
        low = self.loc + self.scale_low * torch.special.ndtri((u / (2 * share)).clamp(max=0.5))
        high = self.loc - self.scale_high * torch.special.ndtri(((1 - u) / (2 * (1 - share))).clamp(max=0.5))
        return torch.where(u < share, low, high).exp()


@value
class LogLogistic(Levels):
    """ln sigma ~ Logistic(loc, scale), cut to [sigma_min, sigma_max]; a `sigma_max` of None is no bound."""

    loc: float
    scale: float = 0.5
    sigma_min: float = 0.0
    sigma_max: float | None = None

    def __post_init__(self) -> None:
        _check_positive("LogLogistic", scale=self.scale)
        if self.sigma_min < 0 or (self.sigma_max is not None and self.sigma_max <= self.sigma_min):
            raise ValueError(f"LogLogistic: needs 0 <= sigma_min < sigma_max, found {self.sigma_min}, {self.sigma_max}")

    def _cdf(self, sigma: float) -> float:
        return 1 / (1 + math.exp(-(math.log(sigma) - self.loc) / self.scale)) if sigma > 0 else 0.0

    def __call__(self, u: Tensor) -> Tensor:
        high = 1.0 if self.sigma_max is None else self._cdf(self.sigma_max)
        v = _lerp(self._cdf(self.sigma_min), high, u.double())
        return (self.loc + self.scale * v.clamp(1e-15, 1 - 1e-15).logit()).exp().to(u.dtype)


@value
class Cosine(Levels):
    """The cosine schedule, even in the angle atan(sigma / sigma_data) (Salimans and Ho 2022; Nichol and Dhariwal 2021).

    `shift` multiplies sigma / sigma_data: simple diffusion's schedule for images `shift` times larger than those it
    was tuned on (Hoogeboom et al. 2023, Eq. 4).
    """

    sigma_data: float = 1.0
    sigma_min: float = 1e-3
    sigma_max: float = 1e3
    shift: float = 1.0

    def __post_init__(self) -> None:
        _check_range("Cosine", self.sigma_min, self.sigma_max)
        _check_positive("Cosine", sigma_data=self.sigma_data, shift=self.shift)

    def __call__(self, u: Tensor) -> Tensor:
        scale = self.sigma_data * self.shift
        return scale * _lerp(math.atan(self.sigma_min / scale), math.atan(self.sigma_max / scale), u).tan()


@value
class CosineInterpolated(Levels):
    """Cosine schedules shifted for two sizes, interpolated in ln sigma (Crowson et al. 2024, section 4.4).

    At the noisy end the schedule is that of an image of `noise_d_low` pixels, at the clean end of `noise_d_high`;
    `image_d` is the size that is trained.
    """

    image_d: float
    noise_d_low: float = 32.0
    noise_d_high: float = 32.0
    sigma_data: float = 0.5
    sigma_min: float = 1e-3
    sigma_max: float = 1e3

    def __post_init__(self) -> None:
        _check_range("CosineInterpolated", self.sigma_min, self.sigma_max)
        sizes = {"image_d": self.image_d, "noise_d_low": self.noise_d_low, "noise_d_high": self.noise_d_high}
        _check_positive("CosineInterpolated", sigma_data=self.sigma_data, **sizes)

    def _shifted(self, noise_d: float, u: Tensor) -> Tensor:
        shifted = Cosine(self.sigma_data, self.sigma_min, self.sigma_max, self.image_d / noise_d)
        return shifted(u).log()

    def __call__(self, u: Tensor) -> Tensor:
        low, high = self._shifted(self.noise_d_low, u), self._shifted(self.noise_d_high, u)
        return (u * low + (1 - u) * high).exp()


def grid(levels: Levels, steps: int) -> Tensor:
    """(steps + 1,) float64 sampling schedule: `steps` levels from the highest to the lowest, then 0.

    Raises:
        ValueError: `steps` below 1, or more than a table of levels has.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, found {steps}")
    return torch.cat([levels.schedule(steps), torch.zeros(1, dtype=torch.float64)])
