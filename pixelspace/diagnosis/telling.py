"""A `Diagnosis` as text for the terminal."""

from collections.abc import Sequence

from pixelspace.diagnosis.diagnose import Diagnosis
from pixelspace.diagnosis.findings import against, findings, sharpness

PAGE = "docs/diagnosis.md"


def _row(name: str, numbers: Sequence[float | None]) -> str:
    return f"  {name:22}" + "".join("       -" if one is None else f"{one:8.3g}" for one in numbers)


def _looks(d: Diagnosis) -> list[str]:
    drawn, real = d.drawn, d.real
    lines = []
    if real:
        ratios = against(drawn, real)
        lines += ["what it draws, over what real images have (1: alike)"]
        lines += ["  " + ", ".join(f"{name} {ratio:.2f}" for name, ratio in ratios.items())]
        lines += [_row("octaves, finest first", sharpness(drawn, real))]
    lines += ["the grid of patches (1: none)", _row("pixels a side", list(drawn.grids))]
    for name, looks in (("drawn", drawn), ("real", real)):
        if looks:
            lines += [_row(f"seams, {name}", [one.seams for one in looks.grids.values()])]
            lines += [_row(f"pattern, {name}", [one.pattern for one in looks.grids.values()])]
    return lines


def _knowledge(d: Diagnosis) -> list[str]:
    if not d.averaged:
        return ["without real images nothing is said of noise levels and channels: give them by --data"]
    lines = ["its error, over that of a guess by mean and variance (1: nothing learnt)", _row("sigma", d.sigmas)]
    for which, levels in (("averaged weights", d.averaged), ("last step's weights", d.raw)):
        for level, shares in enumerate(levels):
            lines += [_row(which + (f", {level}" if len(levels) > 1 else ""), shares)]
    features, dead = sum(one.features for one in d.layers), sum(one.dead for one in d.layers)
    silent = sum(one.silent for one in d.layers)
    lines += [f"features that never change: {dead:,} of {features:,}; layers that say 0: {silent} of {len(d.layers)}"]
    return lines


def told(d: Diagnosis) -> str:
    """The numbers, then what is out of the ordinary in them."""
    lines = [*_looks(d), *_knowledge(d)]
    if any(one is not None for one in d.trend):
        lines += ["loss of the last fifth of the training over the fifth before, cleanest eighth first"]
        lines += [_row("", d.trend)]
    found = findings(d)
    if not found:
        return "\n".join([*lines, "nothing is out of the ordinary"])
    return "\n".join(
        [*lines, f"out of the ordinary ({PAGE} says what it comes of)"] + [f"  {f.sign}: {f.text}" for f in found]
    )
