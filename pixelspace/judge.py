"""Judging what is at hand: a model, a run, a folder or an archive, by a protocol's name."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pixelspace import hub
from pixelspace.api import open_model
from pixelspace.config import to_data
from pixelspace.drawing import draw_items, drawn, prompts_of, training_images
from pixelspace.errors import DataError, UserError
from pixelspace.evaluation.arrays import IMAGES
from pixelspace.evaluation.asking import prompts_of_items
from pixelspace.evaluation.computing import Computing
from pixelspace.evaluation.evaluate import evaluate
from pixelspace.evaluation.images import Images
from pixelspace.evaluation.npy import npz_members, open_npy
from pixelspace.evaluation.prompts import read_prompts
from pixelspace.evaluation.protocols import Protocol, Questions, clips, only
from pixelspace.evaluation.reference_file import AS_THEY_ARE
from pixelspace.evaluation.reference_making import reference_of
from pixelspace.evaluation.references import Reference, read_reference
from pixelspace.evaluation.report import Report
from pixelspace.evaluation.sources import open_images
from pixelspace.evaluation.sweep import Point, folder_of
from pixelspace.evaluation.views import choice, chosen, resized
from pixelspace.model import Model
from pixelspace.store import MANIFEST

_WEIGHTS = (".pth", ".pt", ".ckpt")
_STATISTICS = (".safetensors", ".npz", ".pkl", ".pt", ".npy")
_BATCH = 16
_MAX_COUNT = 100_000_000
_OURS = ("report.json", "features", "features-seed-", "reference", "sweep.json", "scores.json", "answers.csv")


def is_model(path: Path) -> bool:
    """Whether `path` is a run, stage, checkpoint, model folder, an address on the hub or another system's weights, not
    images."""
    if hub.is_address(path):
        return True
    if path.is_file():
        return path.suffix.lower() in _WEIGHTS or path.suffix.lower() == ".safetensors"
    return any((path / name).exists() for name in ("recipe.json", "checkpoints", MANIFEST))


def default_out(target: Path, name: str) -> Path:
    """Where what is found by the protocol `name` is written unless another folder is given: in a run or a stage; but
    nothing is added to images, nor to a model or a checkpoint, whose manifest counts every file."""
    if target.is_dir() and is_model(target) and not (target / MANIFEST).exists():
        return target / "evaluations" / name
    return Path("evaluations") / f"{target.resolve().name}-{name}"


def require_place(out: Path, *apart: Path) -> None:
    """Raises UserError where an evaluation must not be written: into `apart`, a model or a checkpoint, or among what is
    not an evaluation's."""
    at = out.resolve()
    for folder in (at, *at.parents):
        if folder.is_file():
            raise UserError(f"{out}: {folder.name} is a file; give another --out")
        if any(folder == one.resolve() for one in apart):
            raise UserError(f"{out}: lies in the images of {folder.name}, and would be among them; give another --out")
        if (folder / MANIFEST).exists():
            raise UserError(f"{out}: lies in {folder.name}, whose manifest counts every file; give another --out")
    there = [path.name for path in at.iterdir()] if at.is_dir() else []
    if there and not any(name.startswith(_OURS) or "=" in name for name in there):
        raise UserError(f"{out}: holds something else ({min(there)!r}); give a new or empty folder as --out")


def _holds_statistics(path: Path) -> bool:
    """Whether a file is to be read as statistics or features, and not as images: arrays may be either."""
    suffix = path.suffix.lower()
    if suffix == ".npz":
        members = npz_members(path)
        return IMAGES not in members or "mu" in members
    return len(open_npy(path).shape) < 4 if suffix == ".npy" else suffix in _STATISTICS


def _reference(path: Path, protocol: Protocol, shape: Sequence[int], cache: Path | None) -> Reference | Images:
    if not path.exists():
        raise UserError(f"reference: {path}: no such file or folder")
    if path.is_dir() and is_model(path):
        raise UserError(f"reference: {path}: is a run or a model; give images or statistics")
    if path.is_file() and _holds_statistics(path):
        return read_reference(path, cache=cache)
    moving = len(shape) == 4
    size = None if moving else (int(shape[1]), int(shape[2]))
    return open_images(path, cache=cache, size=size, crop=None if moving else protocol.crop, clips=moving)


