"""One image at several sizes that are noised and denoised together, finest first (Gu et al. 2024).

Sigma is that of the coarsest level. A level whose side is `scale` times the coarsest one's is x = x0 + k sigma noise,
with k = scale^(power / 2) and x0 the image averaged over blocks: its signal-to-noise ratio is divided by scale^power.
All levels share one c_noise.
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from pixelspace.config import value
from pixelspace.errors import UserError
from pixelspace.noise.process import Process, expand
from pixelspace.types import Cond


@value
class Pyramid:
    """How much smaller each level is than the image, on a side, and by which power of their sizes noise is shifted.

    A network sees x in the units of the level: divided by k where `divided`, so that its signal is smaller instead of
    its noise larger, else as it is. With power 2 that is the original without a shifted schedule.

    The frames of a clip are `tiles` x `tiles` tiles of its image, row by row. Its coarsest level is the first of them,
    as large as each is at the level before, and as noisy.

    Every level has its own `noise`, as in the original; `pooled` noise is that of the image, averaged and brought back
    to variance 1. With a power other than 2 two levels then tell by their difference what the noise is, and a network
    learns that instead.
    """

    factors: tuple[int, ...] = (1, 4)
    power: float = 1.0
    divided: bool = False
    tiles: int = 1
    noise: Literal["independent", "pooled"] = "independent"

    def __post_init__(self) -> None:
        steps = list(pairwise(self.factors))
        if self.factors[:1] != (1,) or any(coarse <= fine or coarse % fine for fine, coarse in steps):
            raise ValueError(
                f"Pyramid: factors must begin with 1, and each be a multiple of the one before; found {self.factors}"
            )
        if self.tiles < 1 or (self.tiles > 1 and (len(self.factors) < 2 or self._last_step != self.tiles)):
            raise ValueError(
                f"Pyramid: of {self.tiles} x {self.tiles} frames the coarsest level is one, so its factor must be "
                f"{self.tiles} times that of the level before; found {self.factors}"
            )
        if self.power < 0:
            raise ValueError(f"Pyramid: power cannot be negative, found {self.power}")

    @property
    def _last_step(self) -> int:
        return self.factors[-1] // self.factors[-2]

    @property
    def means(self) -> tuple[int, ...]:
        """How many pixels of the image, a side, are averaged to one of each level."""
        return (*self.factors[:-1], self.factors[-1] // self.tiles)

    @property
    def k(self) -> tuple[float, ...]:
        """Each level's noise over that of the coarsest, whose k is 1."""
        return tuple((self.means[-1] / mean) ** (self.power / 2) for mean in self.means)

    @property
    def seen(self) -> tuple[float, ...]:
        """Each level's noise over sigma as a network sees it, which is in units of k / seen."""
        return (1.0,) * len(self.factors) if self.divided else self.k

    def sigmas(self, sigma: Tensor) -> list[Tensor]:
        """Each level's sigma in its units, shaped as `sigma`."""
        return [sigma * seen for seen in self.seen]

    def shapes(self, shape: Sequence[int]) -> list[tuple[int, ...]]:
        """Each level's shape for an image of `shape` (C, H, W).

        Raises:
            UserError: a side that the coarsest factor does not divide.
        """
        *channels, height, width = shape
        coarsest = self.factors[-1]
        if height % coarsest or width % coarsest:
            near = " x ".join(str(max(round(side / coarsest), 1) * coarsest) for side in (height, width))
            raise UserError(
                f"size {height} x {width}: a pyramid of {self.factors} needs sides that are multiples of {coarsest}; "
                f"the nearest is {near}"
            )
        return [(*channels, height // factor, width // factor) for factor in self.factors]

    def length(self, shape: Sequence[int]) -> int:
        """How many numbers all levels of an image of `shape` have."""
        return sum(math.prod(level) for level in self.shapes(shape))

    def pool(self, x: Tensor) -> list[Tensor]:
        """All levels of images x (B, C, H, W) by averages over blocks, and of a clip its first frame."""
        *_, (_, height, width) = self.shapes(x.shape[1:])
        levels = [x]
        for fine, coarse in pairwise(self.means):
            levels.append(levels[-1] if coarse == fine else F.avg_pool2d(levels[-1], coarse // fine))
        return [*levels[:-1], levels[-1][..., :height, :width]]

    def drawn(self, shape: Sequence[int]) -> tuple[int, ...]:
        """The shape of the numbers that an image of `shape` draws its noise by."""
        return tuple(shape) if self.noise == "pooled" else (self.length(shape),)

    def spread(self, noise: Tensor) -> Tensor:
        """(B, N): noise of all levels, in one row, from numbers (B, ...) as `drawn` has them."""
        if self.noise == "independent":
            return noise
        return join([level * mean for level, mean in zip(self.pool(noise), self.means, strict=True)])

    def split(self, row: Tensor, shape: Sequence[int]) -> list[Tensor]:
        """The levels (B, ...) of an image of `shape` from one row (B, N)."""
        shapes = self.shapes(shape)
        parts = row.split([math.prod(level) for level in shapes], 1)
        return [part.reshape(row.shape[0], *level) for part, level in zip(parts, shapes, strict=True)]

    def inputs(self, process: Process, levels: Sequence[Tensor], sigma: Tensor) -> tuple[list[Tensor], Tensor]:
        """All a backbone sees: c_in x of each level, given in its units, and the c_noise of sigma (B,).

        A level may hold fewer rows than sigma has: the first ones.
        """
        each = zip(levels, self.sigmas(sigma), strict=True)
        return [process.precond(expand(s[: x.shape[0]], x)).c_in * x for x, s in each], process.c_noise(sigma)


def join(levels: Sequence[Tensor]) -> Tensor:
    """(B, N): all levels in one row, which `Pyramid.split` takes apart."""
    return torch.cat([level.flatten(1) for level in levels], 1)


def ask(backbone: Callable[..., Any], inputs: list[Tensor], c_noise: Tensor, cond: Cond) -> list[Tensor]:
    """What a backbone says of each level; one of a single level is a plain network and takes a tensor."""
    return backbone(inputs, c_noise, cond) if len(inputs) > 1 else [backbone(inputs[0], c_noise, cond)]
