"""Keeping a denoised image in range, as functions of x0 (B, ...) in [-1, 1]."""

from collections.abc import Callable
from functools import partial

from torch import Tensor

from pixelspace.sampling.denoiser import Denoise


def clip(x0: Tensor) -> Tensor:
    """x0 cut to [-1, 1]."""
    return x0.clamp(-1, 1)


def dynamic(x0: Tensor, quantile: float, highest: float) -> Tensor:
    """x0 cut to [-s, s] and divided by s: each image's `quantile` of |x0|, at least 1 and at most `highest` (Saharia et
    al. 2022)."""
    s = x0.flatten(1).abs().quantile(quantile, 1).clamp(1, highest)
    s = s.reshape(-1, *(1,) * (x0.ndim - 1))
    return x0.clamp(-s, s) / s


THRESHOLDS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda x0: x0,
    "clip": clip,
    "dynamic": partial(dynamic, quantile=0.995, highest=100.0),
    "deepfloyd": partial(dynamic, quantile=0.95, highest=1.5),
}


def thresholded(denoise: Denoise, threshold: Callable[[Tensor], Tensor]) -> Denoise:
    """`threshold` of what `denoise` says."""
    return lambda x, sigma: threshold(denoise(x, sigma))
