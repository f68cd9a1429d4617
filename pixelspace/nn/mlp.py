"""Gated feed-forward layers."""

import torch.nn.functional as F
from torch import Tensor, nn

from pixelspace.nn.linear import Linear


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
        a, gate = self.up_proj(self.norm(x, *cond)).chunk(2, dim=-1)
        return x + self.down_proj(self.dropout(a * F.gelu(gate)))
