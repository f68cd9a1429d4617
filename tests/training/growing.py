"""Greedy growing at its smallest, and a program of its own that trains it, so that it can be killed.

`growing.py RUN STAGE:STEP ...` trains in one child after the other, from where the last one left the run, and each is
killed when a stage is handed the batch of a step; it prints how each ended.
"""

import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

import torch

from pixelspace import store
from pixelspace.backbones.uvit import CoreConfig, ShallowUViTConfig, UViTConfig
from pixelspace.data.emoji import Emoji
from pixelspace.data.loader import Data
from pixelspace.growth.transfer import Rule
from pixelspace.nn.text import Text
from pixelspace.recipes.greedy import GROWN, KEPT, levels_at, objective_at
from pixelspace.sampling.generate import Sampling
from pixelspace.text.bytes import Bytes
from pixelspace.training import checkpoint, loop
from pixelspace.training.ema import EMA
from pixelspace.training.optim import AdamW, Constant, Group
from pixelspace.training.stage import Inherit, Recipe, Stage
from pixelspace.training.standing import stage_folder

BATCH, STEPS = 4, 3
SLOW = tuple(Group(names, lr_factor=0.1, warmup_images=2 * BATCH) for names in KEPT)

CORE = CoreConfig(16, 1, 8, (2, 2), cond_width=16, text=Text(256, 0, inner=16, head_dim=8), dropout=0.2)


def at(stage: Stage, name: str, backbone: UViTConfig, size: int, **changes) -> Stage:
    """The stage with another network, at another size."""
    objective, sampling = objective_at(size, reference=8), replace(stage.sampling, levels=levels_at(size, 8))
    changes = {"backbone": backbone, "objective": objective, "sampling": sampling} | changes
    return replace(stage, name=name, size=(size, size), **changes)


def core_stage() -> Stage:
    """Three steps of four emoji of 8 px."""
    return Stage(
        name="core",
        backbone=ShallowUViTConfig(CORE, stride=4, width=8),
        objective=objective_at(8, reference=8),
        data=Data(Emoji(("activities",)), crop="random"),
        size=(8, 8),
        batch=BATCH,
        images=STEPS * BATCH,
        sampling=Sampling("euler_ancestral", steps=2, levels=levels_at(8, 8), guidance=2.0),
        text=Bytes(16),
        optimizer=AdamW(lr=1e-2, betas=(0.9, 0.99)),
        schedule=Constant(warmup_images=2 * BATCH),
        ema=EMA(0.75, 0.9999),
        save_images=STEPS * BATCH,
        keep_every=1,
        sample_images=STEPS * BATCH,
        sample_count=1,
        log_steps=1,
    )


def recipe() -> Recipe:
    """A core at 8 px, a UViT at 16 px round it while it is frozen, and the same when it is let go; the last two with a
    checkpoint after each step."""
    core, network = core_stage(), UViTConfig(CORE, (8,), patch=4, blocks=1, seam="affine")
    grown = at(core, "grown", network, 16, init=Inherit("core", GROWN, match_images=6), freeze=KEPT, save_images=BATCH)
    released = replace(
        grown,
        name="released",
        init=Inherit("grown", weights="raw", ema="carry", optimizer=True),
        freeze=(),
        optimizer=replace(grown.optimizer, groups=SLOW),
        schedule=Constant(),
    )
    return Recipe("growing", (core, grown, released))


def chain() -> Recipe:
    """8 to 32 to 64 to 128 px: a UViT round the core, the same with another patch, and with one level more."""
    core = core_stage()
    network = UViTConfig(CORE, (4, 4, 8), patch=2, blocks=1, seam="affine")
    inner = (*KEPT, "seam.*", "levels.[0-2].*")
    outer = (*map(Rule, inner), Rule("*", fresh=True))
    first = at(core, "at-32", network, 32, init=Inherit("core", GROWN, match_images=4), freeze=KEPT)
    coarser = replace(network, patch=4)
    second = at(first, "at-64", coarser, 64, init=Inherit("at-32", outer), freeze=inner)
    third = at(second, "at-128", replace(coarser, widths=(4, *network.widths)), 128, init=Inherit("at-64", outer))
    return Recipe("chain", (core, first, second, third))


def parts_of(folder: Path, step: int | None = None) -> dict[str, dict[str, torch.Tensor]]:
    """The tensors of a stage's checkpoint of a step, or of its last."""
    if step is not None:
        return store.read(folder / "checkpoints" / f"step-{step:08d}", kind="checkpoint").parts
    resumed = checkpoint.resume(folder / "checkpoints")
    assert resumed is not None
    return resumed.contents.parts


def opened(recipe: Recipe, run: Path, name: str, folder: Path) -> loop.StageRun:
    """A stage before its first step, in a folder of its own, with its ancestor in `run`."""
    stage, device = recipe[name], torch.device("cpu")
    ancestor = stage_folder(run, recipe, stage.init.stage) if stage.init else None
    return loop.StageRun(
        stage, folder, recipe=recipe, device=device, cache=None, say=lambda line: None, given=None, ancestor=ancestor
    )


def trained(recipe: Recipe, run: Path, **given) -> list[str]:
    """Trains on one thread and without pictures of the loss, which take longer than all the rest; what was said."""
    plot, threads, said = loop.plot_loss, torch.get_num_threads(), list[str]()
    loop.plot_loss = lambda *paths: None
    torch.set_num_threads(1)
    try:
        loop.run_recipe(recipe, run, device=torch.device("cpu"), progress=False, say=said.append, **given)
    finally:
        loop.plot_loss = plot
        torch.set_num_threads(threads)
    return said


def train_and_die(run: Path, stage: str, step: int) -> None:
    """Trains until a stage is handed the batch of a step."""
    train_step = loop.train_step

    def killed(state, forward, of, *given):
        if (of.name, state.step) == (stage, step):
            os.kill(os.getpid(), signal.SIGKILL)
        return train_step(state, forward, of, *given)

    loop.train_step = killed
    trained(recipe(), run)


def main(run: str, *places: str) -> None:
    for place in places:
        if (child := os.fork()) == 0:
            stage, _, step = place.partition(":")
            train_and_die(Path(run), stage, int(step))
            os._exit(0)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))


if __name__ == "__main__":
    main(*sys.argv[1:])
