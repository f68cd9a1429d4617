"""Judging what is at hand: a model, a run, a folder or an archive, by a protocol's name."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pixelspace.api import Model, import_checkpoint, load
from pixelspace.config import from_data, read_json, to_data
from pixelspace.data.loader import split
from pixelspace.errors import DataError, UserError
from pixelspace.evaluation.computing import Computing
from pixelspace.evaluation.evaluate import evaluate
from pixelspace.evaluation.i3d import I3D
from pixelspace.evaluation.images import Images
from pixelspace.evaluation.prompts import read_prompts
from pixelspace.evaluation.protocols import Protocol, only
from pixelspace.evaluation.reference_file import AS_THEY_ARE
from pixelspace.evaluation.reference_making import reference_of
from pixelspace.evaluation.references import Reference, read_reference
from pixelspace.evaluation.report import Report
from pixelspace.evaluation.sources import open_images
from pixelspace.evaluation.sweep import Point, folder_of
from pixelspace.evaluation.views import Made, chosen, resized, samples
from pixelspace.nn.weights import digest
from pixelspace.random import Rng
from pixelspace.recipes.values import VALUES
from pixelspace.training.checkpoint import candidates
from pixelspace.training.stage import Recipe

_WEIGHTS = (".pth", ".pt", ".ckpt")
_STATISTICS = (".safetensors", ".npz", ".pkl", ".pt", ".npy")


def is_model(path: Path) -> bool:
    """Whether `path` is a run, stage, checkpoint, model folder or another system's weights, not images."""
    if path.is_file():
        return path.suffix.lower() in _WEIGHTS or path.suffix.lower() == ".safetensors"
    return any((path / name).exists() for name in ("recipe.json", "checkpoints", "MANIFEST.json"))


def open_model(path: Path, device: str) -> Model:
    """The model at `path`, ours or another system's."""
    return import_checkpoint(path, device=device) if path.is_file() else load(path, device=device)


def drawn(
    model: Model,
    protocol: Protocol,
    count: int,
    seed: int,
    *,
    source: str,
    settings: Mapping[str, Any],
    batch: int = 16,
) -> Made:
    """The images of `model` that a protocol judges under one seed; `settings` are those of `Model.sample`.

    Raises:
        UserError: the protocol draws by captions, and the model reads none.
    """
    if protocol.labels == "captions":
        raise UserError(
            f"{protocol.name} draws by captions, and this model reads none; judge a folder of images made by them"
        )
    config, classes = model.config, model.config.backbone.num_classes
    sampling = model.plan(settings.get("steps"), settings.get("sampler"), settings.get("guidance"))

    def draw(numbers: range):
        labels = protocol.label_of(numbers, classes, seed) if classes else None
        images = model.sample(
            len(numbers),
            first=numbers.start,
            label=labels,
            seed=seed,
            batch=batch,
            exact=True,
            progress=False,
            truncate=protocol.truncate or None,
            **settings,
        )
        return images.permute(0, 3, 1, 2)

    made_by = f"{digest(model.backbone.state_dict())}, {to_data(config)}, {to_data(sampling)}, batch {batch}"
    key = Rng(seed).key(made_by, str(to_data(protocol)))
    return Made(source, f"{key:016x}", (3, *config.size), count, draw, batch * math.ceil(64 / batch))


def _recipe(run: Path) -> Recipe:
    recipe = from_data(read_json(run / "recipe.json"), VALUES)
    if not isinstance(recipe, Recipe):
        raise UserError(f"{run}: its recipe.json holds a {type(recipe).__name__}")
    return recipe


def training_images(run: Path, cache: Path | None) -> Images | None:
    """The images that the last trained stage of a run was trained on, cut as there; None of a run on latents.

    Raises:
        UserError: `run` is no run.
    """
    if not (run / "recipe.json").is_file():
        raise UserError(f"{run}: is no run with its data, so there is nothing to compare with: give --reference")
    recipe = _recipe(run)
    trained = [
        stage for i, stage in enumerate(recipe.stages) if candidates(run / f"{i:02d}-{stage.name}" / "checkpoints")
    ]
    if not trained:
        raise UserError(f"{run}: a run without a checkpoint yet")
    stage = trained[-1]
    dataset = stage.data.source.open(cache)
    if not dataset.holds_images:
        return None
    ids, _ = split(len(dataset), stage.data.holdout, Rng(Rng(recipe.seed).key("stage", stage.name)))
    crop = "center" if stage.data.crop == "random" else stage.data.crop
    return samples(dataset, ids, stage.size, crop)


def _reference(path: Path, protocol: Protocol, shape: Sequence[int], cache: Path | None) -> Reference | Images:
    if path.is_dir() or path.suffix.lower() not in _STATISTICS:
        clips = len(shape) == 4
        size = None if clips else (int(shape[1]), int(shape[2]))
        return open_images(path, cache=cache, size=size, crop=None if clips else protocol.crop, clips=clips)
    return read_reference(path, cache=cache)


def _counted(images: Images, protocol: Protocol, count: int, seed: int) -> Images:
    if len(images) < count:
        raise DataError(
            f"{images.source}: {len(images):,} images, {protocol.name} needs {count:,}; make more, or give --count "
            f"{len(images)}, and the numbers are labelled with it"
        )
    return chosen(images, count, seed) if len(images) > count else images


