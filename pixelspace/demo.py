"""What the demo shows at its end: what was learnt, beside the nearest training images, and how much of it is new."""

from pathlib import Path

import torch
from torch import Tensor

from pixelspace.api import load
from pixelspace.config import from_data, read_json
from pixelspace.data.grid import grid_image, save_image
from pixelspace.data.loader import divide, read
from pixelspace.recipes.values import VALUES
from pixelspace.training.log import read_metrics

COUNT, COLUMNS, SCALE = 36, 9, 3


def nearest(images: Tensor, known: Tensor) -> Tensor:
    """For each of `images` (n, C, H, W) the row of `known` (m, C, H, W) at the least squared distance."""
    distances = torch.cdist(images.flatten(1).float(), known.flatten(1).float())
    return known[distances.argmin(1)]


def report(run: Path, device: str = "auto") -> str:
    """Draws `samples.png` and `nearest.png` into a trained demo run; says where they are and what the losses are."""
    recipe = from_data(read_json(run / "recipe.json"), VALUES)
    (stage,) = recipe.stages
    model = load(run, device=device)
    images = model.sample(COUNT, batch=COUNT).permute(0, 3, 1, 2)
    samples = save_image(grid_image(images, COLUMNS, scale=SCALE), run / "samples.png")

    dataset = stage.data.source.open()
    train_ids, held_ids = divide(dataset, stage.data, recipe.split)
    known = read(dataset, train_ids.tolist(), stage.size).images
    known = torch.cat([known, known.flip(3)])  # as they were trained on
    few = images[: 2 * COLUMNS]
    pairs = torch.stack([few, nearest(few, known)], 1).flatten(0, 1)
    beside = save_image(grid_image(pairs, 2 * COLUMNS // 3, scale=SCALE), run / "nearest.png")

    rows = read_metrics(run / "00-train", "validation")
    before, after, best = rows[0]["loss"], rows[-1]["loss"], min(rows, key=lambda row: row["loss"])
    lowest = f" ({best['loss']:.4f} after {best['images']:,} images)" if best["loss"] < after else ""
    folder = run / "00-train"
    return "\n".join(
        [
            f"samples:                    {samples}",
            f"sample | nearest training:  {beside}",
            f"loss:                       {folder / 'loss.png'}",
            f"held-out loss, {len(held_ids)} images:   {before:.4f} untrained, {after:.4f} trained{lowest}",
        ]
    )
