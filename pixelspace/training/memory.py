"""How much memory a training step keeps for its backward pass, found without running it."""

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from pixelspace.training.preview import autocast
from pixelspace.training.stage import Stage
from pixelspace.types import Batch


def activation_bytes(stage: Stage, batch: int = 1) -> int:
    """Bytes that autograd saves for one forward pass of `batch` images, weights not counted."""
    device = torch.device("cpu")
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage.nbytes()
        alive.append(tensor)
        return tensor

    alive: list[Tensor] = []
    with FakeTensorMode():
        network = stage.backbone.build()
        own = {parameter.untyped_storage()._cdata for parameter in network.parameters()}
        x = torch.zeros(batch, stage.backbone.channels, *stage.size)
        cond = {"label": torch.zeros(batch, dtype=torch.int64)}
        from pixelspace.types import Draw

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor), autocast(stage, device):
            sigma = torch.ones(batch)
            stage.objective.loss(network, Batch(x, cond, torch.arange(batch)), Draw(sigma, x)).sum()
    return sum(size for storage, size in kept.items() if storage not in own)
