"""The samplers that Karras et al. 2022 compare in their Table 1: the ODE in other times than sigma itself.

A schedule says which sigma(t) the steps are straight in, a scaling which x is multiplied by. These are for comparisons;
they are not in `SOLVERS` because a change of sigma's unit changes them, which a packed pyramid does not allow.
"""

import math
from abc import ABC, abstractmethod
from itertools import pairwise
from typing import Literal

from torch import Tensor

from pixelspace.config import value
from pixelspace.sampling.denoiser import Denoise
from pixelspace.sampling.step import Callback, Step, column
from pixelspace.sampling.step import schedule as checked


class Time(ABC):
    """sigma as a function of time."""

    @abstractmethod
    def sigma(self, t: float) -> float:
        """The noise level at t."""

    @abstractmethod
    def slope(self, t: float) -> float:
        """d sigma / d t."""

    @abstractmethod
    def inverse(self, sigma: float) -> float:
        """t at a noise level."""


@value
class LinearTime(Time):
    """sigma(t) = t, EDM's choice."""

    def sigma(self, t: float) -> float:
        return t

    def slope(self, t: float) -> float:
        return 1.0

    def inverse(self, sigma: float) -> float:
        return sigma


@value
class VETime(Time):
    """sigma(t) = sqrt(t) (Song et al. 2021, variance exploding)."""

    def sigma(self, t: float) -> float:
        return math.sqrt(t)

    def slope(self, t: float) -> float:
        return 0.5 / math.sqrt(t)

    def inverse(self, sigma: float) -> float:
        return sigma**2


@value
class VPTime(Time):
    """sigma(t) = sqrt(e^(beta_d t^2 / 2 + beta_min t) - 1) (Song et al. 2021, variance preserving)."""

    beta_d: float = 19.1
    beta_min: float = 0.1

    def sigma(self, t: float) -> float:
        return math.sqrt(math.expm1(self.beta_d * t**2 / 2 + self.beta_min * t))

    def slope(self, t: float) -> float:
        sigma = self.sigma(t)
        return 0.5 * (self.beta_min + self.beta_d * t) * (sigma + 1 / sigma)

    def inverse(self, sigma: float) -> float:
        return (math.sqrt(self.beta_min**2 + 2 * self.beta_d * math.log1p(sigma**2)) - self.beta_min) / self.beta_d


def in_time(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    *,
    time: Time,
    preserving: bool = False,
    solver: Literal["euler", "heun"] = "heun",
    callback: Callback | None = None,
) -> Tensor:
    """Euler's or Heun's method in `time` (Karras et al. 2022, Algorithm 1), from x = x0 + sigma noise at sigmas[0] to
    x0; `preserving` scales x by 1 / sqrt(1 + sigma^2) on the way, so that its variance stays."""

    def scale(t: float) -> float:
        return 1 / math.sqrt(1 + time.sigma(t) ** 2) if preserving else 1.0

    def estimate(y: Tensor, t: float) -> Tensor:
        return denoise(y / scale(t), column(time.sigma(t), y))

    def slope(y: Tensor, denoised: Tensor, t: float) -> Tensor:
        sigma, rate = time.sigma(t), time.slope(t)
        shrink = -sigma * rate / (1 + sigma**2) if preserving else 0.0  # of ln scale
        return (rate / sigma + shrink) * y - (rate * scale(t) / sigma) * denoised

    times = [time.inverse(sigma) if sigma else 0.0 for sigma in checked(sigmas)]
    y = x * scale(times[0])
    for i, (t, t_next) in enumerate(pairwise(times)):
        denoised = estimate(y, t)
        if callback is not None:
            callback(Step(i, y / scale(t), time.sigma(t), time.sigma(t), denoised))
        here = slope(y, denoised, t)
        there = y + (t_next - t) * here
        if t_next == 0 or solver == "euler":
            y = there
        else:
            y = y + ((t_next - t) / 2) * (here + slope(there, estimate(there, t_next), t_next))
    return y / scale(times[-1])
