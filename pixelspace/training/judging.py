"""The evaluators of a stage: when each is due, what it found, and which checkpoint it found best."""

from collections.abc import Sequence
from pathlib import Path

from pixelspace.config import nearest
from pixelspace.errors import UserError
from pixelspace.training.log import Metrics, read_metrics
from pixelspace.training.stage import Stage
from pixelspace.types import Evaluator, Number


def _kind(evaluator: Evaluator) -> str:
    return f"evaluation/{evaluator.name}"


def due(stage: Stage, folder: Path, step: int) -> list[Evaluator]:
    """The evaluators that have not yet judged `step`, and should: every so many images, and at the end."""
    last = step * stage.batch >= stage.images
    timely = [one for one in stage.evaluators if last or step % max(1, one.every_images // stage.batch) == 0]
    return [one for one in timely if step and all(row["step"] != step for row in read_metrics(folder, _kind(one)))]


def record(metrics: Metrics, evaluator: Evaluator, step: int, images: int, numbers: Sequence[Number]) -> None:
    """Writes what an evaluator found.

    Raises:
        UserError: the number that is to say which checkpoint is best is not among them.
    """
    by_name = {number.name: number for number in numbers}
    best = evaluator.best or numbers[0].name
    if best not in by_name:
        raise UserError(f"best: {evaluator.name} has no number {best!r}; {nearest(best, by_name)}")
    values = {number.name: number.value for number in numbers}
    metrics.write(_kind(evaluator), step, images, best=best, lower=by_name[best].lower_is_better, **values)


def best_steps(stage: Stage, folder: Path) -> dict[str, tuple[int, str, float]]:
    """By evaluator: the step it liked best so far, by which number, and its value there."""
    found = {}
    for evaluator in stage.evaluators:
        rows = read_metrics(folder, _kind(evaluator))
        if rows:
            sign = 1 if rows[-1]["lower"] else -1
            name = rows[-1]["best"]
            row = min((row for row in rows if name in row), key=lambda row: sign * row[name])
            found[evaluator.name] = row["step"], name, row[name]
    return found


def plot(stage: Stage, folder: Path) -> list[Path]:
    """`evaluation-NAME.png`: every number of an evaluator over the images seen."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    paths = []
    for evaluator in stage.evaluators:
        rows = read_metrics(folder, _kind(evaluator))
        apart = {"kind", "attempt", "step", "images", "best", "lower"}
        names = [name for name in (rows[-1] if rows else {}) if name not in apart]
        if not names:
            continue
        figure, axes = plt.subplots(1, len(names), figsize=(3.2 * len(names), 3), layout="constrained", squeeze=False)
        for name, one in zip(names, axes[0], strict=True):
            points = [(row["images"], row[name]) for row in rows if name in row]
            one.plot(*zip(*points, strict=True), "o-", markersize=3)
            one.set(title=name, xlabel="images seen")
        path = folder / f"evaluation-{evaluator.name}.png"
        partial = path.with_name(f".{path.name}.part")
        figure.savefig(partial, format="png", dpi=90)
        plt.close(figure)
        paths.append(partial.replace(path))
    return paths
