"""Guidance as functions from denoisers to denoisers, each elementwise in the images.

Guidance of one network by its condition is `denoiser.guided`, which runs both halves in one batch.
"""

import torch
from torch import Tensor

from pixelspace.errors import UserError
from pixelspace.sampling.denoiser import Denoise


def guidance_interval(guided: Denoise, plain: Denoise, low: float, high: float) -> Denoise:
    """`guided` where low < sigma <= high, else `plain` (Kynkäänniemi et al. 2024).

    Where all images of a call lie on one side, only that one is evaluated. sigma must be one level an image.
    """
    if not 0 <= low < high:
        raise UserError(f"guidance interval: needs 0 <= low < high, found {low} and {high}")

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        inside = (low < sigma) & (sigma <= high)
        some, every = torch.stack([inside.any(), inside.all()]).tolist()  # one wait for the device
        if some and not every:
            return torch.where(inside, guided(x, sigma), plain(x, sigma))
        return guided(x, sigma) if some else plain(x, sigma)

    return denoise


def autoguided(good: Denoise, bad: Denoise, scale: float) -> Denoise:
    """bad + scale (good - bad): guidance by a worse version of the model (Karras et al. 2024)."""
    if scale == 1:
        return good
    return lambda x, sigma: torch.lerp(bad(x, sigma), good(x, sigma), scale)


def scaled(denoise: Denoise, k: float | Tensor) -> Denoise:
    """The denoiser of y = x / k: denoise(k y, k sigma) / k, with k broadcastable to y.

    A pyramid packed into one row with each level's own k so runs on one schedule, with every solver.
    """
    return lambda y, sigma: denoise(k * y, k * sigma) / k
