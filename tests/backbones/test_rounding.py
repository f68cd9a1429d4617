"""What bfloat16 must not touch: buffers, tables of positions, and angles."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.backbones.cases import conditions
from tests.backbones.test_backbones import EACH, awake, first_to_last, given, shown


class Angles(TorchDispatchMode):
    """Keeps what sines and cosines are taken of."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in (torch.ops.aten.cos.default, torch.ops.aten.sin.default):
            self.seen.append(args[0].clone())
        return func(*args, **(kwargs or {}))


def learnt(network, config, size, enabled):
    """One forward and backward pass."""
    x, c_noise = given(config, size, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
        out = network(x, c_noise, conditions(config, 3), **shown(config, size, 3))
    first_to_last(out).float().square().sum().backward()
    return first_to_last(out)


@EACH
def test_under_bfloat16_no_weight_buffer_or_table_of_positions_changes(config, size):
    network = awake(config, torch.float32)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    before |= {name: tensor.clone() for name, tensor in network.named_buffers()}
    assert config.positions.keys() <= before.keys()
    learnt(network, config, size, enabled=True)
    for name, tensor in {**network.state_dict(), **dict(network.named_buffers())}.items():
        assert tensor.dtype == before[name].dtype and torch.equal(tensor, before[name]), name
    for name, parameter in network.named_parameters():
        assert parameter.grad is None or parameter.grad.dtype == torch.float32, name


@EACH
def test_under_bfloat16_every_angle_has_the_bits_of_float32(config, size):
    network = awake(config, torch.float32)
    found = []
    for enabled in (False, True):
        torch.manual_seed(0)
        with Angles() as angles:
            learnt(network, config, size, enabled)
        found.append(angles.seen)
    exact, low = found
    assert exact and len(low) <= len(exact)  # tables may be kept
    for angle in low:
        assert angle.dtype == torch.float32
        assert any(angle.shape == other.shape and torch.equal(angle, other) for other in exact)


@EACH
def test_bfloat16_leaves_nothing_rounded_behind(config, size):
    network = awake(config, torch.float32)
    torch.manual_seed(0)
    learnt(network, config, size, enabled=True)
    torch.manual_seed(0)
    found = learnt(network, config, size, enabled=False)
    fresh = config.build().eval()
    fresh.load_state_dict(network.state_dict())
    torch.manual_seed(0)
    assert torch.equal(found, learnt(fresh, config, size, enabled=False))
