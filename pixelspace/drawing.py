"""What a model is given to draw when it is judged: classes, captions, and which images it was trained on."""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pixelspace.config import from_data, read_json, to_data
from pixelspace.data.dataset import Dataset
from pixelspace.data.grid import grid_image, save_image
from pixelspace.data.loader import divide
from pixelspace.data.order import spread
from pixelspace.errors import UserError
from pixelspace.evaluation.images import Images
from pixelspace.evaluation.protocols import Protocol
from pixelspace.evaluation.views import Made, samples
from pixelspace.files import publish
from pixelspace.model import Model
from pixelspace.random import Rng
from pixelspace.recipes.values import VALUES
from pixelspace.training.checkpoint import candidates
from pixelspace.training.stage import Recipe, Stage


def recipe_in(run: Path) -> Recipe:
    """What a run was begun with."""
    recipe = from_data(read_json(run / "recipe.json"), VALUES)
    if not isinstance(recipe, Recipe):
        raise UserError(f"{run}: its recipe.json holds a {type(recipe).__name__}")
    return recipe


def _trained_on(run: Path, cache: Path | None) -> tuple[Stage, Dataset, list[int]]:
    """The last trained stage of a run, its data, and which samples it was trained on."""
    recipe = recipe_in(run)
    trained = [
        stage for i, stage in enumerate(recipe.stages) if candidates(run / f"{i:02d}-{stage.name}" / "checkpoints")
    ]
    if not trained:
        raise UserError(f"{run}: a run without a checkpoint yet")
    stage = trained[-1]
    dataset = stage.data.source.open(cache)
    ids, _ = divide(dataset, stage.data, recipe.split)
    return stage, dataset, ids.tolist()


def training_images(run: Path, cache: Path | None) -> Images | None:
    """The images that the last trained stage of a run was trained on, cut as there; None of a run on latents.

    Raises:
        UserError: `run` is no run.
    """
    if not (run / "recipe.json").is_file():
        raise UserError(f"{run}: is no run with its data, so there is nothing to compare with: give --reference")
    stage, dataset, ids = _trained_on(run, cache)
    if not dataset.holds_images:
        return None
    return samples(dataset, ids, stage.size, "center" if stage.data.crop == "random" else stage.data.crop)


def prompts_of(
    model: Model, protocol: Protocol, target: Path, given: Sequence[str] | None, count: int, cache: Path | None
) -> tuple[str, ...]:
    """By what each of `count` images is drawn that a protocol judges: the captions `given`, or else those of the images
    that the run `target` was trained on, in turn; () of a model that reads no text.

    Raises:
        UserError: the protocol draws by captions and the model reads none, or none are to be had.
    """
    by_captions = protocol.labels == "captions"
    if model.config.text is None:
        if by_captions:
            raise UserError(
                f"{protocol.name} draws by captions, and this model reads none; judge a folder of images made by them"
            )
        return ()
    if given is None:
        if by_captions:
            raise UserError(f"{protocol.name} draws by captions: give them by --prompts, one an image")
        if not (target / "recipe.json").is_file():
            raise UserError(f"{target}: draws by captions, and is no run with its data: give captions by --prompts")
        _, dataset, ids = _trained_on(target, cache)
        given = [dataset.texts(index)[0] for index in spread(ids, count)]
    elif by_captions and len(given) < count:
        raise UserError(f"prompts: {len(given):,} captions, and {protocol.name} draws {count:,} images; give as many")
    return tuple(given[i % len(given)] for i in range(count))


def drawn(
    model: Model,
    protocol: Protocol,
    count: int,
    seed: int,
    source: str,
    settings: Mapping[str, Any],
    batch: int,
    prompts: Sequence[str] = (),
) -> Made:
    """The images of `model` that a protocol judges under one seed; `settings` are those of `Model.sample`, `prompts`
    one an image, or () for a model that reads no text."""
    config, classes = model.config, model.config.backbone.num_classes
    sampling = model.plan(settings.get("steps"), settings.get("sampler"), settings.get("guidance"))

    def draw(numbers: range):
        images = model.sample(
            len(numbers),
            first=numbers.start,
            label=protocol.label_of(numbers, classes, seed) if classes else None,
            text=prompts[numbers.start : numbers.stop] if prompts else None,
            seed=seed,
            batch=batch,
            exact=True,
            progress=False,
            truncate=protocol.truncate or None,
            **settings,
        )
        return images.permute(0, 3, 1, 2)

    weights = model.sha256
    labelled = f"{protocol.labels} of {protocol.count}, {protocol.truncate}"
    said = hashlib.sha256(json.dumps(list(prompts)).encode()).hexdigest() if prompts else ""
    key = Rng(seed).key(f"{weights}, {to_data(config)}, {to_data(sampling)}, batch {batch}, {labelled}{said}")
    by = f"{sampling.solver} {sampling.steps} steps, guidance {sampling.guidance:g}, seed {seed}, batch {batch}"
    fingerprint = f"weights {weights[:8]}, {by}, {key:016x}"
    return Made(source, fingerprint, (3, *config.size), count, draw, batch * math.ceil(64 / batch))


_SAYS = "drawn.json"


def draw_items(
    model: Model,
    prompts: Mapping[str, str],
    folder: Path,
    settings: Mapping[str, Any],
    seed: int,
    batch: int,
    *,
    rank: int = 0,
    world: int = 1,
    progress: bool = True,
) -> Path:
    """Draws an image for each prompt into `folder`/NAME.png, and returns the folder; those that are there stay. Of
    `world` processes that share the work each has its `rank`, and leaves the images of the others alone.

    Raises:
        UserError: the model reads no text, or the folder holds images of other weights or settings.
    """
    plan = model.plan(settings.get("steps"), settings.get("sampler"), settings.get("guidance"))
    stated = {"weights": model.sha256, "sampling": to_data(plan), "seed": seed, "prompts": dict(prompts)}
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / _SAYS).is_file():
        publish(folder / _SAYS, json.dumps(stated).encode(), "run the same command again")
    if read_json(folder / _SAYS) != stated:
        raise UserError(f"{folder}: holds images of another model, prompts or settings; give another --out")
    names = list(prompts)
    for start in range(rank * batch, len(names), world * batch):
        some = names[start : start + batch]
        if all((folder / f"{name}.png").is_file() for name in some):
            continue
        text = [prompts[name] for name in some]
        images = model.sample(text=text, first=start, seed=seed, batch=batch, exact=True, progress=progress, **settings)
        for name, image in zip(some, images.permute(0, 3, 1, 2), strict=True):
            save_image(grid_image(image[None], 1, gap=0), folder / f"{name}.png")
    return folder
