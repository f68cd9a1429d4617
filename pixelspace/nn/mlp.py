"""Gated feed-forward layers."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pixelspace.nn.linear import Linear


class _Gated(torch.autograd.Function):
    """Keeps nothing but its input, and writes its gradient in place: halves need not be put together."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        a, gate = x.chunk(2, dim=-1)
        return F.gelu(gate).mul_(a)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        (x,) = ctx.saved_tensors
        a, gate = x.chunk(2, dim=-1)
        out = torch.empty_like(x)
        to_a, to_gate = out.chunk(2, dim=-1)
        torch.mul(grad, F.gelu(gate), out=to_a)
        torch.ops.aten.gelu_backward.grad_input(grad * a, gate, grad_input=to_gate)
        return out


def gated(x: Tensor) -> Tensor:
    """a gelu(g) of the halves (a, g) of x (..., 2 D): (..., D)."""
    if torch.compiler.is_compiling():  # which joins the passes by itself
        a, gate = x.chunk(2, dim=-1)
        return a * F.gelu(gate)
    return _Gated.apply(x)


class FeedForward(nn.Module):
    """Pre-norm residual a gelu(g), with (a, g) the halves of a linear map (GEGLU, Shazeer 2020); starts as identity.

    `norm` takes x and whatever else `forward` is given (a condition).
    """

    def __init__(self, norm: nn.Module, width: int, hidden: int, dropout: float):
        super().__init__()
        self.norm = norm
        self.up_proj = Linear(width, 2 * hidden, bias=False)
        self.dropout = nn.Dropout(dropout)
        self.down_proj = Linear(hidden, width, bias=False)
        nn.init.zeros_(self.down_proj.weight)

    def forward(self, x: Tensor, *cond: Tensor) -> Tensor:
        return x + self.down_proj(self.dropout(gated(self.up_proj(self.norm(x, *cond)))))
