"""The denoising objective: draw sigma and noise, then weigh the error of the network's output.

A plain squared error, or its multiscale form: the same error in the orthonormal cosine transform of the image, with
coarse frequencies weighted up (k-diffusion).
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from pixelspace.config import value
from pixelspace.errors import UserError
from pixelspace.noise.levels import Levels
from pixelspace.noise.process import Process, expand
from pixelspace.noise.pyramid import Pyramid
from pixelspace.noise.weighting import Weighting
from pixelspace.random import Rng
from pixelspace.types import BackboneConfig, Batch, Cond, Draw

Backbone = Callable[..., Any]
"""(x, c_noise, cond) and, for some, keep (B, L_keep), to the network's output, shaped as x; one of a pyramid takes and
returns a list of tensors, finest first."""


class Objective(ABC):
    """What is learnt: first all the dice, then a pure function of them."""

    process: Process
    levels: Levels

    @abstractmethod
    def check(self, backbone: BackboneConfig) -> None:
        """Raises UserError for a network that cannot be trained so."""

    @property
    def layout(self) -> Pyramid | None:
        """The levels that a network draws at once; None: the image alone."""
        return None

    @property
    def idles(self) -> bool:
        """Whether some of a network's weights may be without a gradient in some step, on some device."""
        return False

    def kept(self, height: int, width: int, progress: float) -> int | None:
        """How many patches of a sample the network is shown; None: all."""
        return None

    @abstractmethod
    def draw(self, batch: Batch, size: int, progress: float, rng: Rng) -> Draw:
        """The dice of samples `batch.pos` of a global batch of `size`; `progress` in [0, 1] is the stage's."""

    @abstractmethod
    def loss(self, backbone: Backbone, batch: Batch, draw: Draw) -> Tensor:
        """(B,) losses, before any averaging."""


@cache
def _cosine_matrix(n: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    k = torch.arange(n, dtype=torch.float64)
    rows = (math.pi / n * (k[None] + 0.5) * k[:, None]).cos() * math.sqrt(2 / n)
    rows[0] /= math.sqrt(2)
    return rows.to(device, dtype)


def dct2(x: Tensor) -> Tensor:
    """Orthonormal type-II cosine transform over the last two axes."""
    h, w = x.shape[-2:]
    return _cosine_matrix(h, x.device, x.dtype) @ x @ _cosine_matrix(w, x.device, x.dtype).T


def frequency_weight(h: int, w: int, scales: float, dtype: torch.dtype = torch.float64) -> Tensor:
    """(h, w) octaves below the finest frequency, the lower of both axes; at most `scales` where that is 1 or more."""

    def axis(n: int) -> Tensor:
        octaves = -torch.linspace(0.5 / n, 0.5, n, dtype=dtype).log2()
        return octaves.clamp(max=scales) if scales >= 1 else octaves

    return torch.minimum(axis(h)[:, None], axis(w)[None])


def check_drop_rate(rate: float, backbone: BackboneConfig) -> None:
    """Refuses to drop conditions that the network has not."""
    if rate and not backbone.num_classes and backbone.text_widths is None:
        raise UserError(f"objective.drop_rate {rate}: the network has neither classes nor text to drop; set it to 0")


def check_one_level(backbone: BackboneConfig) -> None:
    """Refuses a network of a pyramid's levels."""
    if backbone.pyramid != (1,):
        raise UserError(
            f"objective: the network ({type(backbone).__name__}) draws levels of {backbone.pyramid} at once; take "
            f"NestedDenoising"
        )


def draw_dice(
    batch: Batch,
    size: int,
    rng: Rng,
    levels: Levels,
    drop_rate: float,
    *,
    keep: Tensor | None = None,
    shape: tuple[int, ...] | None = None,
) -> Draw:
    """Sigma stratified over the global batch of `size`, noise and dropped conditions, each by position; the noise of a
    sample is of its own shape unless another is given."""
    sigma = levels(rng.stratified("sigma", batch.pos, size)).to(batch.x.dtype).to(batch.x.device)
    noise = rng.noise("noise", batch.pos, shape or tuple(batch.x.shape[1:]), batch.x.device)
    drop = (rng.uniform("drop", batch.pos)[:, 0] < drop_rate).to(batch.x.device) if drop_rate else None
    return Draw(sigma, noise, drop, keep)


def dropped(batch: Batch, drop: Tensor | None) -> Cond:
    """The conditions, with nothing in place of label and text of the samples that lose them."""
    if drop is None:
        return batch.cond
    nothing = {"label": torch.full_like(drop, -1, dtype=torch.int64), **batch.null}
    lost = {
        name: torch.where(drop.reshape(-1, *(1,) * (batch.cond[name].ndim - 1)), nothing[name], batch.cond[name])
        for name in nothing.keys() & batch.cond.keys()
    }
    return {**batch.cond, **lost}


def outcome(backbone: Backbone, process: Process, batch: Batch, draw: Draw) -> tuple[Tensor, Tensor, Tensor]:
    """The noisy x, the network's output for it, and that output's error, each shaped as `batch.x`."""
    x = process.corrupt(batch.x, draw.noise, draw.sigma)
    inputs, c_noise = process.inputs(x, draw.sigma)
    shown = {} if draw.keep is None else {"keep": draw.keep}
    out = backbone(inputs, c_noise, dropped(batch, draw.drop), **shown).to(x.dtype)
    return x, out, out - process.target(batch.x, x, draw.sigma)


@value
class Denoising(Objective):
    """Weighted squared error of the network's output (Karras et al. 2022, Eq. 8; Crowson et al. 2024, section 4.4).

    `drop_rate` is the share of samples that lose label and text, for guidance (Ho and Salimans 2022). `scales` other
    than 1 asks for the multiscale loss: frequencies weigh up to that many octaves, 0 for no limit.
    """

    process: Process
    levels: Levels
    weighting: Weighting
    drop_rate: float = 0.0
    scales: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.drop_rate <= 1:
            raise ValueError(f"Denoising: drop_rate must be in [0, 1], found {self.drop_rate}")
        if self.scales < 0:
            raise ValueError(f"Denoising: scales cannot be negative, found {self.scales}")

    def check(self, backbone: BackboneConfig) -> None:
        check_drop_rate(self.drop_rate, backbone)
        check_one_level(backbone)

    def draw(self, batch: Batch, size: int, progress: float, rng: Rng) -> Draw:
        return draw_dice(batch, size, rng, self.levels, self.drop_rate)

    def loss(self, backbone: Backbone, batch: Batch, draw: Draw) -> Tensor:
        x, _, error = outcome(backbone, self.process, batch, draw)
        sigma = expand(draw.sigma, x)
        weight = self.weighting(sigma, self.process.precond(sigma))
        if self.scales == 1:
            return (weight * error.square()).flatten(1).mean(1)
        octaves = frequency_weight(x.shape[2], x.shape[3], self.scales).to(x)
        return (weight * octaves * dct2(error).square()).flatten(1).mean(1)
