"""From a backbone and a process to `denoise(x, sigma) -> x0`: all that solvers see."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from pixelspace.noise.process import Process
from pixelspace.types import Cond

Denoise = Callable[[Tensor, Tensor], Tensor]
"""(x (B, ...), sigma broadcastable to x) to the estimate of x0."""

Backbone = Callable[[Tensor, Tensor, Cond], Tensor]


def denoiser(backbone: Backbone, process: Process, cond: Cond) -> Denoise:
    """The network's estimate of x0 under one condition."""

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        inputs, c_noise = process.inputs(x, sigma)
        return process.denoised(backbone(inputs, c_noise, cond).to(x.dtype), x, sigma)

    return denoise


def guided(backbone: Backbone, process: Process, cond: Cond, null: Cond, scale: float) -> Denoise:
    """`guided_by` of one network."""
    return guided_by(partial(denoiser, backbone, process), cond, null, scale)


def guided_by(under: Callable[[Cond], Denoise], cond: Cond, null: Cond, scale: float) -> Denoise:
    """Classifier-free guidance, D_null + scale (D_cond - D_null), both halves in one batch (Ho and Salimans 2022).

    `under` gives the denoiser under a condition. What `null` does not name, such as an image's size, holds for both.
    """
    denoise_both = under({key: torch.cat([null.get(key, rows), rows]) for key, rows in cond.items()})

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        sigma = sigma.expand(len(x), *sigma.shape[1:]) if sigma.ndim else sigma
        twice = torch.cat([sigma, sigma]) if sigma.ndim else sigma
        plain, conditioned = denoise_both(torch.cat([x, x]), twice).chunk(2)
        return plain + scale * (conditioned - plain)

    return denoise
