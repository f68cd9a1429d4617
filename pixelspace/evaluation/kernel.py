"""Squared maximum mean discrepancies: KID (Bińkowski et al. 2018) and CMMD (Jayasumana et al. 2024).

Computed in float64, on the device of the rows, and in tiles: memory does not grow with the square of their number.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pixelspace.errors import UserError
from pixelspace.evaluation.rows import check_pair, unit_rows
from pixelspace.random import Rng

TILE = 1024  # rows: a kernel of 8 MiB stays in a CPU's cache, several times as fast as with one of 32 MiB

Kernel = Callable[[Tensor, Tensor], Tensor]


def _mean_within(kernel: Kernel, x: Tensor, biased: bool) -> Tensor:
    parts = [part.double() for part in x.split(TILE)]
    total = torch.zeros((), dtype=torch.float64, device=x.device)
    for i, part in enumerate(parts):
        tile = kernel(part, part)
        total += tile.sum() if biased else tile.sum() - tile.diagonal().sum()
        for other in parts[i + 1 :]:
            total += 2 * kernel(part, other).sum()
    return total / (len(x) * (len(x) if biased else len(x) - 1))


def _mean_between(kernel: Kernel, x: Tensor, y: Tensor) -> Tensor:
    total = torch.zeros((), dtype=torch.float64, device=x.device)
    for part in x.split(TILE):
        for other in y.split(TILE):
            total += kernel(part.double(), other.double()).sum()
    return total / (len(x) * len(y))


def _mmd(kernel: Kernel, x: Tensor, y: Tensor, biased: bool) -> float:
    within = _mean_within(kernel, x, biased) + _mean_within(kernel, y, biased)
    return float(within - 2 * _mean_between(kernel, x, y))


def polynomial_mmd(x: Tensor, y: Tensor, *, biased: bool = False) -> float:
    """MMD² of rows (m, D) and (n, D) with the kernel (x·y / D + 1)³. Unbiased, it may be negative.

    Raises:
        DataError: other shapes, fewer than two rows, or a number that is not finite.
    """
    check_pair(x, y, 2)
    return _mmd(lambda a, b: (a @ b.T / a.shape[1] + 1) ** 3, x, y, biased)


def rbf_mmd(x: Tensor, y: Tensor, *, sigma: float = 10.0, biased: bool = False) -> float:
    """MMD² of rows (m, D) and (n, D) with the kernel exp(−|x − y|² / (2 σ²)).

    Raises:
        DataError: other shapes, fewer than two rows, or a number that is not finite.
    """

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        squared = torch.addmm((a * a).sum(1)[:, None] + (b * b).sum(1), a, b.T, alpha=-2)
        # The kernel less 1, which cancels among the three means: for a wide one, what tells two rows apart is far
        # below 1 and would be rounded off.
        return torch.expm1(squared.clamp(min=0) / (-2 * sigma**2))

    check_pair(x, y, 2)
    return _mmd(kernel, x, y, biased)


def cmmd(generated: Tensor, reference: Tensor, *, biased: bool = True) -> float:
    """CMMD of CLIP embeddings (n, D), which it brings to length 1: 1000 MMD² with σ = 10. Biased as published: report
    the numbers of rows with it, or take the unbiased one.

    Raises:
        DataError: as `rbf_mmd`, or a row of zeros.
    """
    check_pair(generated, reference, 2)
    x, y = unit_rows(generated, "generated features"), unit_rows(reference, "reference features")
    return 1000 * rbf_mmd(x, y, biased=biased)


@dataclass(frozen=True)
class KernelDistance:
    """KID: the mean of MMD² over subsets. `std` is that of one subset (divisor: their number), not of the mean."""

    mean: float
    std: float
    subsets: tuple[float, ...]


def kid_of(generated: Tensor, reference: Tensor, rows: tuple[Tensor, Tensor]) -> KernelDistance:
    """KID over subsets whose row numbers, generated (S, size) and reference (S, size), are given."""
    values = [polynomial_mmd(generated[g], reference[r]) for g, r in zip(*rows, strict=True)]
    found = torch.tensor(values, dtype=torch.float64)
    return KernelDistance(float(found.mean()), float(found.std(correction=0)), tuple(values))


def kid(generated: Tensor, reference: Tensor, *, subsets: int = 100, size: int = 1000, seed: int = 0) -> KernelDistance:
    """KID over `subsets` draws by `seed` of `size` rows from each set, without replacement.

    Raises:
        DataError: fewer rows than `size`, other shapes, or a number that is not finite.
        UserError: no subsets, or subsets of fewer than two rows.
    """
    if subsets < 1 or size < 2:
        raise UserError(f"KID: expected 1 subset or more of 2 rows or more, found {subsets} of {size}")
    check_pair(generated, reference, size)
    rng, numbers = Rng(seed), torch.arange(subsets)
    chosen = rng.subset("kid generated", numbers, len(generated), size)
    return kid_of(generated, reference, (chosen, rng.subset("kid reference", numbers, len(reference), size)))
