"""What a run looks at while it trains: images from fixed seeds and the held-out loss, both with averaged weights."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.func import functional_call

from pixelspace.data import sources
from pixelspace.data.loader import read, to_model_space
from pixelspace.objectives.denoising import Backbone
from pixelspace.random import Rng
from pixelspace.sampling.generate import generate
from pixelspace.training.stage import Stage
from pixelspace.types import Cond

PREVIEW_SEED = 0


def autocast(stage: Stage, device: torch.device) -> torch.autocast:
    """The context in which the backbone runs, at the stage's precision."""
    return torch.autocast(device.type, torch.bfloat16, enabled=stage.precision == "bf16")


@contextmanager
def evaluating(network: nn.Module, weights: Mapping[str, Tensor], stage: Stage) -> Iterator[Backbone]:
    """The network with other weights, without dropout and gradients; its own weights stay as they are."""
    device = next(iter(weights.values())).device

    def forward(x: Tensor, c_noise: Tensor, cond: Cond, **keep: Tensor) -> Tensor:
        with autocast(stage, device):
            return functional_call(network, dict(weights), (x, c_noise, cond), keep)

    was_training = network.training
    network.eval()
    try:
        with torch.no_grad():
            yield forward
    finally:
        network.train(was_training)


def sample_images(stage: Stage, backbone: Backbone, device: torch.device) -> Tensor:
    """uint8 (sample_count, C, H, W); with classes, image i is of class i modulo their number."""
    n, classes = stage.sample_count, stage.backbone.num_classes
    numbers = torch.arange(n, device=device)
    cond = {"label": numbers % classes if classes else torch.full_like(numbers, -1)}
    batches = generate(
        backbone,
        stage.objective.process,
        stage.sampling,
        images=numbers,
        shape=stage.shape,
        cond=cond,
        null={"label": torch.full_like(numbers, -1)},
        seed=PREVIEW_SEED,
        batch=min(n, stage.micro or stage.batch),
    )
    return torch.cat([stage.codec.decode(x0).cpu() for x0 in batches])


def held_out_loss(
    stage: Stage, backbone: Backbone, dataset: sources.Dataset, held: list[int], rng: Rng, device: torch.device
) -> float:
    """The mean loss over the held-out samples, whole, with the same crops, levels and noise at every call."""
    held = held[: stage.validate_count]
    fixed, data = Rng(rng.key("validation")), replace(stage.data, augment=0.0)
    chunk, total = stage.micro or stage.batch, 0.0
    for start in range(0, len(held), chunk):
        raw = read(dataset, held[start : start + chunk], stage.size, stage.data.crop)
        batch = to_model_space(replace(raw, pos=raw.pos + start), data, stage.codec, fixed, device)
        draw = replace(stage.objective.draw(batch, len(held), 1.0, fixed), drop=None, keep=None)
        total += float(stage.objective.loss(backbone, batch, draw).cpu().double().sum())
    return total / len(held)
