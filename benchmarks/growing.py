"""Does growing round a frozen core help? The arms of Vasconcelos et al. 2024 at a size for two CPU cores.

    python benchmarks/growing.py runs/growing [--seeds 3] [--workers 2]
    python benchmarks/growing.py runs/growing --report docs/growing.png

A core (width 128, 4 blocks, 8 x 8 tokens) learns 285 packaged emoji by their captions (MiniLM) at 32 px in a
Shallow-UViT; a UViT at 64 px grows round it. Every arm sees the same images in the same order for as many steps:

    A scratch    everything from nothing; A2 the same for the arithmetic of C and its core's training together
    B joint      core from 32 px, everything learns from the first step
    C frozen     core from 32 px, held still; with its seam matched (C), with a norm (C-norm) and with none (C-none)
    D released   C for a quarter of the steps, then the core learns at a tenth of the rate
    E random     round a core of random maps, held still

and the core alone at 32 px, twice: as above and 192 wide. Each run is one process of one thread, less than four minutes
on an idle core of 2026; a run that was stopped goes on, a finished one is not repeated. The report has the loss on
held-out images (for all arms of a seed the same, under the same eight noises), the Frechet distance of Lite0's features
between two images drawn by each training caption and the training images, spikes (steps whose loss is over 1.5 times
the median of the last 100), the greatest gradient norm after the first 50 steps, and how far the core moved,
|w - w0| / |w0|.
"""

import json
import os
import sys
import time
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Literal

from arms import GUIDANCE, STEPS, Experiment, Judge, Runs, better_than, cell, curves, encoder_in

os.environ.setdefault("OMP_NUM_THREADS", "1")

BATCH, CORE_STEPS, GROWN_STEPS = 16, 1200, 1000
GROUPS = ("animals", "food")
ARMS = ("A", "B", "C", "D", "E", "C-norm", "C-none", "A2")
CORES = ("core", "core-wide")


