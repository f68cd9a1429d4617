"""Layers on clips whose frames lie in the batch, (B T, C, H, W), a sample's frames one behind the other; and clips as
one big image, whose tiles are the frames row by row (as in ml-mdm)."""

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from pixelspace.nn.conv import RowLayer, Upsample

HEAD = 32  # numbers a head of attention over time, as upstream


def untiled(x: Tensor, side: int) -> Tensor:
    """(B, C, side H, side W), a tile a frame, to (B side^2, C, H, W)."""
    return rearrange(x, "b c (i h) (j w) -> (b i j) c h w", i=side, j=side)


def tiled(x: Tensor, side: int) -> Tensor:
    """What `untiled` undoes: (B side^2, C, H, W) to (B, C, side H, side W)."""
    return rearrange(x, "(b i j) c h w -> b c (i h) (j w)", i=side, j=side)


def as_image(clip: Tensor, side: int) -> Tensor:
    """A clip (B, C, side^2, H, W) as one image (B, C, side H, side W)."""
    return rearrange(clip, "b c (i j) h w -> b c (i h) (j w)", i=side, j=side)


def as_clip(image: Tensor, side: int) -> Tensor:
    """What `as_image` undoes: (B, C, side H, side W) to (B, C, side^2, H, W)."""
    return rearrange(image, "b c (i h) (j w) -> b c (i j) h w", i=side, j=side)


class TimeResample(nn.Conv1d):
    """Half as many frames by a convolution over time, or with `up` twice as many by repetition and one."""

    def __init__(self, width: int, up: bool):
        super().__init__(width, width, 3, stride=1 if up else 2, padding=1)
        self.up = up

    def forward(self, input: Tensor, frames: int) -> Tensor:  # type: ignore[override]
        h, w = input.shape[2:]
        x = rearrange(input, "(b t) c h w -> (b h w) c t", t=frames)
        x = super().forward(F.interpolate(x, scale_factor=2.0, mode="nearest") if self.up else x)
        return rearrange(x, "(b h w) c t -> (b t) c h w", h=h, w=w)


class TimeAttention(RowLayer):
    """Attention of each place, at half the size, to the same place in the other frames; no identity in a fresh network.

    H and W must be even.
    """

    def __init__(self, width: int, rotary: bool):
        super().__init__(width, width // HEAD, rotary)
        self.down_conv = nn.Conv2d(width, width, 3, stride=2, padding=1)
        self.up_conv = Upsample(width)

    def forward(self, x: Tensor, frames: int) -> Tensor:  # type: ignore[override]
        y = self.down_conv(x)
        h, w = y.shape[2:]
        rows = super().forward(rearrange(y, "(b t) c h w -> (b h w) t c", t=frames))
        y = rearrange(rows, "(b h w) t c -> (b t) c h w", h=h, w=w)
        return x + self.up_conv(y)
