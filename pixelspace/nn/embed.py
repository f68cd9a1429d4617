"""Embeddings of numbers."""

import math

import torch
import torch.nn.functional as F
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


def label_rows(table: Tensor, label: Tensor) -> Tensor:
    """(B, D) of class numbers (B,) below 0 for none, or of rows (B, classes), 0 for none, by a table (classes + 1, D)
    whose last row is none's."""
    if label.is_floating_point():
        none = (label == 0).all(-1, keepdim=True).to(table.dtype)
        return label.to(table.dtype) @ table[:-1] + none * table[-1]
    return F.embedding(torch.where(label < 0, len(table) - 1, label), table)


def timestep_features(t: Tensor, width: int) -> Tensor:
    """(B,) to (B, width): cosines, then sines, of t times 10000^(-i / (width // 2)) (Peebles and Xie 2023). An odd last
    column is 0."""
    half = width // 2
    rates = torch.exp(torch.arange(half, dtype=torch.float32, device=t.device) * (-math.log(10000.0) / half))
    phase = t.to(torch.promote_types(t.dtype, torch.float32))[:, None] * rates
    out = torch.cat([phase.cos(), phase.sin()], -1)
    return F.pad(out, (0, width % 2))


def sincos_positions(h: int, w: int, width: int) -> Tensor:
    """(h w, width) float64 codes of a grid's tokens, row by row: sines and cosines of the column, then of the row (MAE,
    He et al. 2022)."""
    rates = 10000.0 ** -(torch.arange(width // 4, dtype=torch.float64) / (width / 4))

    def code(coordinate: Tensor) -> Tensor:
        phase = coordinate.flatten()[:, None].double() * rates
        return torch.cat([phase.sin(), phase.cos()], -1)

    row, column = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    return torch.cat([code(column), code(row)], -1)
