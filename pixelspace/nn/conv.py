"""Layers on grids of pixels: residual blocks of convolutions, and attention to the image and to text (as in ml-mdm).

All start as the identity, but for maps to another width.
"""

from typing import TypeVar

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from pixelspace.nn.attention import attend
from pixelspace.nn.group_norm import GroupNorm
from pixelspace.nn.layout import is_channels_last
from pixelspace.nn.linear import Linear, linear

Layer = TypeVar("Layer", bound=nn.Module)


def zeroed(layer: Layer) -> Layer:
    """The layer, with its parameters set to 0."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


class Pointwise(nn.Conv2d):
    """A convolution by 1 x 1 taps: of channels-last x a linear map without a copy."""

    def __init__(self, width_in: int, width: int, bias: bool = True):
        super().__init__(width_in, width, 1, bias=bias)

    def forward(self, input: Tensor) -> Tensor:
        if not is_channels_last(input):
            return super().forward(input)
        return linear(input.movedim(1, -1), self.weight.flatten(1), self.bias).movedim(-1, 1)


class ResBlock(nn.Module):
    """x (B T, C, H, W) under a condition (B, E) to (B T, D, H, W): T frames of a sample share its condition."""

    def __init__(self, width_in: int, width: int, cond_width: int, groups: int, dropout: float = 0.0):
        super().__init__()
        self.norm1 = GroupNorm(groups, width_in)
        self.conv1 = nn.Conv2d(width_in, width, 3, padding=1)
        self.time_layer = nn.Linear(cond_width, 2 * width)
        self.norm2 = GroupNorm(groups, width)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = zeroed(nn.Conv2d(width, width, 3, padding=1))
        self.conv3 = Pointwise(width_in, width) if width_in != width else None

    def forward(self, x: Tensor, cond: Tensor) -> Tensor:
        h = self.norm2(self.conv1(F.silu(self.norm1(x))))
        film = self.time_layer(F.silu(cond)).repeat_interleave(x.shape[0] // cond.shape[0], 0)
        scale, shift = film[:, :, None, None].chunk(2, 1)
        h = self.conv2(self.dropout(F.silu(torch.addcmul(shift, h, 1 + scale))))
        return h + (x if self.conv3 is None else self.conv3(x))


class ImageAttention(nn.Module):
    """Attention of the places of x (B, C, H, W) to each other and, by a softmax of its own, to text (B, L, D), which an
    additive mask (B, 1, 1, L) may thin out; with `ffn` a feed-forward layer after it."""

    def __init__(self, width: int, heads: int, groups: int, text_width: int = 0, ffn: bool = False):
        super().__init__()
        self.heads = heads
        self.norm = GroupNorm(groups, width)
        self.qkv = Pointwise(width, 3 * width)
        self.proj_out = zeroed(Pointwise(width, width))
        self.norm_cond = nn.LayerNorm(text_width) if text_width else None
        self.kv_cond = nn.Linear(text_width, 2 * width) if text_width else None
        self.ffn = None
        if ffn:
            up, down = Pointwise(width, 4 * width), zeroed(Pointwise(4 * width, width))
            self.ffn = nn.Sequential(GroupNorm(groups, width), up, nn.GELU(), down)

    def forward(self, x: Tensor, text: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        h, w = x.shape[2:]
        rows = rearrange(self.qkv(self.norm(x)), "b d h w -> b (h w) d").contiguous()  # as fused kernels need them
        q, k, v = (rearrange(y, "b l (n e) -> b n l e", n=self.heads) for y in rows.chunk(3, -1))
        scale = q.shape[-1] ** -0.5
        out = attend(q, k, v, scale=scale)
        if self.kv_cond is not None and self.norm_cond is not None:
            kv = self.kv_cond(self.norm_cond(text))
            k, v = rearrange(kv, "b l (t n e) -> t b n l e", t=2, n=self.heads).unbind()
            out = out + attend(q, k, v, mask, scale)
        x = x + self.proj_out(rearrange(out, "b n (h w) e -> b (n e) h w", h=h, w=w))
        return x if self.ffn is None else x + self.ffn(x)


# The sums of taps are worth it from so many places (B H W) on, also for each channel: they are kept for the backward
# pass, as the repeated pixels are without them.
_PLACES, _PLACES_PER_CHANNEL = 1024, 4


def convolved_twice_the_size(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x (B, C, H, W) at twice the size by repetition, then convolved by weight (D, C, 3, 3), padded by 1.

    Both together are the transpose of a convolution by 4 x 4 taps with a stride of 2, whose taps are sums of the given
    ones: 4 products for each pixel out where there were 9, and the repeated pixels are never held.
    """
    exporting = torch.compiler.is_exporting()  # for any batch
    if not exporting and len(x) * x.shape[2] * x.shape[3] < max(_PLACES, _PLACES_PER_CHANNEL * x.shape[1]):
        return F.conv2d(F.interpolate(x, scale_factor=2.0, mode="nearest"), weight, bias, padding=1)
    for axis in (2, 3):
        before, at, after = weight.unbind(axis)
        weight = torch.stack([after, at + after, before + at, before], axis)
    return F.conv_transpose2d(x, weight.transpose(0, 1), bias, stride=2, padding=1)