def recipe_of(folder: Path, arm: str, seed: int):
    """The stages of an arm; a core's own training is the first of those that inherit from it."""
    from pixelspace.backbones.uvit import CoreConfig, ShallowUViTConfig, UViTConfig
    from pixelspace.data.emoji import Emoji
    from pixelspace.data.loader import Data
    from pixelspace.nn.text import Text
    from pixelspace.noise.levels import Karras
    from pixelspace.noise.weighting import SoftMinSNR
    from pixelspace.recipes.greedy import GROWN, KEPT, at_equal_cost, objective_at, random_core, released, scratch
    from pixelspace.sampling.generate import Sampling
    from pixelspace.training.ema import EMA
    from pixelspace.training.optim import AdamW, Constant
    from pixelspace.training.stage import Inherit, Recipe, Stage

    width = 192 if arm == "core-wide" else 128
    own = CoreConfig(width, 4, 32, (8, 8), cond_width=128, text=Text(384, 0, inner=width, head_dim=32))
    core = Stage(
        name="core",
        backbone=ShallowUViTConfig(own, stride=4),
        objective=replace(objective_at(32, reference=32), weighting=SoftMinSNR(4.0)),
        data=Data(Emoji(GROUPS), holdout=0.1, split="key"),
        size=(32, 32),
        batch=BATCH,
        images=CORE_STEPS * BATCH,
        sampling=Sampling("dpmpp_2m", steps=STEPS, levels=Karras(0.01, 80.0), guidance=GUIDANCE),
        text=encoder_in(folder),
        optimizer=AdamW(lr=2e-3, betas=(0.9, 0.99)),
        schedule=Constant(warmup_images=50 * BATCH),
        ema=EMA(power=0.75, max_decay=0.995),
        precision="bf16",
        save_images=200 * BATCH,
        sample_images=10**9,
        sample_count=16,
        validate_images=100 * BATCH,
        validate_count=128,
        log_steps=1,
    )
    if arm in CORES:
        return Recipe("growing", (core,), seed)
    seam: Literal["affine", "norm", "none"] = "norm" if arm == "C-norm" else "none" if arm == "C-none" else "affine"
    frozen = replace(
        core,
        name="grow",
        backbone=UViTConfig(own, (24, 48), patch=2, blocks=1, seam=seam),
        objective=replace(objective_at(64, reference=32), weighting=SoftMinSNR(4.0)),
        size=(64, 64),
        images=GROWN_STEPS * BATCH,
        sampling=replace(core.sampling, levels=Karras(0.02, 160.0)),
        init=Inherit("core", GROWN, match_images=256 if seam == "affine" else 0),
        freeze=KEPT,
    )
    if arm == "D":
        quarter = replace(frozen, images=GROWN_STEPS // 4 * BATCH)
        joint = released(quarter, "joint", GROWN_STEPS - GROWN_STEPS // 4)
        groups = tuple(replace(group, warmup_images=50 * BATCH) for group in joint.optimizer.groups)
        return Recipe(
            "growing", (core, quarter, replace(joint, optimizer=replace(joint.optimizer, groups=groups))), seed
        )
    stages = {
        "A": (scratch(frozen),),
        "A2": (at_equal_cost((core, frozen)),),
        "B": (core, replace(frozen, freeze=())),
        "E": (random_core(frozen, own),),
    }.get(arm, (core, frozen))
    return Recipe("growing", stages, seed)


def train(folder: Path, arm: str, seed: int) -> None:
    """One run, and what is found about it in result.json."""
    import torch

    import pixelspace as ps
    from pixelspace.data.grid import grid_image, save_image
    from pixelspace.training.loop import run_recipe
    from pixelspace.training.standing import stage_folder

    torch.set_num_threads(1)
    recipe, run = recipe_of(folder, arm, seed), folder / f"{arm}-{seed}"
    run.mkdir(parents=True, exist_ok=True)
    if recipe.stages[0].name == "core" and arm not in CORES and not (run / "00-core").exists():
        (run / "00-core").symlink_to(Path("..") / f"core-{seed}" / "00-core")
    began = time.monotonic()
    run_recipe(recipe, run, device=torch.device("cpu"), progress=False, say=lambda line: print(line, file=sys.stderr))
    seconds = time.monotonic() - began
    model = ps.load(stage_folder(run, recipe, recipe.stages[-1].name), device="cpu")
    judge = Judge.of(folder, recipe, recipe.stages[-1])
    distance, images = judge.distance(model)
    apart = len(judge.ids) // 16
    save_image(grid_image(images[: len(judge.ids) : apart][:16], columns=16), run / "grid.png")
    judged = {"loss": judge.loss(model, judge.stage.objective), "fd": distance}
    found = {"arm": arm, "seed": seed, "seconds": seconds, **judged, **steadiness(run, recipe)}
    (run / "result.json").write_text(json.dumps(found, indent=1))


def steadiness(run: Path, recipe) -> dict[str, float | list]:
    """Spikes, gradients, and how far the core of the last weights is from where it began in its stage."""
    from pixelspace.training import checkpoint
    from pixelspace.training.log import read_metrics
    from pixelspace.training.standing import stage_folder

    rows, curve, seen = [], [], 0
    for stage in recipe.stages:
        if stage.name != "core" or len(recipe.stages) == 1:
            folder = stage_folder(run, recipe, stage.name)
            rows += read_metrics(folder, "train")
            curve += [[seen + row["images"], row["loss"]] for row in read_metrics(folder, "validation")]
            seen += stage.images
    losses = [row["loss"] for row in rows]
    spikes = sum(now > 1.5 * median(losses[max(0, i - 100) : i]) for i, now in enumerate(losses) if i >= 20)
    found: dict[str, float | list] = {
        "spikes": spikes,
        "gradient": max(row["grad_norm"] for row in rows[50:]),
        "curve": curve,
    }
    if recipe.stages[0].name == "core" and len(recipe.stages) > 1:
        folders = (stage_folder(run, recipe, recipe.stages[i].name) / "checkpoints" for i in (0, -1))
        first, last = (resumed.contents.parts for path in folders if (resumed := checkpoint.resume(path)))
        names = [name for name in first["ema"] if name.startswith("core.")]
        moved = sum(float((last["model"][n] - first["ema"][n]).double().square().sum()) for n in names)
        whole = sum(float(first["ema"][n].double().square().sum()) for n in names)
        found["drift"] = (moved / whole) ** 0.5
    return found


def rounds(folder: Path, seeds: int) -> list[list[tuple[str, int]]]:
    """Cores first: others wait for them."""
    others = [(arm, seed) for seed in range(seeds) for arm in (*ARMS, "core-wide")]
    return [[("core", seed) for seed in range(seeds)], others]


NAMES = {
    "A": "A scratch",
    "A2": "A2 scratch, equal arithmetic",
    "B": "B joint",
    "C": "C frozen, seam matched",
    "C-norm": "C frozen, seam normed",
    "C-none": "C frozen, no seam",
    "D": "D released",
    "E": "E random, frozen",
    "core": "core 128 wide, at 32 px",
    "core-wide": "core 192 wide, at 32 px",
}
COLUMNS = {"loss": "held-out loss", "fd": "FD-Lite0", "spikes": "spikes", "gradient": "gradient", "drift": "core drift"}


def table(found: Runs) -> str:
    """A row an arm; then, for each seed, by how much it is better than A."""
    lines = ["| arm | seeds | " + " | ".join(COLUMNS.values()) + " | s a run |", "|---" * (len(COLUMNS) + 3) + "|"]
    for arm, runs in found.items():
        cells = [cell([run[key] for run in runs if key in run]) for key in COLUMNS]
        lines.append(f"| {NAMES[arm]} | {len(runs)} | {' | '.join(cells)} | {cell([run['seconds'] for run in runs])} |")
    return "\n".join([*lines, "", *better_than("A", found, ARMS[1:], NAMES)])


def picture(folder: Path, found: Runs, path: Path) -> None:
    """Held-out loss over images, a line a run, and what each arm of seed 0 draws."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    figure = plt.figure(figsize=(11, 3.5 + 0.95 * len(found)), layout="constrained")
    grid = figure.add_gridspec(len(found) + 4, 1)
    curves(
        figure.add_subplot(grid[:4]), {arm: found[arm] for arm in found if arm not in CORES}, NAMES, "images at 64 px"
    )
    for row, arm in enumerate(found):
        axes = figure.add_subplot(grid[row + 4])
        axes.imshow(plt.imread(folder / f"{arm}-0" / "grid.png"))
        axes.set(xticks=[], yticks=[])
        axes.set_ylabel(NAMES[arm], rotation=0, horizontalalignment="right", fontsize=8)
    figure.savefig(path, dpi=90)


if __name__ == "__main__":
    Experiment(__doc__, NAMES, GROUPS, train, rounds, table, picture, seeds=3, workers=2).main()
