"""Exact log-likelihood of images under the probability-flow ODE (Song et al. 2021).

The ODE is integrated in t = ln sigma, dx/dt = x - D(x; sigma), by the 5(4) pair of Dormand and Prince (1980) with
adaptive steps, along with the divergence of its right side as Hutchinson's estimate v' J v.
"""

import math

import torch
from torch import Tensor

from pixelspace.errors import NumericalError, UserError
from pixelspace.sampling.denoiser import Denoise
from pixelspace.sampling.step import column

_NODES = (0.0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0)
_ROWS = (
    (),
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
_ERROR = (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)


def _rademacher(x: Tensor, generator: torch.Generator) -> Tensor:
    bits = torch.randint(0, 2, x.shape, generator=generator, device=generator.device)
    return bits.to(x) * 2 - 1


def _sum(weights: tuple[float, ...], slopes: list[Tensor]) -> Tensor:
    return sum((slope * weight for weight, slope in zip(weights, slopes, strict=True)), torch.zeros_like(slopes[0]))


def log_likelihood(
    denoise: Denoise,
    x: Tensor,
    sigma_min: float,
    sigma_max: float,
    *,
    rtol: float = 1e-4,
    atol: float = 1e-4,
    v: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """(B,) float64 nats on the CPU: an unbiased estimate of ln p(x) at sigma_min, given N(0, sigma_max^2) at sigma_max.

    `v`, shaped as x, is the probe of the divergence: E v v' = I; else one of signs is drawn from `generator`. The step
    is set by the worst image, so that all of a batch meet the tolerances. `denoise` must be differentiable in x.

    Raises:
        UserError: a bad range or tolerance, neither v nor a generator, or a denoiser without gradients.
        NumericalError: values that aren't finite, or no step small enough for the tolerances.
    """
    if not 0 < sigma_min < sigma_max:
        raise UserError(f"log_likelihood: needs 0 < sigma_min < sigma_max, found {sigma_min} and {sigma_max}")
    if not (rtol >= 0 and atol > 0):
        raise UserError(f"log_likelihood: needs rtol of 0 or more and a positive atol, found {rtol} and {atol}")
    if v is None and generator is None:
        raise UserError("log_likelihood draws a probe; pass v= or generator=")
    probe = v.to(x) if v is not None else _rademacher(x, generator or torch.Generator())
    if probe.shape != x.shape:
        raise UserError(f"log_likelihood: v must have x's shape {tuple(x.shape)}, found {tuple(probe.shape)}")

    def slope(t: float, x: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            denoised = denoise(x, column(math.exp(t), x))
            if not denoised.requires_grad:
                raise UserError("log_likelihood: denoise must be differentiable in x; call it without no_grad inside")
            d = x - denoised
            (pulled,) = torch.autograd.grad(d, x, probe)
        divergence = (pulled * probe).flatten(1).sum(1)
        return d.detach(), divergence.cpu().double()

    def misfit(error: Tensor, before: Tensor, after: Tensor) -> float:
        scaled = error / (atol + rtol * torch.maximum(before.abs(), after.abs()))
        return float(scaled.reshape(len(x), -1).square().mean(1).max().sqrt())

    x, change = x.detach(), torch.zeros(len(x), dtype=torch.float64)
    t, t_end = math.log(sigma_min), math.log(sigma_max)
    h, first = 0.01 * (t_end - t), slope(t, x)
    while t < t_end:
        h = min(h, t_end - t)
        slopes = [first]
        there, total = x, change
        for node, row in zip(_NODES[1:], _ROWS[1:], strict=True):
            there = x + _sum(row, [d for d, _ in slopes]) * h
            total = change + _sum(row, [div for _, div in slopes]) * h
            slopes.append(slope(t + node * h, there))
        error = max(
            misfit(_sum(_ERROR, [d for d, _ in slopes]) * h, x, there),
            misfit(_sum(_ERROR, [div for _, div in slopes]) * h, change, total),
        )
        if not math.isfinite(error):
            raise NumericalError(f"log_likelihood: the denoiser is not finite near sigma {math.exp(t):.4g}")
        if error <= 1:
            t, x, change, first = t_end if h == t_end - t else t + h, there, total, slopes[-1]
        h *= min(max(0.9 * (error + 1e-12) ** -0.2, 0.2), 5.0)
        if t < t_end and t + h == t:
            raise NumericalError(f"log_likelihood: no step meets rtol {rtol}, atol {atol} near sigma {math.exp(t):.4g}")
    energy = (x / sigma_max).square().flatten(1).sum(1).cpu().double()
    size = x[0].numel()
    return change - energy / 2 - size * (math.log(sigma_max) + math.log(2 * math.pi) / 2)
