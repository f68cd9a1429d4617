"""One protocol over a grid of sampling settings: curves of every number, and FID against CLIPScore."""

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

from pixelspace.config import nearest
from pixelspace.errors import UserError
from pixelspace.evaluation.report import Report, table_row
from pixelspace.files import publish

SETTINGS: dict[str, type] = {"guidance": float, "steps": int, "sampler": str}
_AGAIN = "run the same command again"


@dataclass(frozen=True)
class Point:
    """A point of the grid, and its report."""

    settings: Mapping[str, Any]
    report: Report


def points_of(sweeps: Sequence[str]) -> list[dict[str, Any]]:
    """All combinations of `guidance=1,1.5`, `steps=10,25` and the like.

    Raises:
        UserError: one that cannot be read.
    """
    axes: dict[str, list[Any]] = {}
    for sweep in sweeps:
        name, eq, text = sweep.partition("=")
        if not eq or "" in text.split(","):
            raise UserError(f"--sweep {sweep}: expected NAME=VALUE,VALUE,...")
        if name not in SETTINGS:
            raise UserError(f"--sweep {sweep}: no setting {name!r}; {nearest(name, SETTINGS)}")
        if name in axes:
            raise UserError(f"--sweep: {name} is given twice; put its values in one list")
        try:
            axes[name] = [SETTINGS[name](word) for word in text.split(",")]
        except ValueError as error:
            raise UserError(f"--sweep {sweep}: {name} takes {SETTINGS[name].__name__} values") from error
        if len(set(axes[name])) < len(axes[name]):
            raise UserError(f"--sweep {sweep}: a value stands twice")
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


def folder_of(settings: Mapping[str, Any]) -> str:
    """What a point's folder is called: `guidance=1.5,steps=50`."""
    return ",".join(f"{name}={value}" for name, value in settings.items())


def _table(points: Sequence[Point]) -> str:
    axes, names = list(points[0].settings), list(points[0].report.numbers)
    lines = [points[0].report.line, "", table_row(*axes, *names), "|" + "---|" * len(axes + names)]
    lines += [table_row(*point.settings.values(), *point.report.numbers.values()) for point in points]
    return "\n".join(lines) + "\n"


def _curves(points: Sequence[Point], axis: str, path: Path) -> None:
    """Every number over one setting, a line for each combination of the others."""
    from matplotlib.figure import Figure

    names = list(points[0].report.numbers)
    columns = min(3, len(names))
    rows = math.ceil(len(names) / columns)
    figure = Figure(figsize=(3.6 * columns, 3 * rows), layout="constrained")
    for at, name in enumerate(names, 1):
        axes = figure.add_subplot(rows, columns, at)
        lines: dict[str, list[tuple[Any, float]]] = {}
        for point in points:
            others = folder_of({key: value for key, value in point.settings.items() if key != axis})
            lines.setdefault(others, []).append((point.settings[axis], point.report.numbers[name]))
        for label, line in lines.items():
            axes.plot(*zip(*sorted(line), strict=True), "o-", markersize=3, label=label or None)
        axes.set(title=name, xlabel=axis)
        if len(lines) > 1:
            axes.legend(fontsize="small")
    _save(figure, path)


def front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Which of (lower is better, higher is better) no other point is as good as in both and better than in one, by the
    first coordinate (Pareto's front)."""

    def beaten(i: int) -> bool:
        x, y = points[i]
        return any(a <= x and b >= y and (a, b) != (x, y) for a, b in points)

    return sorted((i for i in range(len(points)) if not beaten(i)), key=lambda i: points[i])


def _pareto(points: Sequence[Point], distance: str, score: str, path: Path) -> None:
    from matplotlib.figure import Figure

    pairs = [(point.report.numbers[distance], point.report.numbers[score]) for point in points]
    figure = Figure(figsize=(5, 4), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(*zip(*pairs, strict=True), "o", color="tab:grey")
    best = front(pairs)
    axes.plot(*zip(*(pairs[i] for i in best), strict=True), "o-", color="tab:blue", label="nothing better in both")
    for point, pair in zip(points, pairs, strict=True):
        axes.annotate(folder_of(point.settings), pair, fontsize=6, xytext=(3, 3), textcoords="offset points")
    axes.set(xlabel=f"{distance} (lower is better)", ylabel=f"{score} (higher is better)")
    axes.legend(fontsize="small")
    _save(figure, path)


def _save(figure: Any, path: Path) -> None:
    drawn = BytesIO()
    figure.savefig(drawn, format="png", dpi=110)
    publish(path, drawn.getvalue(), _AGAIN)


def save(points: Sequence[Point], out: Path) -> list[Path]:
    """Writes `sweep.md`, `sweep.json`, a picture of the curves over each setting, and of FID against CLIPScore where
    both are there; returns their paths."""
    rows = [{"settings": dict(point.settings), "numbers": point.report.numbers} for point in points]
    publish(out / "sweep.json", (json.dumps(rows, indent=1) + "\n").encode(), _AGAIN)
    publish(out / "sweep.md", _table(points).encode(), _AGAIN)
    written = [out / "sweep.md"]
    for axis in points[0].settings:
        written.append(out / f"over-{axis}.png")
        _curves(points, axis, written[-1])
    names = list(points[0].report.numbers)
    distance = next((name for name in names if name.startswith(("FID", "FD"))), None)
    score = next((name for name in names if name.startswith("CLIPScore")), None)
    if distance and score:
        written.append(out / "pareto.png")
        _pareto(points, distance, score, written[-1])
    return written
