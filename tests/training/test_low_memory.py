"""Moments of 8 bits. The library compiles its step for each shape; here it runs as it stands."""

import sys
from dataclasses import replace

import pytest
import torch
from torch import nn

from pixelspace.errors import CheckpointError, ResourceError
from pixelspace.training import checkpoint
from pixelspace.training.low_memory import AdamW8bit
from pixelspace.training.memory import predicted
from pixelspace.training.optim import AdamW, Group, load_state_by_name, set_rate, state_by_name
from pixelspace.types import ParamGroup


@pytest.fixture(autouse=True)
def eager():
    torch.compiler.set_stance("force_eager")
    yield
    torch.compiler.set_stance("default")


class Net(nn.Module):
    """A weight that is kept in 8 bits and three tensors too small for it."""

    def __init__(self):
        super().__init__()
        self.wide, self.narrow = nn.Linear(128, 64), nn.Linear(64, 3)

    def param_groups(self):
        return [ParamGroup(tuple(name for name, _ in self.named_parameters()), 1.0, True)]


def steps(net, optimizer, numbers, lr=1e-3):
    for i in numbers:
        torch.manual_seed(i)
        set_rate(optimizer, lr, i, 1)
        net.narrow(net.wide(torch.randn(8, 128))).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def learnt(optimizer, count=6):
    torch.manual_seed(0)
    net = Net()
    steps(net, built := optimizer.build(net), range(count))
    return net, built


def test_its_first_step_is_that_of_adamw_and_later_ones_stay_near():
    """The first update is of moments not yet rounded: lr times the gradient's sign and the decay."""
    for count, tolerance in ((1, 1e-6), (6, 5e-4)):
        (ours, _), (plain, _) = learnt(AdamW8bit(), count), learnt(AdamW(), count)
        for (name, found), expected in zip(ours.named_parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(found, expected, rtol=0, atol=tolerance, msg=lambda text, name=name: name + text)


def test_its_groups_have_their_own_rates():
    net = Net()
    optimizer = AdamW8bit(groups=(Group("wide.*", lr_factor=0.5),)).build(net)
    set_rate(optimizer, 0.25, 0, 1)
    found = {name: float(group["lr"]) for group in optimizer.param_groups for name in group["names"]}
    assert found == {"wide.weight": 0.125, "wide.bias": 0.125, "narrow.weight": 0.25, "narrow.bias": 0.25}


def test_its_moments_are_plain_tensors_of_a_quarter_of_the_size():
    net, optimizer = learnt(AdamW8bit())
    moments = state_by_name(optimizer)
    assert {type(tensor) for tensor in moments.values()} == {torch.Tensor}
    assert moments["wide.weight.exp_avg_codes"].dtype == torch.uint8
    assert moments["wide.weight.exp_avg_sq_scale"].shape == (128 * 64 // 256,)
    assert moments["narrow.weight.exp_avg"].dtype == torch.float32
    wide = sum(tensor.nbytes for name, tensor in moments.items() if name.startswith("wide.weight."))
    assert wide < 0.26 * AdamW().moment_bytes(net.wide.weight)


def test_what_it_holds_is_what_is_predicted():
    net, optimizer = learnt(AdamW8bit())
    for parameter in net.parameters():
        held = optimizer.state[parameter]
        parts = [one for moment in held.values() for one in (getattr(moment, key, None) for key in PARTS)]
        real = sum(one.nbytes for one in parts if one is not None)
        real += sum(moment.nbytes for moment in held.values() if not hasattr(moment, "codes"))
        assert AdamW8bit().moment_bytes(parameter) == real


PARTS = ("codes", "scale", "qmap")


def test_its_moments_travel_by_name_and_go_on_to_the_same_bits():
    first, optimizer = learnt(AdamW8bit())
    second = Net()
    second.load_state_dict(first.state_dict())
    other = AdamW8bit().build(second)
    load_state_by_name(other, {name: tensor.clone() for name, tensor in reversed(state_by_name(optimizer).items())})
    steps(first, optimizer, range(6, 10))
    steps(second, other, range(6, 10))
    for name, tensor in (second.state_dict() | state_by_name(other)).items():
        assert torch.equal(tensor, (first.state_dict() | state_by_name(optimizer))[name]), name


@pytest.mark.parametrize(("saved", "taken"), [(AdamW(), AdamW8bit()), (AdamW8bit(), AdamW())], ids=["to", "from"])
def test_moments_of_another_kind_are_refused(saved, taken):
    _, optimizer = learnt(saved, 1)
    with pytest.raises(CheckpointError, match=r"'wide\.weight' does not fit .*expected wide\.weight\.exp_avg.*found"):
        load_state_by_name(taken.build(Net()), state_by_name(optimizer))


def test_a_step_that_is_not_finite_can_be_left_out():
    net, optimizer = learnt(AdamW8bit(), 2)
    before = {name: tensor.clone() for name, tensor in (net.state_dict() | state_by_name(optimizer)).items()}
    optimizer.found_inf = torch.ones(())
    steps(net, optimizer, [2])
    for name, tensor in (net.state_dict() | state_by_name(optimizer)).items():
        assert torch.equal(tensor, before[name]), name
    optimizer.found_inf = torch.zeros(())
    steps(net, optimizer, [2])
    assert not torch.equal(net.wide.weight, before["wide.weight"])


def test_a_run_resumes_to_the_same_bits(tiny, train, tmp_path):
    (stage,) = tiny.stages
    recipe = replace(tiny, stages=(replace(stage, optimizer=AdamW8bit(lr=1e-3), images=32),))
    train(recipe, tmp_path / "whole")
    ends = tmp_path / "whole/00-train/checkpoints"
    begun = tmp_path / "again/00-train/checkpoints"
    begun.mkdir(parents=True)
    (ends / "step-00000002").rename(begun / "step-00000002")
    said = train(recipe, tmp_path / "again")
    assert "resuming train at 16 images" in said[0]
    whole, again = (checkpoint.resume(folder).contents.parts for folder in (ends, begun))
    assert any(name.endswith("_codes") for name in whole["optimizer"])
    for part, tensors in whole.items():
        assert tensors.keys() == again[part].keys()
        for name, tensor in tensors.items():
            assert torch.equal(tensor, again[part][name]), (part, name)


def test_a_step_with_it_holds_what_is_predicted(tiny):
    (stage,) = tiny.stages
    small = predicted(replace(stage, optimizer=AdamW8bit()))
    assert small.moments < 0.5 * predicted(stage).moments and replace(small, moments=0) == replace(
        predicted(stage), moments=0
    )


def test_without_the_library_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchao", None)
    with pytest.raises(ResourceError, match=r"AdamW8bit needs the package torchao.*pixelspace\[low-memory\]"):
        AdamW8bit().build(Net())


def test_a_senseless_block_is_refused():
    with pytest.raises(ValueError, match="AdamW8bit: block must be positive, found 0"):
        AdamW8bit(block=0)
