"""From numbers to sentences: what is out of the ordinary in a `Diagnosis`, what it comes of, and what helps."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import hypot

from pixelspace.diagnosis.diagnose import Diagnosis, Grid, Looks

# What separated sound models from sick ones in trials of small ones (docs/diagnosis.md tells them).
GREY, SAME, GRAIN, BLUR = 0.6, 0.4, 1.5, 0.4
SEAMS, SURE, PATTERN = 1.1, 3.0, 2.0
WORSE, UNLEARNT, YOUNG, FALLING = 1.25, 0.9, 1.5, 0.95


@dataclass(frozen=True, slots=True)
class Finding:
    """Something out of the ordinary: under which `sign` docs/diagnosis.md tells of it, and in a sentence."""

    sign: str
    text: str


def _ratio(one: float, other: float) -> float:
    return one / other if other else float("inf") if one else 1.0


def against(drawn: Looks, real: Looks) -> Mapping[str, float]:
    """Contrast, colour and variety of what was drawn over those of real images."""
    names = ("contrast", "colour", "variety")
    return {name: _ratio(getattr(drawn, name), getattr(real, name)) for name in names}


def sharpness(drawn: Looks, real: Looks) -> list[float]:
    """The share of the power that each octave has of what was drawn, over that in real images, the finest first."""
    each = zip(drawn.octaves, real.octaves, strict=True)
    return [_ratio(_ratio(one, sum(drawn.octaves)), _ratio(other, sum(real.octaves))) for one, other in each]


def _of_looks(drawn: Looks, real: Looks) -> Iterator[Finding]:
    ratios = against(drawn, real)
    for name in ("contrast", "colour"):
        if ratios[name] < GREY:
            yield Finding("grey", f"images have {ratios[name]:.2f} of the {name} of real ones")
    if ratios["variety"] < SAME:
        yield Finding("alike", f"images differ from each other by {ratios['variety']:.2f} of what real ones do")
    finest = sharpness(drawn, real)[0]
    if finest > GRAIN:
        yield Finding(
            "noisy", f"the finest octave has {finest:.1f} times the share of the power that it has in real images"
        )
    if finest < BLUR:
        yield Finding(
            "blurred", f"the finest octave has {finest:.2f} of the share of the power that it has in real images"
        )


def _of_grids(drawn: Looks, real: Looks | None) -> Iterator[Finding]:
    if not drawn.grids:
        return

    def usual(period: int) -> Grid:
        return real.grids[period] if real else Grid(1.0, 0.0, 1.0)

    def excess(period: int) -> float:
        return max(drawn.grids[period].seams - max(usual(period).seams, 1.0), 0.0)

    # What has steps at every fourth pixel has them at every eighth, too.
    period = min(p for p in drawn.grids if excess(p) >= 0.9 * max(map(excess, drawn.grids)))
    times = 1 + excess(period) / max(usual(period).seams, 1.0)
    if times > SEAMS and excess(period) > SURE * hypot(drawn.grids[period].error, usual(period).error):
        yield Finding("gridded", f"steps where patches of {period} pixels meet are {times:.2f} times as large")
    period = max(drawn.grids, key=lambda p: drawn.grids[p].pattern)
    found = drawn.grids[period].pattern
    if found > PATTERN * max(usual(period).pattern, 1.0):
        yield Finding("gridded", f"a pattern repeats every {period} pixels, with {found:.1f} times the power beside it")


def _of_knowledge(d: Diagnosis) -> Iterator[Finding]:
    for level, averaged in enumerate(d.averaged):
        where = f" at level {level}" if len(d.averaged) > 1 else ""
        raw = d.raw[level] if d.raw else averaged
        late = max(one / other if other else 1.0 for one, other in zip(averaged, raw, strict=True))
        if late > YOUNG:
            yield Finding(
                "young average",
                f"averaged weights err up to {late:.2f} times as much as those of the last step{where}",
            )
        # What only the average does not know yet, the line above has said.
        shares = [min(both) for both in zip(averaged, raw, strict=True)]
        worst = max(range(len(shares)), key=shares.__getitem__)
        if shares[worst] > WORSE:
            yield Finding(
                "noise level",
                f"at sigma {d.sigmas[worst]:.3g}{where} it errs {shares[worst]:.2f} times as much as a guess by mean "
                f"and variance",
            )
        middle = [share for sigma, share in zip(d.sigmas, shares, strict=True) if 0.1 <= sigma / d.deviation <= 1]
        if middle and min(middle) > UNLEARNT:
            yield Finding("untrained", f"it knows no more of images{where} than mean and variance: train longer")
        elif shares[0] > UNLEARNT:
            yield Finding(
                "noisy", f"at sigma {d.sigmas[0]:.3g}{where} it takes away no noise: the last steps leave grain"
            )


def _of_layers(d: Diagnosis) -> Iterator[Finding]:
    dead, silent = [one for one in d.layers if one.dead], [one for one in d.layers if one.silent]
    if dead:
        most = max(dead, key=lambda one: one.dead / one.features)
        count, of = sum(one.dead for one in dead), sum(one.features for one in d.layers)
        yield Finding(
            "dead channels",
            f"{count:,} of {of:,} features never change, most ({most.dead} of {most.features}) before {most.name}",
        )
    if silent:
        yield Finding(
            "silent layers", f"{len(silent)} of {len(d.layers)} layers say nothing but 0: {silent[0].name} first"
        )


def findings(d: Diagnosis) -> list[Finding]:
    """All of them, what is seen first."""
    found = [*(_of_looks(d.drawn, d.real) if d.real else ()), *_of_grids(d.drawn, d.real)]
    found += [*_of_knowledge(d), *_of_layers(d)]
    falling = [i for i, one in enumerate(d.trend) if one is not None and one < FALLING]
    if falling:
        which = "the cleanest is 1: " + ", ".join(str(i + 1) for i in falling)
        found.append(Finding("still learning", f"the loss still falls in eighths of the noise levels ({which})"))
    return found
