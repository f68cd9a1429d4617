"""All instruments at once, on a model or a run, and what their numbers mean in words."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from pixelspace.api import load, open_model
from pixelspace.diagnosis.knowledge import Layer, errors, listening, sigmas_of
from pixelspace.diagnosis.pictures import colour, contrast, octaves, pattern, periods, seams, variety
from pixelspace.drawing import prompts_of, training_images
from pixelspace.errors import UserError
from pixelspace.evaluation.images import Images
from pixelspace.evaluation.protocols import quick
from pixelspace.evaluation.sources import open_images
from pixelspace.evaluation.views import chosen
from pixelspace.model import Model
from pixelspace.random import Rng
from pixelspace.training.log import OCTILES, read_metrics


@dataclass(frozen=True, slots=True)
class Grid:
    """Of one size of patch: `seams`, the mean over images, with its standard error, and `pattern`."""

    seams: float
    error: float
    pattern: float


@dataclass(frozen=True, slots=True)
class Looks:
    """What is seen of images; see `pictures`."""

    contrast: float
    colour: float
    variety: float
    octaves: tuple[float, ...]
    grids: Mapping[int, Grid]


def looks(images: Tensor) -> Looks:
    """Of images (n, C, H, W)."""
    grids = {}
    for period in periods(*images.shape[-2:]):
        each = seams(images, period)
        grids[period] = Grid(float(each.mean()), float(each.std() / len(each) ** 0.5), pattern(images, period))
    return Looks(contrast(images), colour(images), variety(images), tuple(octaves(images)), grids)


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What the instruments read. Without real images `real` is None and `averaged` empty; `raw` (the errors of the
    weights that are not averaged) and `trend` are a run's. Errors stand by level of a pyramid, finest first, for each
    of `sigmas`; `deviation` is that of real pixels. `trend` has for each eighth of the training's noise levels, from
    the cleanest, the loss of its last fifth over that of the fifth before (None: no row)."""

    drawn: Looks
    real: Looks | None
    sigmas: tuple[float, ...] = ()
    deviation: float = 0.0
    averaged: tuple[tuple[float, ...], ...] = ()
    raw: tuple[tuple[float, ...], ...] = ()
    layers: tuple[Layer, ...] = ()
    trend: tuple[float | None, ...] = ()


def trend_of(octiles: Sequence[Sequence[float | None]]) -> tuple[float | None, ...]:
    """For each column of rows in order of time: the mean of the last fifth over that of the fifth before; None where
    there are fewer than three numbers in one of them."""
    fifth = len(octiles) // 5
    found = []
    for column in range(OCTILES):
        parts = (octiles[-2 * fifth : -fifth], octiles[-fifth:]) if fifth else ((), ())
        before, last = ([row[column] for row in part if row[column] is not None] for part in parts)
        enough = min(len(before), len(last)) >= 3
        found.append(sum(last) / len(last) / (sum(before) / len(before)) if enough else None)  # type: ignore[arg-type]
    return tuple(found)


def _trend(run: Path) -> tuple[float | None, ...]:
    stages = [path for path in sorted(run.iterdir()) if (path / "metrics.jsonl").is_file()]
    return trend_of([row["octiles"] for row in read_metrics(stages[-1], "train")]) if stages else ()


def _real(target: Path, data: Path | None, model: Model, cache: Path | None) -> Images | None:
    if data is not None:
        return open_images(data, cache=cache, size=model.config.size, crop="center")
    return training_images(target, cache) if (target / "recipe.json").is_file() else None


def _draw(model: Model, n: int, prompts: Sequence[str], seed: int, steps: int | None, batch: int) -> Tensor:
    classes = model.config.backbone.num_classes
    label = torch.arange(n) % classes if classes else None
    images = model.sample(n, label=label, text=prompts or None, seed=seed, steps=steps, batch=batch, progress=False)
    return images.permute(0, 3, 1, 2)


def diagnose(
    target: Path,
    *,
    data: Path | None = None,
    prompts: Sequence[str] | None = None,
    n: int = 64,
    steps: int | None = None,
    seed: int = 0,
    batch: int = 16,
    device: str = "auto",
    cache: Path | None = None,
) -> Diagnosis:
    """Draws `n` images with averaged weights and compares them with as many of the run's own, or of `data`; denoises
    those at eight noise levels, and listens to the network while it does.

    Raises:
        UserError: a model of clips, or one that reads text without prompts to draw by.
        CheckpointError: there is no model.
        DataError: the real images cannot be read.
    """
    if not 8 <= n <= 10_000:
        raise UserError(f"n must be from 8 to 10,000, found {n}")
    model = open_model(target, device)
    if model.config.backbone.tiles > 1:
        raise UserError(f"{target}: is a model of clips, and these instruments are for images")
    images = _real(target, data, model, cache)
    given = () if model.config.text is None else prompts_of(model, quick(), target, prompts, n, cache)
    shown = looks(_draw(model, n, given, seed, steps, batch))
    run = (target / "recipe.json").is_file()
    trend = _trend(target) if run else ()
    if images is None:
        return Diagnosis(shown, None, trend=trend)
    real = (chosen(images, n, seed) if len(images) > n else images).read(range(min(n, len(images))))
    sigmas = sigmas_of(model)

    def known(one: Model) -> tuple[tuple[float, ...], ...]:
        found = [errors(one, real, sigma, seed=seed, batch=batch) for sigma in sigmas]
        return tuple(zip(*found, strict=True))

    with listening(model.backbone) as heard:
        averaged = known(model)
        if given:  # of no text some networks see a single token, by which what attends to text never changes
            words = model.reader(list(given[: len(real)])).cond()
            heard.leave_out(words)
            errors(model, real, sigmas[len(sigmas) // 2], cond=words, seed=seed, batch=batch)
    codec = model.config.codec
    x0 = codec.encode(codec.store(real.to(model.device)), Rng(seed), torch.arange(len(real), device=model.device))
    return Diagnosis(
        drawn=shown,
        real=looks(real),
        sigmas=tuple(sigmas),
        deviation=float(x0.std()),
        averaged=averaged,
        raw=known(load(target, device=device, weights="raw")) if run else (),
        layers=tuple(heard.layers()),
        trend=trend,
    )
