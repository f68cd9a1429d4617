"""Non-leaky augmentation: geometric changes that the network is told of (Karras et al. 2022, appendix F.2).

Each image is mirrored left-right with probability 1/2 and, each at the given rate, mirrored upside down with
probability 1/2, scaled, rotated, stretched and shifted. The nine numbers of `conditioning` say what was done and are
all zero for an untouched image, so that sampling asks for untouched ones. At rate 0 nothing happens at all.

Two habits of k-diffusion are kept so that its checkpoints are trained on as before: the interpolation (below), and that
images that are not square shift along x in units of their height and along y of their width.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pixelspace.random import Rng


@dataclass(frozen=True, slots=True)
class Draws:
    """What happens to each image, all (B,) float64: `mirror_x`, `mirror_y` 0 or 1; `scale` and `stretch` as exponents
    of 2^0.2; angles in radians; `shift_x`, `shift_y` in eighths of a side."""

    mirror_x: Tensor
    mirror_y: Tensor
    scale: Tensor
    rotation: Tensor
    stretch_angle: Tensor
    stretch: Tensor
    shift_x: Tensor
    shift_y: Tensor


def draws(rng: Rng, pos: Tensor, rate: float) -> Draws:
    """The draws of the samples at global positions `pos`, each a function of (seed, position)."""
    coin_x, coin_y, turn, stretch_turn = rng.uniform("augment", pos, 4).unbind(1)
    mirrors, scales, turns, stretches, shifts = (rng.uniform("augment do", pos, 5) < rate).double().unbind(1)
    scale, stretch, shift_x, shift_y = rng.normal("augment size", pos, 4).unbind(1)
    return Draws(
        mirror_x=(coin_x < 0.5).double() * (rate > 0),
        mirror_y=(coin_y < 0.5).double() * mirrors,
        scale=scale * scales,
        rotation=(2 * turn - 1) * math.pi * turns,
        stretch_angle=(2 * stretch_turn - 1) * math.pi * stretches,
        stretch=stretch * stretches,
        shift_x=shift_x * shifts,
        shift_y=shift_y * shifts,
    )


def conditioning(d: Draws) -> Tensor:
    """(B, 9) float32: what the network is told."""
    columns = (
        *(d.mirror_x, d.mirror_y, d.scale, d.rotation.cos() - 1, d.rotation.sin()),
        *(d.stretch * d.stretch_angle.cos(), d.stretch * d.stretch_angle.sin(), d.shift_x, d.shift_y),
    )
    return torch.stack(columns, 1).float()


def _diagonal(x: Tensor, y: Tensor) -> Tensor:
    return torch.diag_embed(torch.stack([x, y, torch.ones_like(x)], 1))


def _rotation(angle: Tensor) -> Tensor:
    out = _diagonal(angle.cos(), angle.cos())
    out[:, 0, 1], out[:, 1, 0] = -angle.sin(), angle.sin()
    return out


def _translation(x: Tensor, y: Tensor) -> Tensor:
    out = _diagonal(torch.ones_like(x), torch.ones_like(x))
    out[:, 0, 2], out[:, 1, 2] = x, y
    return out


def matrix(d: Draws, size: tuple[int, int]) -> Tensor:
    """(B, 3, 3) float64 maps of pixel coordinates (x, y, 1) from input to output for images of (height, width)."""
    height, width = size
    center_x, center_y = torch.full_like(d.scale, width / 2 - 0.5), torch.full_like(d.scale, height / 2 - 0.5)
    grow, stretch = 2 ** (0.2 * d.scale), 2 ** (0.2 * d.stretch)
    return (
        _translation(center_x, center_y)
        @ _diagonal(1 - 2 * d.mirror_x, 1 - 2 * d.mirror_y)
        @ _diagonal(grow, grow)
        @ _rotation(-d.rotation)
        @ (_rotation(d.stretch_angle) @ _diagonal(stretch, 1 / stretch) @ _rotation(-d.stretch_angle))
        @ _translation(height * d.shift_x / 8, width * d.shift_y / 8)
        @ _translation(-center_x, -center_y)
    )


def _mirrors(forward: Tensor, height: int, width: int) -> list[int] | None:
    """The dimensions of (C, H, W) whose reversal is this map; None if it is no mere reversal."""
    flips = [dim for dim, axis in ((2, 0), (1, 1)) if forward[axis, axis] < 0]
    mirror = torch.eye(3, dtype=forward.dtype)
    for dim in flips:
        axis, side = (0, width) if dim == 2 else (1, height)
        mirror[axis, axis], mirror[axis, 2] = -1, side - 1
    return flips if torch.equal(forward, mirror) else None


def _reflected(index: Tensor, n: int) -> Tensor:
    if n == 1:
        return torch.zeros_like(index)
    index = index.abs() % (2 * n - 2)  # mirrored at the border pixels, which do not repeat
    return torch.where(index < n, index, 2 * n - 2 - index)


def _taps(at: Tensor, n: int) -> list[tuple[Tensor, Tensor]]:
    """The four (index, weight) of Catmull-Rom interpolation (Keys' cubic, a = -1/2, no prefilter) at `at` on an axis of
    n pixels."""
    base = at.floor()
    t = at - base
    weights = (
        ((-0.5 * t + 1) * t - 0.5) * t,
        (1.5 * t - 2.5) * t * t + 1,
        ((-1.5 * t + 2) * t + 0.5) * t,
        (0.5 * t - 0.5) * t * t,
    )
    return [(_reflected(base.int() + i - 1, n), weight) for i, weight in enumerate(weights)]


def _warped(image: Tensor, inverse: Tensor) -> Tensor:
    channels, h, w = image.shape
    (ax, bx, cx), (ay, by, cy), _ = inverse.tolist()
    x = torch.arange(w, dtype=image.dtype, device=image.device)
    y = torch.arange(h, dtype=image.dtype, device=image.device)[:, None]
    columns, rows = _taps(ax * x + bx * y + cx, w), _taps(ay * x + by * y + cy, h)
    pixels = image.reshape(channels, h * w)
    out = torch.zeros_like(pixels)
    for row, weight_y in rows:
        for column, weight_x in columns:
            taps = pixels.index_select(1, (row * w + column).flatten())
            out.addcmul_(taps, (weight_y * weight_x).flatten())
    return out.reshape(channels, h, w)


def warp(images: Tensor, matrices: Tensor) -> Tensor:
    """Images (B, C, H, W), float32 or float64, moved by `matrices` (B, 3, 3) from input to output.

    What comes from beyond a border is mirrored. Untouched and merely mirrored images keep their values bit for bit.
    Beyond its result it takes the memory of a few images, whatever B.
    """
    out = torch.empty_like(images)
    for image, forward, moved in zip(images, matrices.cpu(), out, strict=True):
        flips = _mirrors(forward, image.shape[1], image.shape[2])
        moved.copy_(image.flip(flips) if flips is not None else _warped(image, forward.inverse()))
    return out
