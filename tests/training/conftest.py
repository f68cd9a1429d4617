"""A tiny recipe on the packaged emoji: every piece real, a step takes milliseconds."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pixelspace.recipes.hdit import imagenet128_debug
from pixelspace.training.loop import run_recipe
from pixelspace.training.stage import Recipe


@pytest.fixture(scope="session")
def tiny() -> Recipe:
    """12 steps of 8 images with dropout, label drop, random crops and flips."""
    recipe = imagenet128_debug()
    (stage,) = recipe.stages
    levels = tuple(replace(level, dropout=0.1) for level in stage.backbone.levels)
    stage = replace(
        stage,
        backbone=replace(stage.backbone, levels=levels),
        data=replace(stage.data, crop="random", holdout=0.02),
        batch=8,
        images=96,
        save_images=8,
        sample_images=96,
        validate_images=48,
        validate_count=8,
        sample_count=2,
        keep_every=1,
    )
    return Recipe("tiny", (stage,))


@pytest.fixture
def train():
    """Trains quietly and returns the lines that were said."""

    def run(recipe: Recipe, folder: Path, **given) -> list[str]:
        said: list[str] = []
        run_recipe(recipe, folder, device=torch.device("cpu"), progress=False, say=said.append, **given)
        return said

    return run
