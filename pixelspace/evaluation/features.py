"""What networks see in images: uint8 pixels in, rows of features out."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from pixelspace.evaluation.weights import Weights

BATCH = 32
CPU_ROWS = 4  # activations of more rows leave a CPU's caches, and are asked of the system anew: 2 to 5 times slower


@dataclass(frozen=True)
class Opened:
    """A network with its weights in place.

    `compute` takes uint8 images (B, 3, H, W), or clips (B, 3, T, H, W), on the CPU and gives float32 rows (B, D) on the
    CPU by the names of the extractor's outputs; `embed_text` gives rows for captions, where the network reads them, and
    `cut_off` bool (B,) for those that are longer than it reads, whose end it leaves out. `sha256` is that of the
    weights.
    """

    sha256: str
    compute: Callable[[Tensor], Mapping[str, Tensor]]
    embed_text: Callable[[Sequence[str]], Tensor] | None = None
    cut_off: Callable[[Sequence[str]], Tensor] | None = None


class Extractor(ABC):
    """A network's view of images as a value: which network, and how its input is made of pixels."""

    @property
    @abstractmethod
    def name(self) -> str:
        """What a report calls it, with all that changes its numbers: `Inception-2015-12-05, resize tf1`."""

    @property
    @abstractmethod
    def outputs(self) -> Mapping[str, int]:
        """The names of its outputs and their widths: `inception.pool` 2048."""

    def key(self, output: str) -> str:
        """What one of its outputs is called among those of other extractors."""
        return f"{self.name}/{output}"

    @property
    def text_output(self) -> str:
        """The name of what it makes of captions; "" where it reads none."""
        return ""

    @abstractmethod
    def open(self, weights: Weights, device: torch.device) -> Opened:
        """The network on `device`.

        Raises:
            ResourceError: its weights or its package are absent.
            CheckpointError: its weights are damaged or of something else.
        """


@contextmanager
def full_precision() -> Iterator[None]:
    """float32 that is float32: no TF32, no autocast, no choice of kernels by their speed; and no gradients."""
    cudnn, before = torch.backends.cudnn, torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with (
            cudnn.flags(enabled=cudnn.enabled, benchmark=False, deterministic=cudnn.deterministic, allow_tf32=False),
            torch.autocast("cuda", enabled=False),
            torch.autocast("cpu", enabled=False),
            torch.inference_mode(),
        ):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


def in_batches(
    compute: Callable[[Tensor], Mapping[str, Tensor]], inputs: Tensor, batch: int = BATCH
) -> dict[str, Tensor]:
    """What `compute` gives for inputs (n, ...), n > 0, by name. Every pass has exactly `batch` rows, the last filled up
    with its own last row, so that results do not depend on how many come at once."""
    parts: list[Mapping[str, Tensor]] = []
    for start in range(0, len(inputs), batch):
        rows = inputs[start : start + batch]
        filled = torch.cat([rows, rows[-1:].expand(batch - len(rows), *rows.shape[1:])])
        with full_precision():
            found = compute(filled)
        parts.append({name: output[: len(rows)].clone() for name, output in found.items()})
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def a_few_at_once(
    compute: Callable[[Tensor], Mapping[str, Tensor]], device: torch.device
) -> Callable[[Tensor], Mapping[str, Tensor]]:
    """`compute`, which on a CPU is then given few rows at a time."""
    if device.type != "cpu":
        return compute

    def computed(images: Tensor) -> Mapping[str, Tensor]:
        parts = [compute(rows) for rows in images.split(CPU_ROWS)]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    return computed


def extract(opened: Opened, images: Tensor, batch: int = BATCH) -> dict[str, Tensor]:
    """Features of images (n, ...) by output, computed `in_batches`."""
    return in_batches(opened.compute, images, batch)
