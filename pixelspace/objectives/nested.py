"""Denoising of an image at several sizes at once (Gu et al. 2024, Matryoshka diffusion)."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor

from pixelspace.config import value
from pixelspace.errors import UserError
from pixelspace.noise.levels import Levels
from pixelspace.noise.process import Process, expand
from pixelspace.noise.pyramid import Pyramid, ask
from pixelspace.noise.weighting import Unit, Weighting
from pixelspace.objectives.denoising import Backbone, Objective, check_drop_rate, draw_dice, dropped
from pixelspace.random import Rng
from pixelspace.types import BackboneConfig, Batch, Draw


@value
class NestedDenoising(Objective):
    """The sum over the levels of a pyramid of their weighted squared errors, each a mean over the level's values.

    `levels` gives sigma of the coarsest level, `weighting` is asked with each level's own. A level counts `weights`
    times, finest first (empty: all once), and a sample `importance` times, by its sigma.

    `mixed` shares a batch out: a (2, 1) runs two thirds of the samples at both levels and one third at the coarsest
    alone, and what a level loses is divided by the share it runs on. Which samples these are goes by their place in
    the global batch.
    """

    process: Process
    levels: Levels
    weighting: Weighting
    pyramid: Pyramid = Pyramid()
    weights: tuple[float, ...] = ()
    importance: Weighting = Unit()
    mixed: tuple[int, ...] = ()
    drop_rate: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.drop_rate <= 1:
            raise ValueError(f"NestedDenoising: drop_rate must be in [0, 1], found {self.drop_rate}")
        for name, given in (("weights", self.weights), ("mixed", self.mixed)):
            if given and len(given) != len(self.pyramid.factors):
                wanted = f"one for each of the levels {self.pyramid.factors}, or none"
                raise ValueError(f"NestedDenoising: {name} must be {wanted}; found {given}")
        if any(weight < 0 for weight in self.weights) or not any(self.weights or (1,)):
            raise ValueError(f"NestedDenoising: weights cannot be negative nor all 0, found {self.weights}")
        if any(part < 1 for part in self.mixed):
            raise ValueError(f"NestedDenoising: mixed must be of positive numbers, found {self.mixed}")

    @property
    def layout(self) -> Pyramid | None:
        return self.pyramid

    @property
    def idles(self) -> bool:
        return bool(self.mixed)  # a device may have no sample of the finest level

    @property
    def shares(self) -> tuple[tuple[int, int], ...]:
        """(parts, of how many) of a global batch that each level runs on."""
        parts = self.mixed or (1,) + (0,) * (len(self.pyramid.factors) - 1)
        return tuple((part, sum(parts)) for part in accumulate(parts))

    def check(self, backbone: BackboneConfig) -> None:
        check_drop_rate(self.drop_rate, backbone)
        if backbone.pyramid != self.pyramid.factors:
            name = type(backbone).__name__
            raise UserError(
                f"objective.pyramid.factors {self.pyramid.factors}: the network ({name}) has {backbone.pyramid}; "
                f"set it so, or take a network of as many levels"
            )
        if backbone.tiles != self.pyramid.tiles:
            raise UserError(
                f"objective.pyramid.tiles {self.pyramid.tiles}: the network ({type(backbone).__name__}) is for "
                f"{backbone.tiles} x {backbone.tiles} frames; set it so"
            )

    def draw(self, batch: Batch, size: int, progress: float, rng: Rng) -> Draw:
        p, shape = self.pyramid, tuple(batch.x.shape[1:])
        draw = draw_dice(batch, size, rng, self.levels, self.drop_rate, shape=p.drawn(shape))
        draw = replace(draw, noise=p.spread(draw.noise))
        if self.mixed:
            bounds = [max(size * part // whole, 1) for part, whole in self.shares]
            draw = replace(draw, rows=tuple(int((batch.pos % size < bound).sum()) for bound in bounds))
        return draw

    def noised(self, batch: Batch, draw: Draw) -> tuple[list[Tensor], list[Tensor]]:
        """x0 and x of each level, of the rows that it runs on and in the units that a network sees."""
        p, rows = self.pyramid, draw.rows or (len(batch.x),) * len(self.pyramid.factors)
        images, noises = p.pool(batch.x), p.split(draw.noise, batch.x.shape[1:])
        clean = [x[:n] * (seen / k) for x, n, seen, k in zip(images, rows, p.seen, p.k, strict=True)]
        each = zip(clean, noises, p.sigmas(draw.sigma), strict=True)
        return clean, [self.process.corrupt(x0, noise[: len(x0)], sigma[: len(x0)]) for x0, noise, sigma in each]

    def loss_of(self, outs: Sequence[Tensor], clean: Sequence[Tensor], noisy: Sequence[Tensor], draw: Draw) -> Tensor:
        """(B,) losses of what a network said of each level of `noised`."""
        total = torch.zeros_like(draw.sigma)
        for r, (out, x0, x) in enumerate(zip(outs, clean, noisy, strict=True)):
            sigma = expand(draw.sigma[: len(x)] * self.pyramid.seen[r], x)
            error = out.to(x.dtype) - self.process.target(x0, x, sigma)
            loss = (self.weighting(sigma, self.process.precond(sigma)) * error.square()).flatten(1).mean(1)
            part, whole = self.shares[r] if draw.rows else (1, 1)
            factor = (self.weights[r] if self.weights else 1.0) * whole / part
            total = total + factor * F.pad(loss, (0, len(total) - len(loss)))
        return total * self.importance(draw.sigma, self.process.precond(draw.sigma))

    def loss(self, backbone: Backbone, batch: Batch, draw: Draw) -> Tensor:
        clean, noisy = self.noised(batch, draw)
        inputs, c_noise = self.pyramid.inputs(self.process, noisy, draw.sigma)
        return self.loss_of(ask(backbone, inputs, c_noise, dropped(batch, draw.drop)), clean, noisy, draw)
