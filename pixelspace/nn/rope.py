"""Axial rotary position embedding of a token grid, with frequencies interleaved over heads (Crowson et al. 2024)."""

import math

import torch
from torch import Tensor, nn


def axial_positions(h: int, w: int, *, dtype: torch.dtype, device: torch.device | str = "cpu") -> Tensor:
    """(h, w, 2) cell centres as (y, x); the longer side spans (-1, 1), so a larger grid interpolates."""
    longest = max(h, w)
    y = (2 * torch.arange(h, dtype=dtype, device=device) + 1 - h) / longest
    x = (2 * torch.arange(w, dtype=dtype, device=device) + 1 - w) / longest
    return torch.stack(torch.meshgrid(y, x, indexing="ij"), -1)


def axial_frequencies(num_heads: int, head_dim: int) -> Tensor:
    """(N, E / 8) angular frequencies from pi up to 10 pi, log-spaced over (feature, head) with the head fastest."""
    count = num_heads * head_dim // 8
    ramp = torch.arange(count, dtype=torch.float64) / count
    return (math.pi * 10**ramp).reshape(head_dim // 8, num_heads).T.contiguous().float()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates channel pairs (i, i + n) of x (..., E) by n angles, in their dtype; channels from 2n on stay."""
    n = cos.shape[-1]
    first, second, rest = x.split([n, n, x.shape[-1] - 2 * n], dim=-1)
    turned = (first * cos - second * sin, second * cos + first * sin)
    return torch.cat([turned[0].to(x.dtype), turned[1].to(x.dtype), rest], -1)


class AxialRoPE(nn.Module):
    """Rotates half of each head's features: a quarter by the token's y, a quarter by its x.

    The frequencies are a persistent buffer, as in the checkpoints of k-diffusion.
    """

    freqs: Tensor

    def __init__(self, num_heads: int, head_dim: int):
        super().__init__()
        self.register_buffer("freqs", axial_frequencies(num_heads, head_dim))

    def forward(self, x: Tensor) -> Tensor:
        """x (..., h, w, N, E), rotated."""
        h, w = x.shape[-4:-2]
        pos = axial_positions(h, w, dtype=self.freqs.dtype, device=x.device)
        theta = torch.cat([pos[..., None, :1] * self.freqs, pos[..., None, 1:] * self.freqs], -1)  # (h, w, N, E / 4)
        return rotate(x, theta.cos(), theta.sin())
