"""How much memory a training step keeps for its backward pass, found without running it."""

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from pixelspace.random import Rng
from pixelspace.training.preview import autocast
from pixelspace.training.stage import Stage
from pixelspace.types import Batch, Draw


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
    real = Batch(
        torch.zeros(batch, *stage.shape), {"label": torch.zeros(batch, dtype=torch.int64)}, torch.arange(batch)
    )
    drawn = stage.objective.draw(real, batch, 0.0, Rng(0))
    with FakeTensorMode() as fake:
        network = stage.backbone.build()
        own = {parameter.untyped_storage()._cdata for parameter in network.parameters()}
        given = Batch(fake.from_tensor(real.x), {"label": fake.from_tensor(real.cond["label"])}, real.pos)
        sigma, noise = fake.from_tensor(drawn.sigma), fake.from_tensor(drawn.noise)
        drop, keep = (None if one is None else fake.from_tensor(one) for one in (drawn.drop, drawn.keep))
        draw = Draw(sigma, noise, drop, keep)
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor), autocast(stage, device):
            stage.objective.loss(network, given, draw).sum()
    return sum(size for storage, size in kept.items() if storage not in own)
