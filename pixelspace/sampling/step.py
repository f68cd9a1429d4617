"""What every solver shares: its interfaces, the checks of what it is given, and the formulas of one step.

The mathematics of noise levels is in Python floats (float64 CPU tensors where each image has its own), so that a step
neither waits for the device nor needs float64 on it; the state keeps its dtype.
"""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from pixelspace.errors import UserError
from pixelspace.sampling.denoiser import Denoise

Level = float | Tensor
"""A sigma: a float, or (B,) float64 on the CPU where each image has its own."""

Noise = Callable[..., Tensor]
"""noise(sigma, sigma_next) -> N(0, I) shaped as x; both arguments are a `Level`."""


class Counts(NamedTuple):
    """What an adaptive solver has spent on each image so far, (B,) int64 each; nfe counts evaluations of denoise."""

    steps: Tensor
    nfe: Tensor
    n_accept: Tensor
    n_reject: Tensor


class Step(NamedTuple):
    """What a solver's callback sees once a step: x at sigma_hat (sigma, or above it after churn) and its `denoised`."""

    index: int
    x: Tensor
    sigma: Level
    sigma_hat: Level
    denoised: Tensor
    counts: Counts | None = None


Callback = Callable[[Step], object]


def schedule(sigmas: Tensor) -> list[float]:
    """The levels of a schedule that decreases; the last may be 0.

    Raises:
        UserError: any other shape or order, or a level that is negative or not finite.
    """
    if sigmas.ndim != 1 or len(sigmas) < 2:
        raise UserError(f"sigmas: expected a row of at least two levels, found shape {tuple(sigmas.shape)}")
    levels = [float(sigma) for sigma in sigmas.tolist()]
    if not (all(high > low for high, low in pairwise(levels)) and levels[-1] >= 0 and math.isfinite(levels[0])):
        raise UserError(f"sigmas: expected finite levels that decrease to 0 or above, found {levels}")
    return levels


def check(solver: str, **faults: tuple[bool, str, object]) -> None:
    """Refuses settings: each fault is (is it one, what was expected, what was found), under the setting's name.

    Raises:
        UserError: naming the solver and the first faulty setting.
    """
    for name, (faulty, expected, found) in faults.items():
        if faulty:
            raise UserError(f"{solver}: {name} must be {expected}, found {found!r}")


def checked_noise(noise: Noise | None, x: Tensor, solver: str, needed: bool) -> Noise:
    """`noise` with its results checked and cast to x's dtype; zeros for None where none is `needed`.

    Raises:
        UserError: None where noise is needed, or (at the call) noise of another shape than x.
    """
    if noise is None:
        if needed:
            raise UserError(f"{solver} draws noise at these settings; pass noise=, such as brownian(...)")
        return lambda sigma, sigma_next: x.new_zeros(())

    def checked(sigma: Level, sigma_next: Level) -> Tensor:
        z = noise(sigma, sigma_next)
        if z.shape != x.shape:
            raise UserError(f"{solver}: noise must have x's shape {tuple(x.shape)}, found {tuple(z.shape)}")
        return z.to(x.dtype)

    return checked


def column(level: Level, x: Tensor) -> Tensor:
    """A level as a tensor (B, 1, ..., 1) that broadcasts to x, in its dtype and on its device."""
    shape = (len(x),) + (1,) * (x.ndim - 1)
    return level.to(x.dtype).to(x.device).reshape(shape) if isinstance(level, Tensor) else x.new_full(shape, level)


def observed(denoise: Denoise, callback: Callback | None) -> Callable[[int, Tensor, float, float], Tensor]:
    """(index, x, sigma, sigma_hat) -> denoised at sigma_hat: a step's first evaluation, told to the callback."""

    def evaluate(index: int, x: Tensor, sigma: float, sigma_hat: float) -> Tensor:
        denoised = denoise(x, column(sigma_hat, x))
        if callback is not None:
            callback(Step(index, x, sigma, sigma_hat, denoised))
        return denoised

    return evaluate


def slope(x: Tensor, denoised: Tensor, sigma: float) -> Tensor:
    """dx/dsigma of the probability-flow ODE (Karras et al. 2022, Algorithm 1)."""
    return (x - denoised) / sigma


def towards(denoised: Tensor, x: Tensor, ratio: float) -> Tensor:
    """x at sigma_next = ratio sigma if `denoised` held all the way: an Euler step, which is DDIM; at 0 `denoised`."""
    return torch.lerp(denoised, x, ratio)


def ancestral(sigma: float, sigma_next: float, eta: float) -> tuple[float, float]:
    """(sigma_down, sigma_up): go down to the first, then add noise of the second to stand at sigma_next.

    eta = 1 is DDPM's split, eta = 0 adds nothing (Song et al. 2021, DDIM, Eq. 16, in terms of sigma).
    """
    up = min(sigma_next, eta * sigma_next * math.sqrt(1 - (sigma_next / sigma) ** 2))
    return math.sqrt(sigma_next**2 - up**2), up
