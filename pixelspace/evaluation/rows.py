"""Rows of features (n, D) as the metrics take them: checked where they enter."""

import torch
from torch import Tensor

from pixelspace.errors import DataError


def check_rows(rows: Tensor, name: str, least: int = 1, first: int = 0) -> None:
    """Of one set; `first` is the number of its first row in messages.

    Raises:
        DataError: not (n, D), fewer than `least` rows, or a number that is not finite.
    """
    if rows.ndim != 2 or not rows.shape[1]:
        raise DataError(f"{name}: expected rows of features (n, D), found the shape {tuple(rows.shape)}")
    if len(rows) < least:
        raise DataError(f"{name}: {least} rows or more are needed, found {len(rows)}")
    sound = rows.isfinite().all(1)
    if not sound.all():
        bad = first + int((~sound).nonzero()[0])
        raise DataError(f"{name}: row {bad} is not finite; the images or the weights are unsound")


def check_pair(
    x: Tensor, y: Tensor, least: int = 1, names: tuple[str, str] = ("generated features", "reference features")
) -> None:
    """Of the two sets that a metric compares, by their names in messages.

    Raises:
        DataError: as `check_rows`, or of different widths.
    """
    check_rows(x, names[0], least)
    check_rows(y, names[1], least)
    if x.shape[1] != y.shape[1]:
        found = f"{names[0]} are {x.shape[1]} wide, {names[1]} {y.shape[1]}"
        raise DataError(f"{found}; take both from the same output of the same extractor")


def unit_rows(rows: Tensor, name: str) -> Tensor:
    """Vectors (..., D) in float64 and of length 1.

    Raises:
        DataError: one that has no direction.
    """
    rows = rows.double()
    length = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
    if not (length > 0).all():
        bad = (length[..., 0] == 0).nonzero()[0].tolist()
        raise DataError(f"{name}: row {', '.join(map(str, bad))} is all zeros and has no direction to compare")
    return rows / length
