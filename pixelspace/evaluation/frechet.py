"""Fréchet distance of two Gaussians (Dowson & Landau 1982; Heusel et al. 2017), and its value for endless samples."""

from dataclasses import dataclass
from statistics import linear_regression

import torch
from torch import Tensor

from pixelspace.errors import DataError
from pixelspace.evaluation.rows import check_rows
from pixelspace.evaluation.stats import Moments, moments
from pixelspace.random import Rng

JITTER = 1e-12  # of the mean variance: below float64's rounding of the distance, and enough for a singular covariance
POINTS = 15  # of the line whose end is FD∞, as in dgm-eval
ASYMMETRY = 1e-5  # of the largest variance: statistics that were kept in float32 pass


def _check(of: Moments, name: str) -> None:
    width = of.mean.numel()
    if of.mean.shape != (width,) or of.cov.shape != (width, width) or not width:
        found = f"mean {tuple(of.mean.shape)} and covariance {tuple(of.cov.shape)}"
        raise DataError(f"{name} statistics: expected a mean (D,) and a covariance (D, D), found {found}")
    for part, numbers in (("mean", of.mean), ("covariance", of.cov)):
        if not numbers.isfinite().all():
            bad = (~numbers.isfinite()).nonzero()[0].tolist()
            raise DataError(f"{name} statistics: the {part} is not finite at {bad}; make the statistics anew")
    variances = of.cov.diagonal()
    if variances.min() < 0 or (of.cov - of.cov.T).abs().max() > ASYMMETRY * variances.max():
        raise DataError(f"{name} statistics: not a covariance (negative variances or not symmetric); make them anew")


def _square_root(cov: Tensor) -> Tensor:
    """R with R Rᵀ = cov: Cholesky's, or for what float64 takes for indefinite the symmetric one."""
    jitter = JITTER * cov.trace() / len(cov)
    root, failed = torch.linalg.cholesky_ex(cov + jitter * torch.eye(len(cov), dtype=cov.dtype))
    if not failed:
        return root
    values, vectors = torch.linalg.eigh(cov)
    return vectors * values.clamp(min=0).sqrt()


def frechet_distance(a: Moments, b: Moments) -> float:
    """|μa − μb|² + tr(Sa + Sb − 2 (Sa Sb)^½), the squared 2-Wasserstein distance of Gaussians, in float64.

    With Sa = R Rᵀ the last trace is that of the root of Rᵀ Sb R, which is symmetric: 3 s for 2048 features on a CPU.
    Statistics of D features need more than D rows each to mean much; equal ones may come out negative by rounding.

    Raises:
        DataError: statistics of different widths, or that are none.
    """
    _check(a, "first")
    _check(b, "second")
    if len(a.mean) != len(b.mean):
        raise DataError(f"statistics of {len(a.mean)} and of {len(b.mean)} features; take both from the same extractor")
    mean, cov_a, cov_b = a.mean.double() - b.mean.double(), a.cov.double(), b.cov.double()
    root = _square_root(cov_a)
    product = root.T @ cov_b @ root
    overlap = torch.linalg.eigvalsh((product + product.T) / 2).clamp(min=0).sqrt().sum()
    return float(mean @ mean + cov_a.trace() + cov_b.trace() - 2 * overlap)


@dataclass(frozen=True)
class FrechetInfinity:
    """`value` is what `distances` of `sizes` rows tend to as the rows grow in number."""

    value: float
    sizes: tuple[int, ...]
    distances: tuple[float, ...]


def infinity_sizes(count: int) -> tuple[int, ...]:
    """15 sizes from the smaller of 5000 and a tenth of `count` to all, evenly spaced (dgm-eval's)."""
    least = min(5000, count // 10)
    return tuple(least + (count - least) * i // (POINTS - 1) for i in range(POINTS))


def frechet_infinity(rows: Tensor, reference: Moments, *, seed: int | None = 0) -> FrechetInfinity:
    """FD∞ (Chong & Forsyth 2020): a distance from N rows is biased by about 1/N, so a line is fitted and followed to 0.

    Each size has rows of its own drawn by `seed`; None takes the leading ones, for rows that are in random order.

    Raises:
        DataError: fewer than 20 rows, not finite, or of another width than the reference.
    """
    check_rows(rows, "generated features", 20)
    sizes = infinity_sizes(len(rows))
    distances = []
    for size in sizes:
        chosen = rows[:size]
        if seed is not None:
            generator = Rng(seed).generator("fd infinity", size)
            chosen = rows[torch.randperm(len(rows), generator=generator)[:size]]
        distances.append(frechet_distance(moments([chosen]), reference))
    line = linear_regression([1 / size for size in sizes], distances)
    return FrechetInfinity(line.intercept, sizes, tuple(distances))
