"""The seam of a grown network: what enters its core is given the statistics the core was trained on."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pixelspace.data.dataset import Dataset
from pixelspace.data.loader import read, to_model_space
from pixelspace.noise.process import Process
from pixelspace.objectives.denoising import dropped
from pixelspace.random import Rng
from pixelspace.text.encoder import Reader
from pixelspace.training.stage import Stage
from pixelspace.training.words import with_text
from pixelspace.types import Batch, Draw


def samples(
    stage: Stage, dataset: Dataset, ids: list[int], rng: Rng, device: torch.device, reader: Reader | None
) -> Iterator[tuple[Batch, Draw]]:
    """Training samples with their dice, in batches of the stage's micro-batch."""
    fixed, data, chunk = Rng(rng.key("seam")), replace(stage.data, augment=0.0), stage.micro or stage.batch
    for start in range(0, len(ids), chunk):
        raw = read(dataset, ids[start : start + chunk], stage.size, stage.data.crop)
        batch = to_model_space(replace(raw, pos=raw.pos + start), data, stage.codec, fixed, device)
        batch = with_text(batch, raw.texts, reader)
        yield batch, stage.objective.draw(batch, len(ids), 0.0, fixed)


_Sums = tuple[int, Tensor, Tensor]


def _sums(x: Tensor) -> _Sums:
    """Of x (B, D, ...) by channel, float64: how many values, their sum and that of their squares."""
    rows = x.double().movedim(1, -1).flatten(0, -2)
    return len(rows), rows.sum(0), rows.square().sum(0)


@contextmanager
def _entering(network: nn.Module) -> Iterator[list[_Sums]]:
    """Sums by channel of what enters the network's core, for each forward pass."""
    seen: list[_Sums] = []
    core = network.get_submodule("core")
    hook = core.register_forward_pre_hook(lambda _, given: seen.append(_sums(given[0])))
    modes = {module: module.training for module in network.modules()}
    network.eval()
    try:
        with torch.no_grad():
            yield seen
    finally:
        hook.remove()
        for module, mode in modes.items():
            module.training = mode


def _moments(seen: Iterable[_Sums]) -> tuple[Tensor, Tensor]:
    """Mean and deviation by channel."""
    counts, sums, squares = zip(*seen, strict=True)
    mean = torch.stack(sums).sum(0) / sum(counts)
    return mean, (torch.stack(squares).sum(0) / sum(counts) - mean.square()).clamp(min=0).sqrt()


def pooled(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Means of x (B, C, H, W) over blocks, (B, C, *size)."""
    return F.adaptive_avg_pool2d(x, size)


@torch.no_grad()
def match_seam(
    network: nn.Module,
    source: nn.Module,
    drawn: Iterable[tuple[Batch, Draw]],
    processes: tuple[Process, Process],
    source_size: tuple[int, int],
) -> None:
    """Sets `network.seam` so that its core is entered with the mean and deviation by channel that `source`'s core is
    entered with, for the same images made smaller, the same noise, as noisy, and the same conditions.

    `processes` are the network's and the source's; at the same c_noise both see the same signal-to-noise ratio when
    the levels were shifted by the ratio of sizes.
    """
    ours, theirs = processes
    with _entering(network) as here, _entering(source) as there:
        for batch, draw in drawn:
            cond = dropped(batch, draw.drop)
            x = ours.corrupt(batch.x, draw.noise, draw.sigma)
            network(*ours.inputs(x, draw.sigma), cond)
            sigma = draw.sigma * (theirs.shift / ours.shift)
            blocks = (batch.x.shape[2] * batch.x.shape[3] / (source_size[0] * source_size[1])) ** 0.5
            noise = pooled(draw.noise, source_size) * blocks  # of unit variance again
            small = theirs.corrupt(pooled(batch.x, source_size), noise, sigma)
            source(*theirs.inputs(small, sigma), cond)
        (mean, deviation), (wanted_mean, wanted_deviation) = _moments(here), _moments(there)
    seam = network.get_submodule("seam")
    scale = wanted_deviation / deviation.clamp(min=1e-6)
    before = seam.scale.double(), seam.shift.double()  # type: ignore[union-attr]
    seam.scale.copy_(scale * before[0])  # type: ignore[operator]
    seam.shift.copy_(scale * (before[1] - mean) + wanted_mean)  # type: ignore[operator]
