from dataclasses import replace

import torch

from pixelspace.random import Rng
from pixelspace.training.preview import evaluating, held_out_loss, sample_images


def fresh(stage):
    torch.manual_seed(0)
    network = stage.backbone.build()
    for parameter in network.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    return network


def test_the_held_out_loss_is_the_same_at_every_call_and_split(tiny):
    (stage,) = tiny.stages
    network, dataset = fresh(stage), stage.data.source.open()
    held, rng = list(range(10, 18)), Rng(3)
    with evaluating(network, network.state_dict(), stage) as backbone:
        first, again = (held_out_loss(stage, backbone, dataset, held, rng, torch.device("cpu")) for _ in range(2))
        split = held_out_loss(replace(stage, micro=4), backbone, dataset, held, rng, torch.device("cpu"))
    assert first == again
    assert abs(split.loss - first.loss) < 1e-5 * first.loss
    for whole, parts in zip(first.octiles, split.octiles, strict=True):
        assert whole == parts or abs(whole - parts) < 1e-5 * whole
    assert sum(octile is not None for octile in first.octiles) >= 4


def test_evaluating_uses_other_weights_without_dropout_and_leaves_the_network(tiny):
    (stage,) = tiny.stages
    network = fresh(stage).train()
    own = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    zero = {name: torch.zeros_like(tensor) for name, tensor in own.items()}
    x, cond = torch.randn(2, 3, 16, 16), {"label": torch.tensor([0, 1])}
    with evaluating(network, zero, stage) as backbone:
        assert not backbone(x, torch.zeros(2), cond).any()
    with evaluating(network, own, stage) as backbone:
        once, twice = (backbone(x, torch.zeros(2), cond) for _ in range(2))
    assert torch.equal(once, twice) and not once.requires_grad
    assert network.training
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, own[name])


def test_previews_draw_one_image_of_each_class_in_turn(tiny):
    (stage,) = tiny.stages
    network = fresh(stage)
    with evaluating(network, network.state_dict(), stage) as backbone:
        (images,) = sample_images(stage, backbone, torch.device("cpu"))
    assert images.shape == (2, 16, 16, 3) and images.dtype == torch.uint8
