"""What a run tells: rows of metrics, and a curve of the loss."""

import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pixelspace.noise.levels import Levels
from pixelspace.training.trackers import Tracker

OCTILES = 8


class Metrics:
    """Rows in `metrics.jsonl`. After a resume rows may stand twice; `attempt` tells, and readers keep the last."""

    def __init__(self, folder: Path, trackers: list[Tracker], quiet: bool = False):
        self.path, self.trackers, self.quiet = folder / "metrics.jsonl", trackers, quiet
        if not quiet and self.path.exists() and not self.path.read_bytes().endswith(b"\n"):
            with self.path.open("a", encoding="utf-8") as file:
                file.write("\n")  # ends the row that a kill cut short
        self.attempt = 1 + max((row["attempt"] for row in _rows(self.path)), default=0)

    def write(self, kind: str, step: int, images: int, **metrics: Any) -> None:
        """One row, unless it is to be quiet; numbers also go to the trackers."""
        if self.quiet:
            return
        row = {"kind": kind, "attempt": self.attempt, "step": step, "images": images, **metrics}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        numbers = {f"{kind}/{key}": number for key, number in metrics.items() if isinstance(number, int | float)}
        for tracker in self.trackers:
            tracker.log(numbers, images)

    def picture(self, name: str, path: Path, images: int) -> None:
        """Shows an image file to the trackers."""
        for tracker in self.trackers:
            tracker.picture(name, path, images)


def _rows(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:  # a row that a kill cut short
            continue
    return rows


def read_metrics(folder: Path, kind: str) -> list[dict[str, Any]]:
    """The rows of one kind in order of step, each step as its last attempt wrote it."""
    last = {row["step"]: row for row in _rows(folder / "metrics.jsonl") if row["kind"] == kind}
    return [last[step] for step in sorted(last)]


class OctileMeans:
    """The mean loss in each eighth of the training levels, since last asked."""

    def __init__(self, edges: Tensor):
        self.edges = edges.float()
        self.sums, self.counts = torch.zeros(OCTILES), torch.zeros(OCTILES)

    @classmethod
    def of(cls, levels: Levels) -> "OctileMeans":
        """For the eighths of `levels`."""
        return cls(levels(torch.linspace(0, 1, OCTILES + 1, dtype=torch.float64)[1:-1]))

    def add(self, sigma: Tensor, loss: Tensor) -> None:
        """Per-sample sigma (B,) and loss (B,)."""
        bins = torch.bucketize(sigma.float(), self.edges)
        self.sums.index_add_(0, bins, loss.float())
        self.counts.index_add_(0, bins, torch.ones_like(loss, dtype=torch.float32))

    def take(self) -> list[float | None]:
        """Eight means from the cleanest to the noisiest; None where no sample fell."""
        means = (self.sums / self.counts).tolist()
        self.sums.zero_()
        self.counts.zero_()
        return [mean if math.isfinite(mean) else None for mean in means]


def plot_loss(folder: Path, path: Path) -> None:
    """`loss.png`: training and held-out loss over images, and the training loss per octile of sigma."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    train, held = read_metrics(folder, "train"), read_metrics(folder, "validation")
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4))
    figure.subplots_adjust(left=0.06, right=0.985, bottom=0.12, top=0.92, wspace=0.14)  # to find these takes a second
    images = [row["images"] for row in train]
    left.plot(images, [row["loss"] for row in train], linewidth=0.8, label="training")
    left.plot(
        [row["images"] for row in held], [row["loss"] for row in held], "o-", markersize=3, label="held out (EMA)"
    )
    for octile in range(OCTILES):
        points = [(row["images"], row["octiles"][octile]) for row in train if row["octiles"][octile] is not None]
        colour = plt.get_cmap("viridis")(octile / (OCTILES - 1))
        name = {0: "cleanest", OCTILES - 1: "noisiest"}.get(octile)
        right.plot(*zip(*points, strict=True) if points else ([], []), linewidth=0.8, color=colour, label=name)
    for axes, title in ((left, "loss"), (right, "loss per octile of sigma")):
        axes.set(title=title, xlabel="images seen", yscale="log")
        if axes.lines:
            axes.legend()
    partial = path.with_name(f".{path.name}.part")
    figure.savefig(partial, format="png", dpi=90)
    plt.close(figure)
    partial.replace(path)
