"""What a run looks at while it trains: images from fixed seeds and the held-out loss, both with averaged weights."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.func import functional_call

from pixelspace.data.dataset import Dataset
from pixelspace.data.grid import save_image
from pixelspace.data.loader import read, to_model_space
from pixelspace.data.order import spread
from pixelspace.data.pictures import pictures, sheet, size_name
from pixelspace.objectives.denoising import Backbone
from pixelspace.random import Rng
from pixelspace.sampling.generate import generate
from pixelspace.sampling.pyramid import Packing
from pixelspace.text.encoder import Reader
from pixelspace.training.log import OctileMeans
from pixelspace.training.stage import Stage
from pixelspace.training.words import asked, with_text
from pixelspace.types import Cond

PREVIEW_SEED = 0


def autocast(stage: Stage, device: torch.device) -> torch.autocast:
    """The context in which the backbone runs, at the stage's precision."""
    return torch.autocast(device.type, torch.bfloat16, enabled=stage.precision == "bf16")


@contextmanager
def evaluating(
    network: nn.Module, weights: Mapping[str, Tensor], stage: Stage, device: torch.device | None = None
) -> Iterator[Backbone]:
    """The network with other weights, without dropout and gradients, on a device (None: its own); its own weights stay
    as they are."""
    device = device or next(network.parameters()).device
    placed = {name: tensor.to(device) for name, tensor in weights.items()}

    def forward(x: Tensor, c_noise: Tensor, cond: Cond, **keep: Tensor) -> Tensor:
        with autocast(stage, device):
            return functional_call(network, placed, (x, c_noise, cond), keep)

    modes = {module: module.training for module in network.modules()}  # frozen parts never train
    network.eval()
    try:
        with torch.no_grad():
            yield forward
    finally:
        for module, mode in modes.items():
            module.training = mode


def drawn(
    stage: Stage,
    backbone: Backbone,
    device: torch.device,
    numbers: range,
    labels: Tensor,
    seed: int,
    exact: bool = False,
    reader: Reader | None = None,
    texts: Sequence[str] = (),
    every_level: bool = False,
) -> list[Tensor]:
    """uint8 (n, H, W, C) or clips (n, T, H, W, C) on the CPU: images `numbers` of `seed`, of the classes `labels` (n,),
    -1 for none, and with a reader of the captions `texts`; with `every_level` those of all levels, the finest first."""
    words, no_words = (reader(texts).cond(), reader([""]).cond()) if reader else ({}, {})
    cond, null = asked(labels.to(device), stage.size, words, no_words)
    layout = stage.objective.layout
    packing = Packing(layout, stage.shape) if layout and every_level else None
    batches = generate(
        backbone,
        stage.objective.process,
        stage.sampling,
        images=torch.tensor(numbers, device=device),
        shape=stage.shape,
        cond=cond,
        null=null,
        seed=seed,
        batch=min(len(numbers), stage.micro or stage.batch),
        exact=exact,
        pyramid=layout,
        every_level=every_level,
    )
    levels = (packing.unpack(x0) if packing else [x0] for x0 in batches)
    found = [pictures(stage.codec, some, stage.backbone.tiles) for some in levels]
    return [torch.cat(level) for level in zip(*found, strict=True)]


def sample_images(
    stage: Stage, backbone: Backbone, device: torch.device, reader: Reader | None = None, texts: Sequence[str] = ()
) -> list[Tensor]:
    """`sample_count` images or clips of every level; with classes, image i is of class i modulo their number; with a
    reader of caption i."""
    n, classes = stage.sample_count, stage.backbone.num_classes
    labels = torch.arange(n) % classes if classes else torch.full((n,), -1)
    numbers = range(n)
    return drawn(stage, backbone, device, numbers, labels, PREVIEW_SEED, reader=reader, texts=texts, every_level=True)


def save_sheets(levels: Sequence[Tensor], folder: Path, images: int) -> dict[str, Path]:
    """Writes all drawn after so many training images as NUMBER.png, and coarser levels as NUMBER_SIZE.png; the files
    by what trackers call them."""
    endings = ["", *(f"_{size_name(level)}" for level in levels[1:])]
    return {
        f"samples{ending}": save_image(sheet(level), folder / f"{images:010d}{ending}.png")
        for level, ending in zip(levels, endings, strict=True)
    }


@dataclass(frozen=True)
class HeldOut:
    """The loss over held-out samples: its mean, and the mean in each eighth of the training levels."""

    loss: float
    octiles: list[float | None]


def held_out_loss(
    stage: Stage,
    backbone: Backbone,
    dataset: Dataset,
    held: Sequence[int],
    rng: Rng,
    device: torch.device,
    reader: Reader | None = None,
) -> HeldOut:
    """The loss over the held-out samples, whole, with the same crops, levels and noise at every call."""
    held = spread(held, stage.validate_count)
    fixed, data = Rng(rng.key("validation")), replace(stage.data, augment=0.0)
    chunk, total = stage.micro or stage.batch, 0.0
    octiles = OctileMeans.of(stage.objective.levels)
    for start in range(0, len(held), chunk):
        raw = read(dataset, held[start : start + chunk], stage.size, stage.data.crop)
        batch = to_model_space(replace(raw, pos=raw.pos + start), data, stage.codec, fixed, device)
        batch = with_text(batch, raw.texts, reader)
        draw = replace(stage.objective.draw(batch, len(held), 1.0, fixed), drop=None, keep=None, rows=None)
        losses = stage.objective.loss(backbone, batch, draw).cpu()
        octiles.add(draw.sigma.cpu(), losses)
        total += float(losses.double().sum())
    return HeldOut(total / len(held), octiles.take())