class Upsample(nn.Conv2d):
    """Twice the size by repetition, then a convolution."""

    def __init__(self, width: int):
        super().__init__(width, width, 3, padding=1)

    def forward(self, input: Tensor) -> Tensor:
        return convolved_twice_the_size(input, self.weight, self.bias)


class Downsample(nn.Conv2d):
    """Half the size by a convolution."""

    def __init__(self, width: int):
        super().__init__(width, width, 3, stride=2, padding=1)


class _Residual(nn.Module):
    """x (B, L, D) and a feed-forward layer of it."""

    def __init__(self, width: int):
        super().__init__()
        up, down = Linear(width, 4 * width), zeroed(Linear(4 * width, width))
        self.main = nn.Sequential(nn.LayerNorm(width), up, nn.GELU(), down)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.main(x)


class Rotary(nn.Module):
    """Turns pairs of neighbouring numbers of each head by angles that grow with the place in the row (Su et al. 2021).

    The frequencies are a parameter that is never learnt, as in ml-mdm's checkpoints.
    """

    def __init__(self, head_dim: int):
        super().__init__()
        rates = 10000.0 ** -(torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
        self.freqs = nn.Parameter(rates, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, N, L, E), turned."""
        places = torch.arange(x.shape[2], dtype=self.freqs.dtype, device=x.device)
        angles = places[:, None] * self.freqs
        first, second = x.unflatten(-1, (-1, 2)).unbind(-1)
        cos, sin = angles.cos(), angles.sin()
        return torch.stack([first * cos - second * sin, second * cos + first * sin], -1).flatten(-2).to(x.dtype)


class RowAttention(nn.Module):
    """Attention of x (B, L, D) to itself, which an additive mask (B, 1, 1, L) may thin out."""

    def __init__(self, width: int, heads: int, rotary: bool = False):
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.qkv = Linear(width, 3 * width)
        self.proj_out = zeroed(Linear(width, width))
        self.pos_emb = Rotary(width // heads) if rotary else None

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        qkv = self.qkv(self.norm(x)).chunk(3, -1)
        q, k, v = (rearrange(y, "b l (n e) -> b n l e", n=self.heads) for y in qkv)
        if self.pos_emb is not None:
            q, k = self.pos_emb(q), self.pos_emb(k)
        out = attend(q, k, v, mask, q.shape[-1] ** -0.5)
        return x + self.proj_out(rearrange(out, "b n l e -> b l (n e)"))


class RowLayer(nn.Module):
    """Attention of x (B, L, D) to itself, then feed-forward."""

    def __init__(self, width: int, heads: int, rotary: bool = False):
        super().__init__()
        self.attn = RowAttention(width, heads, rotary)
        self.mlp = _Residual(width)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.mlp(self.attn(x, mask))
