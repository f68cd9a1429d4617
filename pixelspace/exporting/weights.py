"""Weights in fewer bytes, and a model's folder with the averaged ones alone."""

from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from pixelspace import store
from pixelspace.errors import UserError
from pixelspace.exporting.folder import described
from pixelspace.model import KIND, Model

Kept = Literal["fp32", "bf16", "fp16"]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def in_precision(network: nn.Module, kept: Kept) -> dict[str, Tensor]:
    """The weights by name, those that are learnt in `kept`; buffers, such as the frequencies of an embedding, stay as
    they are: a rounded one would be another for all that was learnt on it.

    Raises:
        UserError: a weight that float16 cannot hold.
    """
    learnt = {name for name, _ in network.named_parameters()}
    found = {name: t.to(DTYPES[kept]) if name in learnt else t for name, t in network.state_dict().items()}
    for name, tensor in found.items():
        if not tensor.isfinite().all():
            raise UserError(f"{name}: holds numbers that {kept} cannot; export it as bf16, which has float32's range")
    return found


def to_model(model: Model, out: Path, kept: Kept = "fp32") -> None:
    """Writes a model's folder that `load` reads, its learnt weights in `kept`. They are float32 again when they are
    read, so only the file is smaller.

    Raises:
        UserError: `out` stands already, or weights are too large for float16.
        ResourceError: the disk refuses.
    """
    parts = {"model": in_precision(model.backbone, kept), **({"nothing": model.nothing} if model.nothing else {})}
    store.publish(out, parts, described(model.config), kind=KIND)
