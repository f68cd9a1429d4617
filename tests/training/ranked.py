"""A program that trains as one of several ranks: `ranked.py JOB`, a JSON list of runs, one after the other.

A run says where it lies (`out`), its `recipe` in `RECIPES` below, how many `images` (the recipe's own where left out),
and `set`s fields of its stages; `shard` is as on the command line, and the sample at a `spoiled` position has no finite
loss. What a run says goes to the standard output, and a
fault ends the program as it ends the command line.
"""

import json
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import growing
import torch

from pixelspace.backbones.uvit import CoreConfig, ShallowUViTConfig
from pixelspace.dist import joined
from pixelspace.errors import PixelspaceError
from pixelspace.objectives.denoising import Denoising
from pixelspace.recipes.greedy import objective_at
from pixelspace.recipes.hdit import imagenet128_debug
from pixelspace.recipes.maskdit import imagenet256_cosine_debug
from pixelspace.recipes.matryoshka import cc12m_debug
from pixelspace.training.loop import run_recipe
from pixelspace.training.parallel import check_alike, check_ranks
from pixelspace.training.stage import Recipe

_loss = Denoising.loss
COMMON = dict(batch=8, log_steps=1, sample_count=2, validate_count=4, keep_every=1)


def _one_stage(stage, name: str, steps: int, **changes) -> Recipe:
    images = steps * COMMON["batch"]
    times = dict(images=images, save_images=images, sample_images=images, validate_images=images)
    return Recipe(name, (replace(stage, init=None, freeze=(), **COMMON, **times, **changes),))


def _growing() -> Recipe:
    """Without dropout, whose draws go by the split of a batch."""
    recipe = growing.recipe()
    cores = (replace(stage.backbone, core=replace(growing.CORE, dropout=0.0)) for stage in recipe.stages)
    stages = (replace(stage, backbone=core) for stage, core in zip(recipe.stages, cores, strict=True))
    return replace(recipe, stages=tuple(stages))


def recipes() -> dict[str, Recipe]:
    """One of every system, and their hard cases: labels dropped, patches masked in some steps only, text, levels of
    which a rank has no sample, and a core that is inherited frozen and let go with its moments."""
    (hdit,) = imagenet128_debug().stages
    hdit = replace(hdit, data=replace(hdit.data, crop="random", holdout=0.02))
    falling, nested = imagenet256_cosine_debug().stages[1], cc12m_debug().stages[1]
    mixed = replace(nested.objective, mixed=(1, 3))
    core = CoreConfig(16, 1, 8, (4, 4), cond_width=16, num_classes=8)
    shallow = replace(hdit, backbone=ShallowUViTConfig(core, stride=4, width=8), objective=objective_at(16))
    return {
        "hdit": _one_stage(hdit, "hdit", 60),
        "masked": _one_stage(falling, "masked", 4),
        "nested": _one_stage(nested, "nested", 3, objective=mixed),
        "uvit": _one_stage(shallow, "uvit", 3),
        "growing": _growing(),
    }


def recipe_of(run: dict) -> Recipe:
    """What a run trains."""
    recipe = recipes()[run["recipe"]]
    return replace(recipe, stages=tuple(replace(stage, **run.get("set", {})) for stage in recipe.stages))


def spoil(position: int | None) -> None:
    """Gives one sample a loss that is not finite."""

    def loss(self, forward, batch, draw):
        found = _loss(self, forward, batch, draw)
        return found if position is None else torch.where(batch.pos == position, float("nan"), found)

    Denoising.loss = loss  # type: ignore[method-assign]


def main() -> None:
    torch.set_num_threads(1)
    device = torch.device("cpu")
    try:
        with joined(device, float(sys.argv[2]) if len(sys.argv) > 2 else 60) as ranks:
            for run in json.loads(sys.argv[1]):
                spoil(run.get("spoiled"))
                recipe, out, shard = recipe_of(run), Path(run["out"]), run.get("shard", "none")
                check_ranks(recipe.stages[0], ranks.world, shard)
                check_alike(ranks, recipe, device, shard)
                out.mkdir(parents=True, exist_ok=True)
                said = dict(progress=False, say=lambda line: print(f"{ranks.rank}: {line}", flush=True))
                run_recipe(recipe, out, device=device, ranks=ranks, sharding=shard, **said)
    except PixelspaceError as error:
        if not error.told:
            print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    warnings.simplefilter("error")
    main()
