"""Runs written by what training itself writes them with, but for the learning."""

import math
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import torch

from pixelspace.cli.given import recipe_of
from pixelspace.training.log import Metrics
from pixelspace.training.preview import save_sheets
from pixelspace.training.run import opened_run
from pixelspace.training.stage import Recipe
from pixelspace.training.standing import stage_folder

RECIPE = "hdit-imagenet128-debug"
COLOURS = {4: (200, 30, 30), 16: (30, 200, 30), 32: (30, 30, 200)}  # of samples, by images seen


def make_run(run: Path, *settings: str, recipe: str = RECIPE) -> Recipe:
    """The folder of a run that has begun."""
    made = recipe_of(recipe, None, (settings,) if settings else ())
    with ExitStack() as stack:
        stack.enter_context(opened_run(run, made))
    return made


def stage_of(run: Path, recipe: Recipe, index: int = 0) -> Path:
    """The folder of one of its stages."""
    folder = stage_folder(run, recipe, recipe.stages[index].name)
    folder.mkdir(exist_ok=True)
    return folder


def train_rows(metrics: Metrics, steps: Sequence[int], batch: int = 4, loss: float = 1.0) -> None:
    """Rows as the loop writes them, of a loss that falls."""
    for step in steps:
        metrics.write(
            "train",
            step,
            step * batch,
            loss=loss * math.exp(-step / 10),
            grad_norm=0.5,
            lr=5e-4,
            ema_decay=0.9,
            images_per_second=100.0,
            data_wait=0.01,
            peak_bytes=1 << 30,
            octiles=[None, *(loss * octile for octile in range(1, 8))],
        )


def draw_samples(folder: Path, images: int, levels: Sequence[int] = (16,)) -> None:
    """A sheet of four squares of one colour for each level."""
    colour = torch.tensor(COLOURS[images], dtype=torch.uint8)
    save_sheets([colour.expand(4, size, size, 3) for size in levels], folder / "samples", images)
