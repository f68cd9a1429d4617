"""Embeddings of numbers."""

import math

import torch
from torch import Tensor, nn


class FourierFeatures(nn.Module):
    """(B, n) to (B, D): cosines, then sines, of fixed random projections (Tancik et al. 2020).

    The projection is a buffer drawn from N(0, 1): it belongs to the weights. The product is summed elementwise because
    autocast would round a matrix product's phases to bfloat16.
    """

    weight: Tensor

    def __init__(self, inputs: int, width: int):
        super().__init__()
        self.register_buffer("weight", torch.randn(width // 2, inputs))

    def forward(self, x: Tensor) -> Tensor:
        phase = 2 * math.pi * (x.to(self.weight.dtype)[:, None, :] * self.weight).sum(-1)
        return torch.cat([phase.cos(), phase.sin()], -1)
