"""Axial rotary position embedding of a token grid, with frequencies interleaved over heads (Crowson et al. 2024)."""

import math
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from pixelspace.nn.attention import cosine_scaled, inverse_length, tables_are_fake


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


def _turns(h: int, w: int, freqs: Tensor) -> tuple[Tensor, Tensor]:
    pos = axial_positions(h, w, dtype=freqs.dtype, device=freqs.device)
    theta = torch.cat([pos[..., None, :1] * freqs, pos[..., None, 1:] * freqs], -1)  # (h, w, N, E / 4)
    return theta.cos(), theta.sin()


@lru_cache(maxsize=64)
def _kept_turns(
    h: int, w: int, freqs: tuple[tuple[float, ...], ...], dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    with torch.inference_mode(False):  # what is kept must serve training, too
        return _turns(h, w, torch.tensor(freqs, dtype=dtype, device=device))


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> None:
    n = cos.shape[-1]
    first, second = x[..., :n], x[..., n : 2 * n]
    turned = first * cos - second * sin
    second.copy_(second * cos + first * sin)
    first.copy_(turned)


class _Heads(torch.autograd.Function):
    """Queries and keys are scaled and turned as they are written where attention reads them, head by head; gradients
    come from the results alone, since a turn keeps lengths."""

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, scale: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, ...]:
        b, h, w, _, n, e = qkv.shape
        x = qkv[:, :, :, :2]
        inverse = inverse_length(x, scale)
        out = qkv.new_empty(3, b, n, h, w, e).permute(1, 3, 4, 0, 2, 5)
        torch.mul(x, (scale.to(inverse.dtype).sqrt()[:, None] * inverse).to(x.dtype), out=out[:, :, :, :2])
        _turned(out[:, :, :, :2], cos[:, :, None], sin[:, :, None])
        out[:, :, :, 2].copy_(qkv[:, :, :, 2])
        q, k, v = out.unbind(3)
        ctx.save_for_backward(q, k, scale, inverse, cos, sin)
        return q, k, v

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        q, k, scale, inverse, cos, sin = ctx.saved_tensors
        wide, (b, h, w, n, e) = inverse.dtype, q.shape
        out = q.new_empty(b, h, w, 3, n, e)
        root, to_scale = scale.to(wide).sqrt()[:, None], torch.zeros_like(scale, dtype=wide)
        for i, (grad, x) in enumerate(zip(grads[:2], (q, k), strict=True)):
            own = inverse[:, :, :, i]
            along = (grad * x).sum(-1, keepdim=True, dtype=wide)
            to_scale += along.sum((0, 1, 2, 4)) / (2 * scale)
            part = out[:, :, :, i]
            torch.mul(grad, (root * own).to(x.dtype), out=part)
            part.addcmul_(x, (along * own / root).to(x.dtype), value=-1)
            _turned(part, cos, -sin)
        out[:, :, :, 2].copy_(grads[2])
        return out, to_scale.to(scale.dtype), None, None


class AxialRoPE(nn.Module):
    """Rotates half of each head's features: a quarter by the token's y, a quarter by its x.

    The frequencies are a persistent buffer, as in the checkpoints of k-diffusion.
    """

    freqs: Tensor

    def __init__(self, num_heads: int, head_dim: int):
        super().__init__()
        self.register_buffer("freqs", axial_frequencies(num_heads, head_dim))
        self._known: tuple[Tensor | None, int, Any] = (None, 0, None)

    def turns(self, h: int, w: int) -> tuple[Tensor, Tensor]:
        """Cosines and sines (h, w, N, E / 4) of a grid's angles, made once for each grid and the same frequencies."""
        if tables_are_fake() or self.freqs.is_meta or self.freqs.is_inference():
            return _turns(h, w, self.freqs)
        known, version, numbers = self._known
        if known is not self.freqs or version != self.freqs._version:  # asking for their values waits for the device
            numbers = tuple(map(tuple, self.freqs.tolist()))
            self._known = self.freqs, self.freqs._version, numbers
        return _kept_turns(h, w, numbers, self.freqs.dtype, self.freqs.device)

    def forward(self, x: Tensor) -> Tensor:
        """x (..., h, w, N, E), rotated."""
        return rotate(x, *self.turns(*x.shape[-4:-2]))

    def heads(self, qkv: Tensor, scale: Tensor) -> tuple[Tensor, ...]:
        """Of qkv (B, h, w, 3, N, E): queries and keys, scaled by `cosine_scaled` and rotated, and values."""
        if (
            qkv.device.type == "cpu" and not torch.compiler.is_compiling()
        ):  # elsewhere the passes are joined by compiling
            return _Heads.apply(qkv, scale, *self.turns(*qkv.shape[1:3]))
        qk, v = qkv.movedim(3, 0).split([2, 1])
        return *self(cosine_scaled(qk, scale)).unbind(), v[0]
