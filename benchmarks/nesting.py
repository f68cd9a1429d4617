"""Does nesting help, and does progressive training? UNets in one another against a plain one, at equal time.

    python benchmarks/nesting.py runs/nesting [--seeds 2] [--workers 1]
    python benchmarks/nesting.py runs/nesting --report docs/nesting.png

Captioned packaged emoji (MiniLM) at 64 px, drawn by

    plain           one UNet whose grids are those of the nested ones, each once
    nested2         64 + 32 px at once, from scratch
    nested3         64 + 32 + 16 px
    progressive2    the UNet of 32 px for half the time, then the level of 64 px round it; all of it learns
    progressive3    16, 32 + 16, 64 + 32 + 16 px, a third of the time each
    pooled          nested2 whose coarse noise is the fine one's, averaged; one seed

Every arm is as noisy at 64 px as the others and has as many seconds. The machine being shared, these are of the process
on its core: first the step of each network is timed, in turns (`pace.json`), which gives each stage its number of
images. Each run is one process of one thread; a finished one is not repeated, one that was stopped begins anew, so that
its time is counted whole. The report has the loss of the finest level on held-out images (for all arms the same, under
the same eight noises, at 64 px those of `pooled`, too), those of the coarser levels, the Frechet distance of Lite0's
features between two images drawn by each training caption and the training images, and what each arm draws at every
level.

A nested network's task is easier: it also sees the coarser levels, whose noise is their own. Averaged to 32 px, 64 + 32
px together have 1.5 times the signal-to-noise ratio of 64 px alone, and to 16 px, 64 + 32 + 16 px 1.75 times. So the
plain network is also judged on images so much less noisy, of all frequencies and not the low ones alone, each error
weighing as it does at the noise of the others: what nested ones are below that is not from seeing more.
"""

import json
import os
import shutil
import sys
import time
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from arms import GUIDANCE, STEPS, Experiment, Judge, Runs, better_than, cell, curves, encoder_in
from measure import made, seconds
from pyramids import Sides, backbone_of, objective_of, share_at

os.environ.setdefault("OMP_NUM_THREADS", "1")

BATCH, BUDGET = 16, 200  # seconds
GROUPS = ("smileys",)
WIDTHS = {64: 16, 32: 24, 16: 48, 8: 96}
SAVES = 8  # checkpoints at 64 px, from which the curve is drawn
SHOWN = 6  # captions in the picture
CLEARER = (1.5, 1.75)

# What an arm trains, stage by stage: levels, finest first.
ARMS = {
    "plain": ((64,),),
    "nested2": ((64, 32),),
    "nested3": ((64, 32, 16),),
    "progressive2": ((32,), (64, 32)),
    "progressive3": ((16,), (32, 16), (64, 32, 16)),
    "pooled": ((64, 32),),
}
NAMES = {
    "plain": "plain 64",
    "nested2": "nested 64 + 32",
    "nested3": "nested 64 + 32 + 16",
    "progressive2": "progressive 32, 64",
    "progressive3": "progressive 16, 32, 64",
    "pooled": "nested 64 + 32, pooled noise",
}


