"""The UNets that benchmarks nest in one another, by the sides of their levels in pixels: (64, 32) draws at both."""

from collections.abc import Mapping
from typing import Any

Sides = tuple[int, ...]


def backbone_of(sides: Sides, widths: Mapping[int, int], **inner: Any) -> Any:
    """A UNet at the last of the sides, of all grids from there on, and round it a level for each other side.

    `widths` gives the channels of each grid by its side; the coarsest has attention. `inner` is the UNet's own.
    """
    from pixelspace.backbones.nested import NestedUNetConfig
    from pixelspace.backbones.unet import UNetConfig
    from pixelspace.backbones.unet_body import UNetBody, UNetLevel

    def body(grids: list[int]) -> UNetBody:
        levels = tuple(UNetLevel(widths[grid], 1, attention=int(grid == min(widths))) for grid in grids)
        return UNetBody(levels, time_width=128, groups=8, heads=4, attention_groups=8)

    first, *rest = sides
    if rest:
        return NestedUNetConfig(body([first, rest[0]]), backbone_of(tuple(rest), widths, **inner))
    return UNetConfig(body([grid for grid in widths if grid <= first]), **inner)


def pyramid_of(sides: Sides) -> Any:
    """The levels of these sides."""
    from pixelspace.noise.pyramid import Pyramid

    return Pyramid(tuple(sides[0] // side for side in sides))


def share_at(sides: Sides) -> float:
    """Sigma of the coarsest level over that of a level of 64 px."""
    return (sides[-1] / 64) ** (pyramid_of(sides).power / 2)


def objective_of(sides: Sides) -> Any:
    """Denoising at all levels, where 64 px are as noisy whichever levels there are; one in ten loses its condition."""
    from pixelspace.noise.clock import TableIndex
    from pixelspace.noise.process import VPV, Process
    from pixelspace.noise.tables import SquaredCosine
    from pixelspace.noise.weighting import SoftMinSNR
    from pixelspace.objectives.nested import NestedDenoising

    table = SquaredCosine(rescale=4 * share_at(sides) ** 2)
    process = Process(VPV(), clock=TableIndex(table))
    return NestedDenoising(process, table, SoftMinSNR(4.0), pyramid_of(sides), drop_rate=0.1)
