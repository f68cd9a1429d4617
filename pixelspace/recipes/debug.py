"""Stages shrunk to seconds on a CPU, so that every recipe can be tried, and is tested, as a whole."""

from dataclasses import replace

from pixelspace.data.codec import Pixels
from pixelspace.data.loader import Data
from pixelspace.objectives.denoising import Objective
from pixelspace.training.stage import Stage
from pixelspace.types import BackboneConfig


def shrunk(stage: Stage, *, backbone: BackboneConfig, objective: Objective, data: Data, side: int, batch: int) -> Stage:
    """The stage, its optimiser, average and inheritance as they are, for eight steps of `batch` small images."""
    return replace(
        stage,
        backbone=backbone,
        objective=objective,
        data=replace(data, holdout=0.05, workers=0),
        size=(side, side),
        codec=Pixels(),
        batch=batch,
        images=8 * batch,
        sampling=replace(stage.sampling, steps=4),
        precision="fp32",
        micro=0,
        compile=False,
        save_images=4 * batch,
        sample_images=8 * batch,
        sample_count=4,
        validate_images=8 * batch,
        validate_count=16,
        log_steps=1,
    )