def stage_of(folder: Path, sides: Sides, images: int = BATCH) -> Any:
    """A stage of so many images, from scratch."""
    from pixelspace.backbones.unet import UNetText
    from pixelspace.data.emoji import Emoji
    from pixelspace.data.loader import Data
    from pixelspace.noise.levels import Karras
    from pixelspace.sampling.generate import Sampling
    from pixelspace.training.ema import EMA
    from pixelspace.training.optim import AdamW, Constant
    from pixelspace.training.stage import Stage

    coarsest = share_at(sides)
    return Stage(
        name="-".join(map(str, sides)),
        backbone=backbone_of(sides, WIDTHS, text=UNetText(384, proj=128)),
        objective=objective_of(sides),
        data=Data(Emoji(GROUPS), holdout=0.1, split="key"),
        size=(sides[0], sides[0]),
        batch=BATCH,
        images=images,
        sampling=Sampling("dpmpp_2m", steps=STEPS, levels=Karras(0.02 * coarsest, 160.0 * coarsest), guidance=GUIDANCE),
        text=encoder_in(folder),
        optimizer=AdamW(lr=2e-3, betas=(0.9, 0.99)),
        schedule=Constant(warmup_images=50 * BATCH),
        ema=EMA(power=0.75, max_decay=0.995),
        precision="bf16",
        save_images=max(images // SAVES // BATCH, 1) * BATCH,
        keep_every=1,
        sample_images=10**9,
        sample_count=1,
        validate_images=10**9,
        validate_count=BATCH,
    )


def paced(folder: Path, repeats: int = 9) -> dict[str, float]:
    """Seconds a step of every stage's network, timed in turns; kept in the folder."""
    import torch

    path = folder / "pace.json"
    if not path.exists():
        torch.set_num_threads(1)
        stages = [stage_of(folder, sides) for sides in dict.fromkeys(sides for arm in ARMS.values() for sides in arm)]
        cells = [made(stage, "cpu")() for stage in stages]
        times = [[seconds(cell.step, "cpu") for cell in cells] for _ in range(repeats + 2)]
        columns = zip(*times[2:], strict=True)  # the first ones load and allocate
        path.write_text(json.dumps({s.name: median(each) for s, each in zip(stages, columns, strict=True)}, indent=1))
    return json.loads(path.read_text())


def recipe_of(folder: Path, arm: str, seed: int) -> Any:
    """The stages of an arm, each as long as its share of the time."""
    from pixelspace.recipes.matryoshka import ROUND
    from pixelspace.training.stage import Inherit, Recipe

    pace, stages = paced(folder), []
    for sides in ARMS[arm]:
        stage = stage_of(folder, sides)
        steps = round(BUDGET / len(ARMS[arm]) / pace[stage.name])
        stage = stage_of(folder, sides, steps * BATCH)
        if arm == "pooled":
            pyramid = replace(stage.objective.pyramid, noise="pooled")
            stage = replace(stage, objective=replace(stage.objective, pyramid=pyramid))
        if stages:
            stage = replace(stage, init=Inherit(stages[-1].name, ROUND))
        stages.append(stage)
    return Recipe("nesting", tuple(stages), seed)


def train(folder: Path, arm: str, seed: int) -> None:
    """One run, and what is found about it in result.json."""
    import torch

    import pixelspace as ps
    from pixelspace.data.grid import save_image
    from pixelspace.training import checkpoint
    from pixelspace.training.loop import run_recipe
    from pixelspace.training.standing import stage_folder

    torch.set_num_threads(1)
    recipe, run = recipe_of(folder, arm, seed), folder / f"{arm}-{seed}"
    shutil.rmtree(run, ignore_errors=True)
    run.mkdir(parents=True)
    began = time.process_time()
    run_recipe(recipe, run, device=torch.device("cpu"), progress=False, say=lambda line: print(line, file=sys.stderr))
    taken = time.process_time() - began

    *earlier, last = recipe.stages
    pace, judge = paced(folder), Judge.of(folder, recipe, last)
    before = sum(stage.images // BATCH * pace[stage.name] for stage in earlier)
    steps = checkpoint.candidates(stage_folder(run, recipe, last.name) / "checkpoints")
    model, curve = ps.load(steps[0], device="cpu"), []
    for path in reversed(steps):
        seen = int(path.name.removeprefix("step-")) * pace[last.name]
        curve.append([before + seen, judge.loss(ps.load(path, device="cpu"), level_alone(last.objective, 0))])
        if path != steps[0]:
            shutil.rmtree(path)
    levels = range(1, len(last.objective.pyramid.factors))
    distance, _ = judge.distance(model)
    save_image(levels_drawn(judge, model), run / "grid.png")
    found = {
        "arm": arm,
        "seed": seed,
        "seconds": taken,
        "steps": [stage.images // BATCH for stage in recipe.stages],
        "parameters": sum(weight.numel() for weight in model.backbone.parameters()),
        "loss": curve[-1][1],
        "clearer": {} if levels else {by: judge.loss(model, clearer(last.objective, by)) / by for by in CLEARER},
        "coarse": [judge.loss(model, level_alone(last.objective, level)) for level in levels],
        "fd": distance,
        "curve": curve,
    }
    (run / "result.json").write_text(json.dumps(found, indent=1))


def level_alone(objective: Any, level: int) -> Any:
    """The objective with the loss of one level only."""
    return replace(objective, weights=tuple(float(i == level) for i in range(len(objective.pyramid.factors))))


def clearer(objective: Any, by: float) -> Any:
    """The objective on images of so many times the signal-to-noise ratio; 1 / by of its loss has the weights that those
    images had before."""
    levels = replace(objective.levels, rescale=objective.levels.rescale / by)
    return replace(
        objective, levels=levels, weighting=replace(objective.weighting, gamma=objective.weighting.gamma * by)
    )


def levels_drawn(judge: Judge, model: Any) -> Any:
    """An image of each of a few training captions below one another, coarser levels beside the finest."""
    import torch

    from pixelspace.data.grid import grid_image
    from pixelspace.sampling.generate import generate
    from pixelspace.sampling.pyramid import Packing
    from pixelspace.training.words import asked

    stage, apart = judge.stage, len(judge.ids) // SHOWN
    words, nothing = (judge.reader(texts).cond() for texts in (judge.captions[::apart][:SHOWN], [""]))
    cond, null = asked(torch.full((SHOWN,), -1), stage.size, words, nothing)
    packing = Packing(stage.objective.pyramid, stage.shape)
    with torch.no_grad():
        (rows,) = generate(
            model._forward,
            stage.objective.process,
            stage.sampling,
            images=torch.arange(SHOWN),
            shape=stage.shape,
            cond=cond,
            null=null,
            seed=1,
            batch=SHOWN,
            pyramid=stage.objective.pyramid,
            every_level=True,
        )
    levels = [stage.codec.decode(x0) for x0 in packing.unpack(rows)]
    sheet = torch.full((SHOWN, 3, 64, 128), 255, dtype=torch.uint8)
    left = 0
    for images in levels:
        side = images.shape[-1]
        sheet[:, :, -side:, left : left + side] = images
        left += side
    return grid_image(sheet, columns=1)


def table(found: Runs) -> str:
    """A row an arm; then, for each seed, by how much it is better than the plain network."""
    columns = ("seeds", "parameters", "steps", "images at 64 px", "CPU s", "held-out loss, 64 px", "32 px", "16 px")
    lines = ["| arm | " + " | ".join((*columns, "FD-Lite0")) + " |", "|---" * (len(columns) + 2) + "|"]
    for arm, runs in found.items():
        steps = " + ".join(str(count) for count in runs[0]["steps"])
        sized = [f"{runs[0]['parameters'] / 1e6:.2f}M", steps, f"{runs[0]['steps'][-1] * BATCH:,}"]
        coarse = [[run["coarse"][level] for run in runs if level < len(run["coarse"])] for level in (0, 1)]
        spread = [cell([run["seconds"] for run in runs]), cell([run["loss"] for run in runs]), *map(cell, coarse)]
        lines.append(
            f"| {' | '.join([NAMES[arm], str(len(runs)), *sized, *spread, cell([run['fd'] for run in runs])])} |"
        )
    for by in CLEARER:
        seen = [run["clearer"][str(by)] for run in found.get("plain", [])]
        lines.append(f"| plain 64, signal-to-noise times {by} |{' |' * 5} {cell(seen)} |{' |' * 3}")
    others = [arm for arm in found if arm != "plain"]
    return "\n".join([*lines, "", *better_than("plain", found, others, NAMES)])


def picture(folder: Path, found: Runs, path: Path) -> None:
    """Held-out loss of the finest level over time, a line a run, and what each arm of seed 0 draws."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    figure = plt.figure(figsize=(2.1 * len(found), 9), layout="constrained")
    grid = figure.add_gridspec(10, len(found))
    curves(figure.add_subplot(grid[:3, :]), found, NAMES, "seconds of training")
    for column, arm in enumerate(found):
        axes = figure.add_subplot(grid[3:, column])
        axes.imshow(plt.imread(folder / f"{arm}-0" / "grid.png"))
        axes.set_title(NAMES[arm], fontsize=8)
        axes.set_axis_off()
    figure.savefig(path, dpi=72, pil_kwargs={"optimize": True})


def rounds(folder: Path, seeds: int) -> list[list[tuple[str, int]]]:
    """All at once, when the networks are timed."""
    print(paced(folder), flush=True)
    return [[(arm, seed) for seed in range(seeds) for arm in ARMS if arm != "pooled" or seed == 0]]


if __name__ == "__main__":
    Experiment(__doc__, NAMES, GROUPS, train, rounds, table, picture, seeds=2, workers=1).main()
