"""Wasserstein distances along single directions, which are optimal transport by sorting."""

import torch
from torch import Tensor

from pixelspace.errors import DataError
from pixelspace.evaluation.rows import check_pair

PROJECTIONS = 64  # at once


def sliced_wasserstein(x: Tensor, y: Tensor) -> float:
    """Sliced 2-Wasserstein distance of rows (m, D) and (n, D), with all directions at once by their concentration
    (Nadjahi et al. 2021): √(|μx − μy|² / D + (σx − σy)²), σ² the mean variance of a feature.

    Raises:
        DataError: other shapes, or a number that is not finite.
    """
    check_pair(x, y)
    x, y = x.double(), y.double()
    gap = x.mean(0) - y.mean(0)
    spread_x, spread_y = (rows.var(0, correction=0).mean().sqrt() for rows in (x, y))
    return float((gap.square().mean() + (spread_x - spread_y) ** 2).sqrt())


def mind(generated: Tensor, reference: Tensor, *, projections: int = 1000, seed: int = 2020) -> float:
    """Monge Inception distance as torch-fidelity has it: 3 D times the mean, over directions, of the squared
    2-Wasserstein distance along each. Directions are rows of float32 normals of PyTorch's CPU generator, as there.

    Raises:
        DataError: sets of different sizes, other shapes, or a number that is not finite.
    """
    check_pair(generated, reference)
    if len(generated) != len(reference):
        raise DataError(f"MIND compares as many rows with as many, found {len(generated)} and {len(reference)}")
    width = generated.shape[1]
    directions = torch.randn(projections, width, generator=torch.Generator().manual_seed(seed)).to(generated.device)
    total = 0.0
    for part in torch.nn.functional.normalize(directions.double()).split(PROJECTIONS):
        sorted_x, sorted_y = ((rows.double() @ part.T).sort(0).values for rows in (generated, reference))
        total += float((sorted_x - sorted_y).square().mean(0).sum())
    return 3 * width * total / projections
