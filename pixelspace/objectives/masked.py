"""Masked denoising (Zheng et al. 2024, MaskDiT): the network is shown some patches of a sample and draws all of them.

The loss is that of denoising on the patches shown, plus a masked autoencoder's on those removed.
"""

import math
from typing import Literal

import torch
from torch import Tensor

from pixelspace.config import value
from pixelspace.errors import UserError
from pixelspace.noise.levels import Levels
from pixelspace.noise.process import Process, expand
from pixelspace.noise.weighting import Unit, Weighting
from pixelspace.objectives.denoising import Backbone, Objective, check_drop_rate, check_one_level, draw_dice, outcome
from pixelspace.random import Rng
from pixelspace.types import BackboneConfig, Batch, Draw


@value
class MaskRatio:
    """The share of patches removed, as a function of the stage's progress x in [0, 1].

    `constant`: ratio. `linear` rises: low + (ratio - low) x. `cosine` falls: low + (ratio - low) cos(pi x / 2)^power.
    `exp` falls: low + (ratio - low) e^(-7 x). The number of patches kept is rounded to a `multiple`, so that a moving
    ratio gives a compiled network few shapes, and is never 0.
    """

    ratio: float = 0.5
    schedule: Literal["constant", "linear", "cosine", "exp"] = "constant"
    low: float = 0.0
    power: int = 4
    multiple: int = 1

    def __post_init__(self) -> None:
        for name in ("ratio", "low"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"MaskRatio: {name} must be in [0, 1), found {getattr(self, name)}")
        if self.power < 1 or self.multiple < 1:
            raise ValueError("MaskRatio: power and multiple must be at least 1")

    def __call__(self, progress: float) -> float:
        factors = {
            "constant": 1.0,
            "linear": progress,
            "cosine": math.cos(math.pi * progress / 2) ** self.power,
            "exp": math.exp(-7 * progress),
        }
        low = 0.0 if self.schedule == "constant" else self.low
        return (self.ratio - low) * factors[self.schedule] + low

    def kept(self, patches: int, progress: float) -> int:
        """How many of `patches` are kept, from 1 on."""
        count = int(patches * (1 - self(progress)))
        return min(max(round(count / self.multiple), 1) * self.multiple, patches)


def patches(x: Tensor, patch: tuple[int, int]) -> Tensor:
    """(B, C, H, W) to (B, L, values of a patch), patches row by row."""
    b, c, h, w = x.shape
    p, q = patch
    return x.reshape(b, c, h // p, p, w // q, q).permute(0, 2, 4, 3, 5, 1).reshape(b, -1, p * q * c)


def reconstruction(denoised: Tensor, target: Tensor, patch: tuple[int, int]) -> Tensor:
    """(B, L) mean squared distance of `denoised` from `target`, each of whose patches is brought to mean 0 and variance
    1 (unbiased; MAE, He et al. 2022, section 4.1)."""
    goal = patches(target, patch)
    goal = (goal - goal.mean(-1, keepdim=True)) / (goal.var(-1, keepdim=True) + 1e-6).sqrt()
    return (patches(denoised, patch) - goal).square().mean(-1)


@value
class Masked(Objective):
    """Denoising on the patches kept plus `mae` times reconstruction on those removed.

    As in the original code, the reconstruction's target is the *noisy* input, normalised patch by patch, while the
    denoised estimate that is held against it is not normalised; at high sigma this asks for noise. `target` clean asks
    for the patches of x0 instead. With nothing removed it is plain denoising. `patch` must be the network's own.
    """

    process: Process
    levels: Levels
    patch: tuple[int, int]
    mask: MaskRatio = MaskRatio()
    mae: float = 0.1
    target: Literal["noisy", "clean"] = "noisy"
    weighting: Weighting = Unit()
    drop_rate: float = 0.0

    def __post_init__(self) -> None:
        if min(self.patch) < 1 or self.mae < 0:
            raise ValueError(f"Masked: patch must be positive and mae not negative, found {self.patch}, {self.mae}")
        if not 0 <= self.drop_rate <= 1:
            raise ValueError(f"Masked: drop_rate must be in [0, 1], found {self.drop_rate}")

    def check(self, backbone: BackboneConfig) -> None:
        check_drop_rate(self.drop_rate, backbone)
        check_one_level(backbone)
        name = type(backbone).__name__
        if backbone.keep_patch is None:
            raise UserError(f"objective Masked: the network ({name}) needs all patches; take Denoising, or a MaskDiT")
        if backbone.keep_patch != self.patch:
            raise UserError(
                f"objective.patch {self.patch}: the network ({name}) has patches of {backbone.keep_patch}; set it so"
            )

    def kept(self, height: int, width: int, progress: float) -> int | None:
        count = (height // self.patch[0]) * (width // self.patch[1])
        kept = self.mask.kept(count, progress)
        return None if kept == count else kept

    def draw(self, batch: Batch, size: int, progress: float, rng: Rng) -> Draw:
        height, width = batch.x.shape[2:]
        count, keep = self.kept(height, width, progress), None
        if count is not None:
            length = (height // self.patch[0]) * (width // self.patch[1])
            keep = rng.subset("mask", batch.pos, length, count).to(batch.x.device)
        return draw_dice(batch, size, rng, self.levels, self.drop_rate, keep=keep)

    def loss(self, backbone: Backbone, batch: Batch, draw: Draw) -> Tensor:
        x, out, error = outcome(backbone, self.process, batch, draw)
        sigma = expand(draw.sigma, x)
        square = self.weighting(sigma, self.process.precond(sigma)) * error.square()
        if draw.keep is None:
            return square.flatten(1).mean(1)
        loss = patches(square, self.patch).mean(-1).gather(1, draw.keep).mean(1)
        if self.mae:
            denoised = self.process.denoised(out, x, draw.sigma)
            distance = reconstruction(denoised, x if self.target == "noisy" else batch.x, self.patch)
            removed = torch.ones_like(distance).scatter(1, draw.keep, 0)
            loss = loss + self.mae * (distance * removed).sum(1) / removed.sum(1)
        return loss
