"""How much memory a training step keeps for its backward pass, found without running it."""

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from pixelspace.growth.freeze import freeze
from pixelspace.random import Rng
from pixelspace.training.preview import autocast
from pixelspace.training.stage import Stage
from pixelspace.types import Batch, Draw


def _batch(stage: Stage, batch: int) -> Batch:
    pairs = torch.zeros(batch, 2, dtype=torch.int64)
    cond = {"label": torch.zeros(batch, dtype=torch.int64), "size": pairs, "corner": pairs}
    null = {}
    if stage.text is not None and stage.backbone.text_widths is not None:
        (width, pooled), length = stage.backbone.text_widths, stage.text.length
        words = {"text": torch.zeros(batch, length, width), "pooled": torch.zeros(batch, pooled)}
        cond |= {**words, "text_mask": torch.ones(batch, length, dtype=torch.bool)}
        null = {name: cond[name][:1] for name in ("text", "pooled", "text_mask")}
    return Batch(torch.zeros(batch, *stage.shape), cond, torch.arange(batch), null)


def activation_bytes(stage: Stage, batch: int = 1) -> int:
    """Bytes that autograd saves for one forward pass of `batch` images, weights not counted.

    Frozen linear maps do not save their inputs; with the stage's checkpointing a block saves only what enters it.
    """
    device = torch.device("cpu")
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage.nbytes()
        alive.append(tensor)
        return tensor

    alive: list[Tensor] = []
    real = _batch(stage, batch)
    drawn = stage.objective.draw(real, batch, 0.0, Rng(0))
    stage.objective.process.c_noise(drawn.sigma)  # a clock's table that is first computed below would stay a fake
    with FakeTensorMode(allow_non_fake_inputs=True) as fake:
        network = stage.backbone.build()
        network.checkpointing = stage.checkpointing  # type: ignore[assignment]
        freeze(network, stage.freeze)
        own = {parameter.untyped_storage()._cdata for parameter in network.parameters()}
        cond, null = ({key: fake.from_tensor(rows) for key, rows in c.items()} for c in (real.cond, real.null))
        given = Batch(fake.from_tensor(real.x), cond, real.pos, null)
        sigma, noise = fake.from_tensor(drawn.sigma), fake.from_tensor(drawn.noise)
        drop, keep = (None if one is None else fake.from_tensor(one) for one in (drawn.drop, drawn.keep))
        draw = Draw(sigma, noise, drop, keep)
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor), autocast(stage, device):
            stage.objective.loss(network, given, draw).sum()
    return sum(size for storage, size in kept.items() if storage not in own)
