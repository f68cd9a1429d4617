from dataclasses import replace

import torch

from pixelspace.recipes.hdit import demo, ffhq1024
from pixelspace.training.describe import describe
from pixelspace.training.memory import activation_bytes
from pixelspace.types import Batch, Draw


def saved_bytes(stage, batch):
    """What autograd really saves."""
    network, kept = stage.backbone.build(), {}

    def note(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        alive.append(tensor)
        return tensor

    alive = []
    own = {parameter.untyped_storage().data_ptr() for parameter in network.parameters()}
    x = torch.randn(batch, 3, *stage.size)
    enabled = stage.precision == "bf16"
    with (
        torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=enabled),
    ):
        label = torch.zeros(batch, dtype=torch.int64)
        stage.objective.loss(network, Batch(x, {"label": label}, torch.arange(batch)), Draw(torch.ones(batch), x))
    return sum(size for pointer, size in kept.items() if pointer not in own)


def test_predicted_activations_are_what_autograd_saves(tiny):
    (stage,) = tiny.stages
    (bf16,) = demo().stages
    for one in (stage, bf16, replace(bf16, precision="fp32")):
        measured = saved_bytes(one, 2)
        assert abs(activation_bytes(one, 2) - measured) <= 0.1 * measured


def test_describing_a_large_model_touches_no_table_of_the_real_one():
    text = describe(ffhq1024())
    assert "85,079,300 parameters" in text and "206.076 GMAC" in text and "GiB" in text
    (stage,) = demo().stages
    with torch.no_grad():
        out = stage.backbone.build()(torch.randn(1, 3, 32, 32), torch.zeros(1), {})
    assert type(out) is torch.Tensor
