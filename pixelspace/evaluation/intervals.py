"""How far a number can be trusted: bootstrap, Wilson's interval of a share, and repeats with other seeds."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pixelspace.errors import DataError, UserError
from pixelspace.random import Rng


@dataclass(frozen=True)
class Interval:
    """A value, and the bounds that hold it with the probability `level`."""

    value: float
    low: float
    high: float
    level: float


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise UserError(f"level: expected a probability between 0 and 1, found {level}")


def bootstrap(
    values: Tensor,
    statistic: Callable[[Tensor], Tensor] = torch.mean,
    *,
    seed: int = 0,
    repeats: int = 1000,
    level: float = 0.95,
) -> Interval:
    """Percentile bootstrap (Efron 1979) of `statistic` over items, such as prompts: values (n, ...) are drawn again by
    their first dimension, so that the images of one prompt stay together. A function of the seed.

    Raises:
        DataError: fewer than two items, or a number that is not finite.
        UserError: a level that is no probability, or no repeats.
    """
    _check_level(level)
    if repeats < 1:
        raise UserError(f"repeats: expected 1 or more, found {repeats}")
    count = len(values) if values.ndim else 0
    if count < 2:
        raise DataError(f"bootstrap: two items or more are needed, found {count}")
    sound = values.reshape(count, -1).isfinite().all(1)
    if not sound.all():
        raise DataError(f"bootstrap: item {int((~sound).nonzero()[0])} is not finite")
    values, rng = values.detach().cpu().double(), Rng(seed)
    drawn = torch.empty(repeats, dtype=torch.float64)
    for i in range(repeats):
        drawn[i] = statistic(values[torch.randint(count, (count,), generator=rng.generator("bootstrap", i))])
    tail = (1 - level) / 2
    low, high = drawn.quantile(torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
    return Interval(float(statistic(values)), low, high, level)


def wilson(successes: float, trials: int, level: float = 0.95) -> Interval:
    """Score interval of a share (Wilson 1927): within 0 and 1, and sound for few trials and for shares near either.

    Ties may be counted as half successes; it is then wider than it need be, since a tie varies less than a half win.

    Raises:
        DataError: no trials, or successes that are not among them.
        UserError: a level that is no probability.
    """
    _check_level(level)
    if not 0 <= successes <= trials or not trials:
        raise DataError(f"share: expected 0 to n successes of n >= 1 trials, found {successes} of {trials}")
    z = float(torch.special.ndtri(torch.tensor((1 + level) / 2, dtype=torch.float64)))
    share, shrunk = successes / trials, 1 + z * z / trials
    centre = (share + z * z / (2 * trials)) / shrunk
    half = z * (share * (1 - share) / trials + (z / (2 * trials)) ** 2) ** 0.5 / shrunk
    low = centre - half if successes else 0.0  # which they are; rounding would leave the share outside
    return Interval(share, low, centre + half if successes < trials else 1.0, level)


@dataclass(frozen=True)
class Repeats:
    """Of one metric over disjoint ranges of seeds. `std` has the divisor count - 1; `minimum` is what EDM2 reports."""

    mean: float
    std: float
    minimum: float
    count: int


def repeats(values: Sequence[float]) -> Repeats:
    """Mean, standard deviation and minimum of a metric's repeats.

    Raises:
        DataError: fewer than two, or one that is not finite.
    """
    found = torch.tensor(values, dtype=torch.float64)
    if len(found) < 2:
        raise DataError(f"repeats: two values or more are needed for a spread, found {len(found)}")
    if not found.isfinite().all():
        raise DataError(f"repeats: all must be finite, found {list(values)}")
    return Repeats(float(found.mean()), float(found.std()), float(found.min()), len(found))