def _counted(
    images: Images, captions: tuple[str, ...] | None, protocol: Protocol, count: int
) -> tuple[Images, tuple[str, ...] | None]:
    """`count` of the images, each with its caption."""
    if captions is not None and len(captions) != len(images):
        raise UserError(f"prompts: {len(captions):,} lines for {len(images):,} images; expected one for each")
    if len(images) < count:
        fewer = f", or give --count {len(images)}, and the numbers are labelled with it" if len(images) > 1 else ""
        needed = f"{count:,} are asked for" if count != protocol.count else f"{protocol.name} needs {count:,}"
        raise DataError(f"{images.source}: {len(images):,} images, {needed}; make more{fewer}")
    if len(images) == count:
        return images, captions
    few = captions and tuple(captions[i] for i in choice(len(images), count, protocol.seed))
    return chosen(images, count, protocol.seed), few


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
    seed: int | None = None
    repeats: int | None = None
    batch: int | None = None

    def __post_init__(self) -> None:
        if self.count is not None and not 2 <= self.count <= _MAX_COUNT:
            raise UserError(f"count must be from 2 to {_MAX_COUNT:,}, found {self.count}")
        if self.batch is not None and self.batch < 1:
            raise UserError(f"batch must be at least 1, found {self.batch}")

    @property
    def seeded(self) -> Protocol:
        """The protocol with the seeds that are asked for."""
        given = {"seed": self.seed, "repeats": self.repeats}
        return replace(self.protocol, **{name: value for name, value in given.items() if value is not None})


def _of_images(target: Path, device: str) -> Model:
    model = open_model(target, device)
    if model.config.backbone.tiles > 1:
        raise UserError(f"{target}: is a model of clips, which are not judged; only models of images are")
    return model


def _opened(task: Task, device: str) -> Model | None:
    """The model that is to be judged; None: images are."""
    target = task.target
    if not is_model(target):
        if not target.exists():
            raise UserError(f"{target}: no such file or folder")
        if task.settings or task.vae or task.batch is not None:
            raise UserError(f"{target}: holds images, and settings of sampling change nothing of them; leave them out")
        if task.repeats is not None and task.repeats > 1:
            raise UserError(f"{target}: holds one set of images, found repeats={task.repeats}; leave it out")
        return None
    if clips(task.protocol):
        raise UserError(f"{task.protocol.name} judges clips in files, and {target} is a model")
    model = _of_images(target, device)
    return model if task.vae is None else model.use_vae(task.vae)


def _sets(
    task: Task, protocol: Protocol, model: Model, count: int, prompts: tuple[str, ...]
) -> tuple[list[Images], dict[str, Any]]:
    """A model's images of each seed, and what a report says of them."""
    batch, settings = task.batch or _BATCH, dict(task.settings)
    sampling = model.plan(settings.get("steps"), settings.get("sampler"), settings.get("guidance"))
    sets = [
        _sized(drawn(model, protocol, count, seed, str(task.target), settings, batch, prompts), protocol)
        for seed in range(protocol.seed, protocol.seed + protocol.repeats)
    ]
    about = {
        "weights sha256": model.sha256,
        "sampling": to_data(sampling),
        "precision": model.config.precision,
        "pixels": "cut off to 8 bits" if protocol.truncate or model.config.codec.truncates else "rounded to 8 bits",
        "labels": protocol.labels if model.config.backbone.num_classes else "none",
        **({"prompts": str(task.prompts or "captions of its training images")} if prompts else {}),
        "batch": batch,
    }
    return sets, about


