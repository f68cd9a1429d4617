"""What a network knows at each noise level, and which of its features never change: found out by denoising real images.

An error is told as a share of that of the best guess by two numbers alone, mean and variance of all pixels: with them
x0 is guessed as their weighted mean with x, at an error of v s^2 / (v + s^2) for variance v and noise s. So 1 is a
network that has learnt nothing of images, whatever its size, preconditioner and noise level.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pixelspace.model import Model
from pixelspace.noise.pyramid import Pyramid
from pixelspace.random import Rng
from pixelspace.types import Cond

LEVELS = 8
_MAPS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.ConvTranspose2d)
_STILL = 1e-6  # of a layer's largest input: what moves less does not move


@dataclass(frozen=True, slots=True)
class Layer:
    """How many of the features that a layer reads never change, and whether all that it says is 0."""

    name: str
    features: int
    dead: int
    silent: bool


class _Seen:
    """The range of each feature of a layer's input, and the largest number that it said."""

    def __init__(self, axis: int):
        self.axis, self.low, self.high, self.said = axis, torch.tensor(torch.inf), torch.tensor(-torch.inf), 0.0

    def add(self, x: Tensor, out: Tensor) -> None:
        rows = x.detach().float().movedim(self.axis, 0).flatten(1).cpu()
        self.low, self.high = torch.minimum(self.low, rows.amin(1)), torch.maximum(self.high, rows.amax(1))
        self.said = max(self.said, float(out.detach().abs().max()))

    def layer(self, name: str) -> Layer:
        largest = float(torch.maximum(self.low.abs(), self.high.abs()).max())
        dead = int((self.high - self.low <= _STILL * largest).sum())
        return Layer(name, len(self.low), dead, self.said == 0)


class Listening:
    """What the maps of a network were given and said, while `listening`: linear maps and convolutions over places."""

    def __init__(self) -> None:
        self._seen: dict[str, _Seen] = {}
        self._given: set[int] = set()
        self._readers: set[str] = set()

    def leave_out(self, given: Cond) -> None:
        """Maps that read `given` itself are not the network's to answer for, but the text encoder's."""
        self._given |= {rows.untyped_storage().data_ptr() for rows in given.values()}

    def hear(self, name: str, module: nn.Module, x: Tensor, out: Tensor) -> None:
        """Takes note of one call."""
        if x.ndim < 3:  # of the condition, which is one vector an image, and may well be the same for all
            return
        if x.untyped_storage().data_ptr() in self._given:
            self._readers.add(name)
        self._seen.setdefault(name, _Seen(-1 if isinstance(module, nn.Linear) else 1)).add(x, out)

    def layers(self) -> list[Layer]:
        """Every map that was used, in order."""
        return [seen.layer(name) for name, seen in self._seen.items() if name not in self._readers]


@contextmanager
def listening(network: nn.Module) -> Iterator[Listening]:
    """Listens to the maps of `network` until it is left."""
    heard = Listening()

    def hook(name: str) -> Any:
        return lambda module, args, out: heard.hear(name, module, args[0], out)

    maps = [(name, module) for name, module in network.named_modules() if isinstance(module, _MAPS)]
    handles = [module.register_forward_hook(hook(name)) for name, module in maps]
    try:
        yield heard
    finally:
        for handle in handles:
            handle.remove()


def sigmas_of(model: Model) -> list[float]:
    """What noise levels are asked about, from the cleanest: the middle of each eighth of those that it samples by."""
    u = (torch.arange(LEVELS, dtype=torch.float64) + 0.5) / LEVELS
    return model.config.sampling.levels(u).tolist()


@torch.no_grad()
def errors(
    model: Model, images: Tensor, sigma: float, *, cond: Cond | None = None, seed: int = 0, batch: int = 16
) -> list[float]:
    """The error of the denoised estimate at `sigma` for real images uint8 (n, 3, H, W), by `cond` with a row for each
    (None: without class or prompt), as a share of the guess's by mean and variance; one number for each level of a
    pyramid, the finest first."""
    config, rng = model.config, Rng(seed)
    pyramid = config.pyramid or Pyramid((1,))
    wrong, squares, sums, numbers = ([0.0] * len(pyramid.factors) for _ in range(4))
    for start in range(0, len(images), batch):
        some = images[start : start + batch].to(model.device)
        at = torch.arange(start, start + len(some), device=model.device)
        x0 = config.codec.encode(config.codec.store(some), rng, at)
        levels = pyramid.pool(x0)
        row = pyramid.spread(rng.noise("diagnosis", at, pyramid.drawn(tuple(x0.shape[1:])), model.device))
        noise = pyramid.split(row.flatten(1), tuple(x0.shape[1:]))
        each = zip(levels, noise, pyramid.k, strict=True)
        asked = {name: rows[start : start + len(some)] for name, rows in (cond or {}).items()}
        found = model.denoised([level + k * sigma * one for level, one, k in each], sigma, asked)
        for i, (level, estimate) in enumerate(zip(levels, found, strict=True)):
            clean = level.double()
            wrong[i] += float((estimate.double() - clean).square().sum())
            squares[i] += float(clean.square().sum())
            sums[i] += float(clean.sum())
            numbers[i] += clean.numel()
    shares = []
    for i, k in enumerate(pyramid.k):
        variance = squares[i] / numbers[i] - (sums[i] / numbers[i]) ** 2
        noise_variance = (k * sigma) ** 2
        shares.append(wrong[i] / numbers[i] * (variance + noise_variance) / (variance * noise_variance))
    return shares
