"""Small images and networks of a few numbers, so that a whole evaluation takes milliseconds."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pixelspace.evaluation.computing import Computing
from pixelspace.evaluation.custom import Custom
from pixelspace.evaluation.evaluate import evaluate
from pixelspace.evaluation.metrics import DensityCoverage, Frechet, Kernel, PrecisionRecall, Vendi
from pixelspace.evaluation.protocols import Protocol
from pixelspace.evaluation.report import Report
from pixelspace.evaluation.views import Made
from pixelspace.evaluation.weights import Weights

SHAPE = (3, 6, 8)
OUTPUT = "pixels.projected"


def computing(rank: int = 0, world: int = 1, weights: Path = Path("no weights"), **more) -> Computing:
    return Computing(Weights(weights), torch.device("cpu"), rank, world, progress=False, **more)


def noise(count: int, seed: int = 0, shape: tuple[int, ...] = SHAPE) -> Tensor:
    """uint8 (count, *shape), of another brightness for another seed."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(8 * seed, 256 - 4 * seed, (count, *shape), dtype=torch.uint8, generator=generator)


def made(pixels: Tensor, name: str = "noise", chunk: int = 64, read: Callable[[range], None] | None = None) -> Made:
    """Images of a tensor; `read` hears which are wanted."""

    def make(numbers: range) -> Tensor:
        if read is not None:
            read(numbers)
        return pixels[numbers.start : numbers.stop]

    fingerprint = f"{name} {int(pixels.long().sum())} {len(pixels)}"
    return Made(name, fingerprint, tuple(pixels.shape[1:]), len(pixels), make, chunk)


def projection(pixels: Tensor, width: int = 8) -> Tensor:
    """float32 (n, width): pixels times a fixed random matrix."""
    flat = pixels.flatten(1).double() / 255
    matrix = torch.randn(flat.shape[1], width, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    return (flat @ matrix).float()


class Projected:
    """`projection` as an extractor that counts the images it has seen, of batches that are filled up."""

    def __init__(self, width: int = 8, name: str = "projection", output: str = OUTPUT, sha256: str = "ab" * 32) -> None:
        self.seen = 0
        self.width = width
        self.extractor = Custom(self, name=name, output=output, width=width, sha256=sha256)

    def __call__(self, images: Tensor) -> Tensor:
        self.seen += len(images)
        return projection(images, self.width)


def protocol(extractor: Custom, count: int = 600, output: str = OUTPUT, **more) -> Protocol:
    """All that can be said of features alone."""
    metrics = (
        Frechet("FD", extractor, output),
        Kernel("KD", extractor, output, subsets=4, size=50),
        PrecisionRecall(extractor, output),
        DensityCoverage(extractor, output),
        Vendi(extractor, output),
    )
    return Protocol("small", "all of one projection", count, more.pop("metrics", metrics), labels="none", **more)


COUNT = 600
PIXELS, KNOWN = noise(COUNT), noise(700, seed=1)
X, Y = projection(PIXELS), projection(KNOWN)


def judged(out: Path, pixels=PIXELS, *, projected=None, rank=0, world=1, chunk=64, **more) -> Report | None:
    projected = Projected() if projected is None else projected
    reference = more.pop("reference", made(KNOWN, "known", chunk))
    small = protocol(projected.extractor, len(pixels))
    return evaluate(small, [made(pixels, chunk=chunk)], out, computing(rank, world), reference=reference, **more)


def close(found: Report | None, expected: Report) -> None:
    assert found is not None
    assert found.numbers == pytest.approx(expected.numbers, rel=0, abs=1e-9)


def noted(report: Report | None) -> list[str]:
    assert report is not None
    return report.data["notes"]
