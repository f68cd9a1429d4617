"""A pyramid of images as one tensor, so that every solver, guidance and schedule runs on it unchanged.

The levels stand in one row y (B, N), each divided by its k, so that all have one sigma: y = x0 / k + sigma noise.
Solvers are elementwise, so each level goes as it would by itself on k sigma; ancestral Euler steps are DDPM and DDIM of
the original, which has another schedule for each level (Gu et al. 2024). Only `dpm_adaptive` ties levels together: its
error is a mean over all numbers, in which coarse levels count little, and wants a smaller `rtol` than of one image.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from pixelspace.noise.process import Process
from pixelspace.noise.pyramid import Pyramid, ask, join
from pixelspace.sampling.denoiser import Denoise
from pixelspace.types import Cond


@dataclass(frozen=True, slots=True)
class Packing:
    """How the levels of a pyramid over images of `shape` (C, H, W) stand in a row."""

    pyramid: Pyramid
    shape: tuple[int, ...]

    @property
    def length(self) -> int:
        """N: how many numbers all levels of an image have."""
        return self.pyramid.length(self.shape)

    def pack(self, levels: Sequence[Tensor]) -> Tensor:
        """y (B, N) of images, finest first."""
        return join([x / k for x, k in zip(levels, self.pyramid.k, strict=True)])

    def unpack(self, y: Tensor) -> list[Tensor]:
        """The images (B, C, H, W) of y, finest first."""
        return [part * k for part, k in zip(self.pyramid.split(y, self.shape), self.pyramid.k, strict=True)]

    def start(self, noise: Tensor, sigma: float) -> Tensor:
        """y at `sigma` from N(0, I) (B, N): noise alone, of the variance that a unit signal and noise together have, so
        that what a variance-preserving network is shown of it first is N(0, I) at every level."""
        parts, seen = self.pyramid.split(noise, self.shape), self.pyramid.seen
        return join([z * (math.sqrt(1 + (s * sigma) ** 2) / s) for z, s in zip(parts, seen, strict=True)])

    def denoiser(self, backbone: Callable[..., Any], process: Process, cond: Cond) -> Denoise:
        """The network's estimate of y at sigma 0 under one condition, for one sigma an image."""
        pyramid = self.pyramid

        def denoise(y: Tensor, sigma: Tensor) -> Tensor:
            sigma = sigma.reshape(-1).expand(len(y))
            levels = [part * s for part, s in zip(pyramid.split(y, self.shape), pyramid.seen, strict=True)]
            outs = ask(backbone, *pyramid.inputs(process, levels, sigma), cond)
            each = zip(outs, levels, pyramid.seen, strict=True)
            return join([process.denoised(out.to(y.dtype), x, sigma * s) / s for out, x, s in each])

        return denoise

    def each(self, threshold: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        """A function of images as one of y: `threshold` of every level."""
        return lambda y: self.pack([threshold(x) for x in self.unpack(y)])