def _judged(
    task: Task, model: Model | None, out: Path, computing: Computing, cache: Path | None, shared: Path | None
) -> Report | None:
    protocol = task.seeded
    metrics = only(protocol, task.metrics)
    captions = read_prompts(task.prompts) if task.prompts is not None else None
    count = protocol.count if task.count is None else task.count
    if model is not None:
        prompts = prompts_of(model, protocol, task.target, captions, count, cache)
        if prompts:
            reads = protocol.labels == "captions" or any(metric.reads_captions for metric in metrics)
            captions = prompts if reads else None
        sets, about = _sets(task, protocol, model, count, prompts)
    else:
        found = _sized(open_images(task.target, cache=cache, clips=clips(protocol)), protocol)
        found, captions = _counted(found, captions, protocol, count)
        sets, about = [found], {}
    reference: Reference | Images | None = None
    if task.reference is not None:
        reference = _reference(task.reference, protocol, sets[0].shape, cache)
    elif model is not None and any(metric.wants != "nothing" for metric in metrics):
        reference = training_images(task.target, cache)
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


def _apart(task: Task) -> list[Path]:
    """Folders of images that are judged or compared with."""
    folders = [task.target, *([task.reference] if task.reference is not None else [])]
    return [path for path in folders if path.is_dir() and not is_model(path)]


def judge(task: Task, out: Path, computing: Computing, *, cache: Path | None = None) -> Report | None:
    """Judges a model's images or those of a folder, archive or array, and writes a report into `out`.

    A run is compared with its own training images unless a reference is named. Of several processes those that find
    work of others missing at their end return None.

    Raises:
        PixelspaceError: what cannot be meant, read or had, in one line.
    """
    model = _opened(task, str(computing.device))
    require_place(out, *_apart(task))
    return _judged(task, model, out, computing, cache, None)


def draw_questioned(
    target: Path,
    protocol: Questions,
    out: Path,
    computing: Computing,
    *,
    prompts: Path | None = None,
    settings: Mapping[str, Any],
    seed: int | None = None,
    batch: int | None = None,
    vae: Path | None = None,
) -> Path:
    """Draws the image of each item that a protocol asks about, and returns their folder, which is in `out`. Several
    processes share the work.

    Raises:
        UserError: the model reads no text.
    """
    model = _of_images(target, str(computing.device))
    if vae is not None:
        model.use_vae(vae)
    if model.config.text is None:
        raise UserError(f"{target}: reads no text; {protocol.name} asks about images that were made of its prompts")
    require_place(out)
    said = prompts_of_items(protocol, prompts)
    return draw_items(model, said, out / "images", settings, seed or 0, batch or _BATCH, **computing.share)


def sweep(
    task: Task,
    points: Sequence[Mapping[str, Any]],
    out: Path,
    computing: Computing,
    *,
    cache: Path | None = None,
) -> list[Point] | None:
    """Judges a model at each of `points`, settings of its sampling, each in a folder of its own below `out`, against
    the same features of the reference.

    Of several processes those that find work of others missing at their end return None.

    Raises:
        UserError: `task` is about images, or a point cannot be meant; else as `judge`.
    """
    model = _opened(task, str(computing.device))
    if model is None:
        raise UserError(f"--sweep: {task.target} holds images; settings of sampling are swept over a model")
    for point in points:
        if twice := sorted(dict(task.settings).keys() & point.keys()):
            raise UserError(f"--sweep: {twice[0]} is given as --{twice[0]}, too; leave one of them out")
        settings = {**dict(task.settings), **point}
        model.plan(settings.get("steps"), settings.get("sampler"), settings.get("guidance"))
    require_place(out, *_apart(task))

    def judged(point: Mapping[str, Any]) -> Report | None:
        at = replace(task, settings=(*task.settings, *point.items()))
        return _judged(at, model, out / folder_of(point), computing, cache, out / "reference")

    first = [judged(point) for point in points]
    # Those that other processes had not finished then, may be whole now.
    reports = [judged(point) if report is None else report for point, report in zip(points, first, strict=True)]
    found = [Point(point, report) for point, report in zip(points, reports, strict=True) if report is not None]
    return found if len(found) == len(points) else None


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
    if is_model(images):
        raise UserError(f"{images}: is a run or a model; give images")
    some = only(protocol, metrics)
    wanted = size or protocol.size
    crop = protocol.crop if wanted else None
    found = open_images(images, cache=cache, size=wanted, crop=crop, clips=clips(protocol))
    return reference_of(found, protocol, out, computing, metrics=some, crop=crop or AS_THEY_ARE, features=features)
