"""How two sets of features cover each other, by balls that reach to each point's k-th nearest neighbour in its own set.

Precision and recall: Kynkäänniemi et al. 2019; density and coverage: Naeem et al. 2020; authenticity: Alaa et al. 2022.
Computed on the device of the rows and in tiles: memory does not grow with the square of their number.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from pixelspace.errors import UserError
from pixelspace.evaluation.rows import check_pair

TILE = 1024  # rows: squared distances of 8 MiB stay in a CPU's cache, four times as fast as of 128 MiB
SAME = 1e-13  # of |x|² + |y|²: the rounding of |x|² + |y|² − 2 x·y in float64, so that equal rows are at distance 0

Arithmetic = Literal["float64", "adm"]


def _squared(x: Tensor, y: Tensor) -> Tensor:
    x, y = x.double(), y.double()
    size = (x * x).sum(1)[:, None] + (y * y).sum(1)
    squared = torch.addmm(size, x, y.T, alpha=-2)
    return squared.masked_fill_(squared < SAME * size, 0)


def _adm_squared(x: Tensor, y: Tensor) -> Tensor:
    """As ADM's evaluator: every step rounded to float16, or a tile where that overflows in float32."""
    for kind in (torch.float16, torch.float32):
        a, b = x.to(kind), y.to(kind)
        # Products are summed in float32 and then rounded, as GPUs do; CPUs do so too, but slower in float16.
        across = (a.float() @ b.float().T).to(kind)
        squared = (a * a).float().sum(1).to(kind)[:, None] - 2 * across + (b * b).float().sum(1).to(kind)
        if squared.isfinite().all():
            break
    return squared.float().clamp(min=0)


_DISTANCES = {"float64": _squared, "adm": _adm_squared}


def _tiles(x: Tensor, y: Tensor, arithmetic: Arithmetic) -> Iterator[tuple[slice, slice, Tensor]]:
    """Squared distances of all rows, a row of tiles after the other: which of x, which of y, and (rows, rows)."""
    for i in range(0, len(x), TILE):
        for j in range(0, len(y), TILE):
            rows, columns = slice(i, min(i + TILE, len(x))), slice(j, min(j + TILE, len(y)))
            yield rows, columns, _DISTANCES[arithmetic](x[rows], y[columns])


def _check(generated: Tensor, reference: Tensor, k: int) -> None:
    if k < 1:
        raise UserError(f"k: expected the number of neighbours, 1 or more, found {k}")
    check_pair(generated, reference, k + 1)


def _radii(x: Tensor, k: int, arithmetic: Arithmetic) -> Tensor:
    """(n,) squared distances to the k-th nearest other row: the k + 1 nearest contain the row itself."""
    dtype = torch.float32 if arithmetic == "adm" else torch.float64
    nearest = torch.full((len(x), k + 1), torch.inf, dtype=dtype, device=x.device)
    for rows, _, squared in _tiles(x, x, arithmetic):
        nearest[rows] = torch.cat([nearest[rows], squared], 1).topk(k + 1, largest=False).values
    return nearest.amax(1)


@dataclass(frozen=True)
class Manifolds:
    """`precision`: share of the generated in any ball of the reference. `recall`: of the reference in any ball of the
    generated. `density`: the mean number of the reference's balls that a generated point is inside of, over k; it may
    exceed 1. `coverage`: share of the reference with a generated point inside its ball.
    """

    precision: float
    recall: float
    density: float
    coverage: float


def manifolds(generated: Tensor, reference: Tensor, k: int = 3, *, arithmetic: Arithmetic = "float64") -> Manifolds:
    """Precision, recall (on a ball's surface counts), density and coverage (it does not) of rows (m, D) and (n, D).

    All depend on both numbers of rows. `adm` has the float16 distances of ADM's evaluator, which move precision and
    recall by some thousandths.

    Raises:
        DataError: other shapes, k rows or fewer, or a number that is not finite.
        UserError: no neighbours.
    """
    _check(generated, reference, k)
    radii, radii_generated = _radii(reference, k, arithmetic), _radii(generated, k, arithmetic)
    inside = torch.zeros(len(generated), dtype=torch.bool, device=generated.device)
    reached = torch.zeros(len(reference), dtype=torch.bool, device=generated.device)
    covered = reached.clone()
    balls = 0
    for real, made, squared in _tiles(reference, generated, arithmetic):
        ball = radii[real, None]
        inside[made] |= (squared <= ball).any(0)
        reached[real] |= (squared <= radii_generated[made]).any(1)
        within = squared < ball
        balls += int(within.sum())
        covered[real] |= within.any(1)
    return Manifolds(
        precision=float(inside.double().mean()),
        recall=float(reached.double().mean()),
        density=balls / (k * len(generated)),
        coverage=float(covered.double().mean()),
    )


def realism(generated: Tensor, reference: Tensor, k: int = 3) -> Tensor:
    """(m,) the largest ratio of a ball's radius to a generated point's distance from its centre, over the half of the
    reference's balls that are smallest (Kynkäänniemi et al. 2019, Eq. 3). At a centre it is infinite.

    Raises:
        DataError: other shapes, k rows or fewer, or a number that is not finite.
        UserError: no neighbours.
    """
    _check(generated, reference, k)
    radii = _radii(reference, k, "float64")
    small = radii <= radii.median()
    radii = radii[small]
    best = torch.zeros(len(generated), dtype=torch.float64, device=generated.device)
    for real, made, squared in _tiles(reference[small], generated, "float64"):
        ball = radii[real, None].expand_as(squared)
        ratio = torch.where((ball == 0) & (squared == 0), 1, ball / squared)
        best[made] = best[made].maximum(ratio.amax(0))
    return best.sqrt()


def authenticity(generated: Tensor, training: Tensor) -> float:
    """AuthPct, in percent: of the generated, those further from their nearest training image than that one is from its
    own nearest. The others may be copies.

    Raises:
        DataError: other shapes, fewer than two rows, or a number that is not finite.
    """
    check_pair(generated, training, 2, ("generated features", "training features"))
    radii = _radii(training, 1, "float64")
    nearest = torch.full((len(generated),), torch.inf, dtype=torch.float64, device=generated.device)
    owner = torch.zeros(len(generated), dtype=torch.int64, device=generated.device)
    for real, made, squared in _tiles(training, generated, "float64"):
        least, row = squared.min(0)
        closer = least < nearest[made]
        nearest[made] = torch.where(closer, least, nearest[made])
        owner[made] = torch.where(closer, row + real.start, owner[made])
    return 100 * float((nearest > radii[owner]).double().mean())
