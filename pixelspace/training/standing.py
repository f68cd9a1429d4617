"""How far the stages of a run stand, and what a recipe cannot mean in view of that."""

from collections.abc import Mapping
from pathlib import Path

from pixelspace.errors import UserError
from pixelspace.training import checkpoint
from pixelspace.training.inherit import check_source, planned
from pixelspace.training.stage import Recipe, Stage


def stage_folder(run: Path, recipe: Recipe, name: str) -> Path:
    """Where a stage of a run lives: `00-core-64`."""
    index = [stage.name for stage in recipe.stages].index(name)
    return run / f"{index:02d}-{name}"


def is_done(stage: Stage, folder: Path) -> bool:
    """Whether there is a checkpoint of the stage's last step."""
    steps = checkpoint.candidates(folder / "checkpoints")
    return bool(steps) and steps[0].name == f"step-{stage.images // stage.batch:08d}"


def _stands(stage: Stage, folder: Path) -> tuple[Path | None, int]:
    """A stage's newest checkpoint, and the images it has seen; of one that is at its end nothing is read."""
    if not folder.is_dir():
        return None, 0
    if is_done(stage, folder):
        return checkpoint.candidates(folder / "checkpoints")[0], stage.images
    return checkpoint.images_seen(folder / "checkpoints")


def _check_end(recipe: Recipe, stage: Stage, seen: Mapping[str, int]) -> None:
    """Refuses an end that a stage has passed, or before which others have taken over from it."""
    stands = seen[stage.name]
    if stands > stage.images:
        raise UserError(
            f"stage {stage.name!r} has seen {stands:,} images and cannot end, nor its heir begin, at "
            f"{stage.images:,}; the nearest is {stands:,}"
        )
    for heir in recipe.stages:
        if stands < stage.images and heir.init and heir.init.stage == stage.name and seen[heir.name]:
            raise UserError(
                f"stage {stage.name!r} stands at {stands:,} of {stage.images:,} images, and {heir.name!r}, which took "
                f"over from it, has seen {seen[heir.name]:,}; set stages.{recipe.stages.index(stage)}.images to "
                f"{stands}, or start anew with another --out"
            )


def check_start(recipe: Recipe, run: Path, first: str | None = None, given: bool = False) -> None:
    """Refuses, before anything is written, what does not fit: rules and names of what is inherited, frozen or has a
    rate of its own; and from the stage `first` on, ends that are passed, or weights that are not there unless `given`.

    Raises:
        UserError: naming the stage.
        CheckpointError: an earlier stage has no checkpoint, or a stage has none that is whole.
    """
    planned(recipe)
    names = [stage.name for stage in recipe.stages]
    start = names.index(first) if first else 0
    folders = {name: stage_folder(run, recipe, name) for name in names}
    seen = {stage.name: _stands(stage, folders[stage.name])[1] for stage in recipe.stages[start:]}
    for i, stage in enumerate(recipe.stages[start:]):
        _check_end(recipe, stage, seen)
        source = stage.init.stage if stage.init else stage.name
        if source in names[:start] and not seen[stage.name] and not (given and i == 0):
            check_source(recipe, stage, folders[source], *_stands(recipe[source], folders[source]))
