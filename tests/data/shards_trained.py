"""Training on tar shards, a program of its own so that it can be killed.

`shards_trained.py SHARDS CACHE RUN WORKERS KILL_AT` prints the positions and samples of each step as a line of JSON,
and kills itself when it is handed the position KILL_AT.
"""

import json
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from pixelspace.data.shards import Shards
from pixelspace.recipes.hdit import imagenet128_debug
from pixelspace.training import loop
from pixelspace.training.stage import Recipe

BATCH, STEPS = 12, 6


def recipe_of(shards: str, workers: int) -> Recipe:
    """Six steps of a tiny HDiT, with a checkpoint after every other one."""
    (stage,) = imagenet128_debug().stages
    data = replace(stage.data, source=Shards(shards), crop="random", holdout=0.0, workers=workers)
    plan = {"batch": BATCH, "images": BATCH * STEPS, "save_images": 2 * BATCH, "sample_images": BATCH * STEPS}
    backbone = replace(stage.backbone, num_classes=0)
    objective = replace(stage.objective, drop_rate=0.0)
    stage = replace(stage, backbone=backbone, objective=objective, data=data, **plan, sample_count=1, keep_every=1)
    return Recipe("scale", (stage,))


def train(shards: Path, cache: Path, run: Path, workers: int, tell: Callable[[list[list[int]]], None]) -> None:
    """Trains from where the run stands, and tells positions and samples of each step before it is taken."""
    batches, threads = loop.batches, torch.get_num_threads()

    def told(*arguments):
        stream = batches(*arguments)
        try:
            for raw in stream:
                tell([raw.pos.tolist(), raw.ids.tolist()])
                yield raw
        finally:
            stream.close()

    loop.batches = told
    torch.set_num_threads(1)
    try:
        loop.run_recipe(
            recipe_of(str(shards), workers),
            run,
            device=torch.device("cpu"),
            cache=cache,
            progress=False,
            say=lambda line: None,
        )
    finally:
        loop.batches = batches
        torch.set_num_threads(threads)


def main(shards: str, cache: str, run: str, workers: str, kill_at: str) -> None:
    def tell(step: list[list[int]]) -> None:
        print(json.dumps(step), flush=True)
        if int(kill_at) in step[0]:
            os.kill(os.getpid(), signal.SIGKILL)

    train(Path(shards), Path(cache), Path(run), int(workers), tell)


if __name__ == "__main__":
    main(*sys.argv[1:])
