import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pixelspace.backbones.uvit import CoreConfig, ShallowUViTConfig, UViTConfig
from pixelspace.noise.process import VPV, Process
from pixelspace.training.seam import match_seam
from pixelspace.types import Batch, Draw

CORE = CoreConfig(8, 2, 8, (2, 3), cond_width=8, num_classes=3, dropout=0.3)
SHALLOW = ShallowUViTConfig(CORE, stride=2)
GROWN = UViTConfig(CORE, (4, 6), patch=2, blocks=1, seam="affine")
RATIO = 4
OURS, THEIRS = Process(VPV(), shift=RATIO), Process(VPV())


def filled(config, seed):
    """A network in float64 of which no weight is as it was initialised."""
    torch.manual_seed(seed)
    network = config.build().double()
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.5)
    return network


def dice(count, *sizes):
    """Batches of these sizes, of `count` images in all."""
    generator = torch.Generator().manual_seed(3)
    x, noise = torch.randn(2, count, 3, 16, 24, generator=generator, dtype=torch.float64)
    sigma = torch.logspace(-1.0, 1.5, count, dtype=torch.float64)
    drop = torch.arange(count) % 4 == 0
    parts = zip(*(tensor.split(sizes) for tensor in (x, noise, sigma, drop, torch.arange(count))), strict=True)
    return [(Batch(x, {"label": at % 3}, at), Draw(sigma, noise, drop)) for x, noise, sigma, drop, at in parts]


def entering(network, inputs):
    """Mean and deviation by channel of what enters the core."""
    seen = []
    hook = network.core.register_forward_pre_hook(lambda _, given: seen.append(given[0].transpose(0, 1).flatten(1)))
    with torch.no_grad():
        for x, c_noise, cond in inputs:
            network(x, c_noise, cond)
    hook.remove()
    rows = torch.cat(seen, 1)
    return rows.mean(1), rows.std(1, correction=0)


def shown(batch, draw):
    """What a network at the full size sees."""
    label = torch.where(draw.drop, -1, batch.cond["label"])
    return *OURS.inputs(OURS.corrupt(batch.x, draw.noise, draw.sigma), draw.sigma), {"label": label}


def shown_smaller(batch, draw):
    """What one at a quarter of it sees: the same noisy image, averaged over blocks."""
    label = torch.where(draw.drop, -1, batch.cond["label"])
    noisy, sigma = F.avg_pool2d(OURS.corrupt(batch.x, draw.noise, draw.sigma), RATIO), draw.sigma / RATIO
    return *THEIRS.inputs(noisy, sigma), {"label": label}


@pytest.mark.parametrize("fresh", [True, False], ids=["fresh seam", "seam of before"])
def test_what_enters_the_core_has_the_source_s_mean_and_deviation_by_channel(fresh):
    network, source = filled(GROWN, 1), filled(SHALLOW, 2)
    if fresh:
        nn.init.ones_(network.seam.scale)
        nn.init.zeros_(network.seam.shift)
    batches = dice(12, 12)
    wanted = entering(source.eval(), [shown_smaller(*each) for each in batches])
    before = entering(network.eval(), [shown(*each) for each in batches])
    assert (before[0] - wanted[0]).abs().max() > 0.1 and (before[1] / wanted[1]).log().abs().max() > 0.1
    match_seam(network, source, batches, (OURS, THEIRS), (4, 6))
    after = entering(network, [shown(*each) for each in batches])
    for found, expected in zip(after, wanted, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def test_the_seam_does_not_depend_on_how_the_images_are_batched():
    found = []
    for sizes in ((12,), (5, 5, 2)):
        network = filled(GROWN, 1)
        match_seam(network, filled(SHALLOW, 2), dice(12, *sizes), (OURS, THEIRS), (4, 6))
        found.append(torch.cat([network.seam.scale, network.seam.shift]))
    torch.testing.assert_close(*found, rtol=1e-10, atol=1e-10)


def test_matching_changes_the_seam_alone_and_leaves_the_modes():
    network, source = filled(GROWN, 1), filled(SHALLOW, 2)
    network.core.eval()
    modes = [module.training for module in network.modules()]
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    given = {name: tensor.clone() for name, tensor in source.state_dict().items()}
    match_seam(network, source, dice(4, 4), (OURS, THEIRS), (4, 6))
    changed = {name for name, tensor in network.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {"seam.scale", "seam.shift"}
    assert all(torch.equal(tensor, given[name]) for name, tensor in source.state_dict().items())
    assert [module.training for module in network.modules()] == modes and source.training
    assert not network.core._forward_pre_hooks and not source.core._forward_pre_hooks
    assert all(parameter.grad is None and parameter.requires_grad for parameter in network.parameters())


def test_a_channel_that_never_varies_gets_the_mean_and_stays_finite():
    network, source = filled(GROWN, 1), filled(SHALLOW, 2)
    network.levels[0].to_inner.weight.data[0] = 0.0
    batches = dice(6, 6)
    match_seam(network, source, batches, (OURS, THEIRS), (4, 6))
    mean, deviation = entering(network.eval(), [shown(*each) for each in batches])
    wanted, _ = entering(source.eval(), [shown_smaller(*each) for each in batches])
    assert all(parameter.isfinite().all() for parameter in network.seam.parameters())
    torch.testing.assert_close(mean, wanted, rtol=1e-6, atol=1e-6)
    assert deviation[0] < 1e-6


def test_a_network_matched_to_itself_keeps_its_seam():
    network, source = filled(GROWN, 1), filled(GROWN, 1)
    before = [parameter.detach().clone() for parameter in network.seam.parameters()]
    match_seam(network, source, dice(6, 6), (OURS, OURS), (16, 24))
    for found, expected in zip(network.seam.parameters(), before, strict=True):
        torch.testing.assert_close(found.detach(), expected, rtol=1e-9, atol=1e-9)
