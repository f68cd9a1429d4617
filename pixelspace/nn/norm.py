"""Root-mean-square norms (Zhang and Sennrich 2019), plain and conditioned."""

from typing import Any

import torch
from torch import Tensor, nn

from pixelspace.nn.linear import Linear


def _inverse(x: Tensor, scale: Tensor, eps: float) -> Tensor:
    dtype = torch.promote_types(torch.promote_types(x.dtype, scale.dtype), torch.float32)
    mean_square = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=dtype).square() / x.shape[-1]
    return (mean_square + eps).rsqrt()


def _factor(x: Tensor, scale: Tensor, inverse: Tensor) -> Tensor:
    return (scale.to(inverse.dtype) * inverse).to(x.dtype)


class _RMSNorm(torch.autograd.Function):
    """Gradients in closed form, of x (G, T, D) and scale (G, 1, D): nothing as large as x is kept but x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, eps: float) -> Tensor:
        inverse = _inverse(x, scale, eps)
        ctx.save_for_backward(x, scale, inverse)
        return _factor(x, scale, inverse).mul_(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, scale, inverse = ctx.saved_tensors
        product = (grad * x).to(inverse.dtype)
        to_scale = (inverse.mT @ product).to(scale.dtype) if ctx.needs_input_grad[1] else None
        if not ctx.needs_input_grad[0]:
            return None, to_scale, None
        along = product @ scale.to(inverse.dtype).mT * inverse**3 / x.shape[-1]
        return (grad * _factor(x, scale, inverse)).addcmul_(x, along.to(x.dtype), value=-1), to_scale, None


def rms_norm(x: Tensor, scale: Tensor, eps: float = 1e-6) -> Tensor:
    """x scale / rms(x) over the last axis of x (B, ..., D), by scale (D,) or (B, D); the factor is computed in float32
    or better and then cast to x's dtype."""
    if torch.compiler.is_compiling():  # which joins the passes by itself
        scale = scale.reshape(*scale.shape[:-1], *(1,) * (x.ndim - 2) * (scale.ndim - 1), -1)
        return x * _factor(x, scale, _inverse(x, scale, eps))
    width = x.shape[-1]
    rows = x.reshape(len(scale) if scale.ndim > 1 else 1, -1, width) if x.numel() else x.reshape(1, 0, width)
    return _RMSNorm.apply(rows, scale.reshape(-1, 1, width), eps).reshape(x.shape)


class RMSNorm(nn.Module):
    """RMS norm with a learnt scale."""

    def __init__(self, width: int):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.scale)


class AdaRMSNorm(nn.Module):
    """RMS norm whose scale is 1 + a linear map of the condition, which starts at 0 (Crowson et al. 2024, section 4.2).

    x (B, ..., D), cond (B, M).
    """

    def __init__(self, width: int, cond_width: int):
        super().__init__()
        self.linear = Linear(cond_width, width, bias=False)
        nn.init.zeros_(self.linear.weight)

    def forward(self, x: Tensor, cond: Tensor) -> Tensor:
        return rms_norm(x, 1 + self.linear(cond))
