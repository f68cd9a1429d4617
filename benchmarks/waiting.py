"""How long the steps of shipped recipes wait for their data: what `step.py` tells of it."""

import argparse
import json
import tempfile
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from statistics import median
from typing import Any

ASKED = ("hdit-demo", "hdit-text-demo", "maskdit-emoji")
STEPS, FIRST = 12, 2  # of which the first ones load and allocate


def shortened(recipe: Any) -> Any:
    """The first stage of a recipe for a few steps, every one of them logged, with hardly a look between."""
    stage = recipe.stages[0]
    never = stage.batch * 10**6
    return replace(
        recipe,
        stages=(
            replace(
                stage,
                images=STEPS * stage.batch,
                save_images=never,
                sample_images=never,
                validate_images=never,
                validate_count=1,
                sample_count=1,
                sampling=replace(stage.sampling, steps=2),
                log_steps=1,
            ),
        ),
    )


def report(given: argparse.Namespace) -> None:
    """The training loop itself, and what its log says."""
    import torch

    from pixelspace.recipes import RECIPES
    from pixelspace.training.loop import run_recipe

    print("\n| recipe | batch | images/s | a step waits for data |")
    print("| --- | --- | --- | --- |")
    for name in ASKED:
        module, function = RECIPES[name][0].split(":")
        recipe = shortened(getattr(import_module(module), function)())
        with tempfile.TemporaryDirectory() as folder:
            run_recipe(recipe, Path(folder), device=torch.device(given.device), progress=False, say=lambda line: None)
            logged = [json.loads(line) for path in Path(folder).rglob("metrics.jsonl") for line in path.open()]
        rows = [row for row in logged if row["kind"] == "train"][FIRST:]
        waits, rates = ([row[key] for row in rows] for key in ("data_wait", "images_per_second"))
        spread = f"{median(waits):.2%} ({min(waits):.2%} - {max(waits):.2%})"
        print(f"| {name} | {recipe.stages[0].batch} | {median(rates):.1f} | {spread} |", flush=True)