def _sized(images: Images, protocol: Protocol) -> Images:
    height, width = images.shape[-2:]
    if protocol.size is None or (height, width) == protocol.size:
        return images
    if height < protocol.size[0] or width < protocol.size[1]:
        found, wanted = f"{height}x{width}", f"{protocol.size[0]}x{protocol.size[1]}"
        raise DataError(f"{images.source}: images of {found}, {protocol.name} judges at {wanted}: make larger ones")
    return resized(images, protocol.size)


@dataclass(frozen=True)
class Task:
    """What is to be judged and how; None leaves to the protocol or to the model what is theirs.

    `settings` are steps, sampler and guidance of a model's sampling; `seed` and `repeats` say which seeds it draws by;
    `batch` images are drawn at once.
    """

    target: Path
    protocol: Protocol
    reference: Path | None = None
    count: int | None = None
    metrics: tuple[str, ...] = ()
    prompts: Path | None = None
    vae: Path | None = None
    settings: tuple[tuple[str, Any], ...] = ()
    batch: int = 16


def _judged(task: Task, model: Model | None, count: int, cache: Path | None) -> tuple[list[Images], dict[str, Any]]:
    protocol = task.protocol
    if model is None:
        clips = any(isinstance(metric.extractor, I3D) for metric in protocol.metrics)
        found = open_images(task.target, cache=cache, clips=clips)
        return [_counted(_sized(found, protocol), protocol, count, protocol.seed)], {}
    settings = dict(task.settings)
    sampling = model.plan(settings.get("steps"), settings.get("sampler"), settings.get("guidance"))
    sets = [
        _sized(
            drawn(model, protocol, count, seed, source=str(task.target), settings=settings, batch=task.batch), protocol
        )
        for seed in range(protocol.seed, protocol.seed + protocol.repeats)
    ]
    about = {
        "weights sha256": digest(model.backbone.state_dict()),
        "sampling": to_data(sampling),
        "precision": model.config.precision,
        "pixels": "cut off to 8 bits" if protocol.truncate or model.config.codec.truncates else "rounded to 8 bits",
        "labels": protocol.labels if model.config.backbone.num_classes else "none",
        "batch": task.batch,
    }
    return sets, about


def judge(
    task: Task, out: Path, computing: Computing, *, cache: Path | None = None, shared: Path | None = None
) -> Report | None:
    """Judges a model's images or those of a folder, archive or array, and writes a report into `out`.

    A run is compared with its own training images unless a reference is named. Features of reference images are kept
    in `shared`, by default in `out`; see `evaluate`.

    Raises:
        PixelspaceError: what cannot be meant, read or had, in one line.
    """
    protocol, target = task.protocol, task.target
    if not target.exists():
        raise UserError(f"{target}: no such file or folder")
    count = protocol.count if task.count is None else task.count
    if count < 2:
        raise UserError(f"count must be at least 2, found {count}")
    metrics = only(protocol, task.metrics)
    model = open_model(target, str(computing.device)) if is_model(target) else None
    if model is None and (task.settings or task.vae):
        raise UserError(f"{target}: holds images, and settings of sampling change nothing of them; leave them out")
    if model is not None and task.vae is not None:
        model.use_vae(task.vae)
    sets, about = _judged(task, model, count, cache)
    reference: Reference | Images | None = None
    if task.reference is not None:
        reference = _reference(task.reference, protocol, sets[0].shape, cache)
    elif model is not None and any(metric.wants != "nothing" for metric in metrics):
        reference = training_images(target, cache)
    captions = read_prompts(task.prompts) if task.prompts is not None else None
    return evaluate(
        protocol,
        sets,
        out,
        computing,
        metrics=metrics,
        reference=reference,
        reference_features=shared,
        captions=captions,
        about=about,
    )


def sweep(
    task: Task,
    points: Sequence[Mapping[str, Any]],
    out: Path,
    computing: Computing,
    *,
    cache: Path | None = None,
) -> list[Point] | None:
    """Judges a model at each of `points`, settings of its sampling, each in a folder of its own below `out`.

    Of several processes those that find work of others missing at their end return None.

    Raises:
        UserError: `task` is about images; else as `judge`.
    """
    if not is_model(task.target):
        raise UserError(f"--sweep: {task.target} holds images; settings of sampling are swept over a model")
    found = []
    for point in points:
        settings = tuple({**dict(task.settings), **point}.items())
        at = replace(task, settings=settings)
        report = judge(at, out / folder_of(point), computing, cache=cache, shared=out / "reference")
        found.append(Point(point, report) if report is not None else None)
    whole = [point for point in found if point is not None]
    return whole if len(whole) == len(found) else None


def make_reference(
    images: Path,
    out: Path,
    protocol: Protocol,
    computing: Computing,
    *,
    metrics: tuple[str, ...] = (),
    size: tuple[int, int] | None = None,
    features: bool = False,
    cache: Path | None = None,
) -> Path | None:
    """Statistics, and with `features` the features, of the images of a folder, archive or array as `protocol` sees
    them, cut by its crop where `size` is given or the protocol has one.

    Raises:
        PixelspaceError: what cannot be meant, read or had, in one line.
    """
    wanted = size or protocol.size
    crop = protocol.crop if wanted else None
    clips = any(isinstance(metric.extractor, I3D) for metric in protocol.metrics)
    found = open_images(images, cache=cache, size=wanted, crop=crop, clips=clips)
    some = only(protocol, metrics)
    return reference_of(found, protocol, out, computing, metrics=some, crop=crop or AS_THEY_ARE, features=features)
