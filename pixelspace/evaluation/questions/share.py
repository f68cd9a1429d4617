"""Means over images or questions of a kind."""

from collections.abc import Collection, Mapping, Sequence

from pixelspace.config import value


@value
class Share:
    """The mean over `count` images or questions of a kind."""

    name: str
    score: float
    count: int


def mean(values: Collection[float]) -> float:
    """0.0 of nothing."""
    return sum(values) / len(values) if values else 0.0


def shares(values: Mapping[str, Sequence[float]]) -> tuple[Share, ...]:
    """The means by name."""
    return tuple(Share(name, mean(found), len(found)) for name, found in values.items())
