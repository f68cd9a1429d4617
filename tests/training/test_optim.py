import pytest
import torch
from torch import nn

from pixelspace.errors import CheckpointError
from pixelspace.training.optim import (
    AdamW,
    Constant,
    Exponential,
    Inverse,
    load_state_by_name,
    set_rate,
    state_by_name,
)
from pixelspace.types import ParamGroup


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.slow, self.fast = nn.Linear(4, 4), nn.Linear(4, 2)

    def param_groups(self):
        names = [name for name, _ in self.named_parameters()]
        return [
            ParamGroup(tuple(n for n in names if n.startswith("slow")), 1 / 3, True),
            ParamGroup(tuple(n for n in names if n.startswith("fast")), 1.0, False),
        ]


def steps(net, optimizer, n):
    for i in range(n):
        torch.manual_seed(i)
        net.fast(net.slow(torch.randn(8, 4))).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


SCHEDULES = {
    "constant_warmup0.99": Inverse(inv_gamma=1.0, power=0.0, warmup=0.99),
    "exponential_n5000_d0.5_w0.9": Exponential(5000.0, 0.5, 0.9),
    "inverse_g20000_p1_w0.99": Inverse(20000.0, 1.0, 0.99),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules_meet_the_golden(golden, name):
    misc = golden("hdit/misc")
    found = [SCHEDULES[name].factor(t * 64, 10**9, 64) for t in misc["ema/steps"].tolist()]
    torch.testing.assert_close(torch.tensor(found, dtype=torch.float64), misc[f"lr/{name}"], rtol=1e-9, atol=0)


def test_the_constant_schedule_warms_up_and_cools_down():
    schedule = Constant(warmup_images=100, cooldown=0.4)
    assert [schedule.factor(i, 1000, 10) for i in (0, 40, 90, 500, 600, 800, 990)] == pytest.approx(
        [0.1, 0.5, 1, 1, 1, 0.5, 0.025]
    )


def test_each_group_has_its_rate_and_decay():
    optimizer = AdamW(lr=0.3, weight_decay=0.1).build(Net())
    set_rate(optimizer, 0.6, 0, 1)
    assert [(group["lr"], group["weight_decay"]) for group in optimizer.param_groups] == [
        (pytest.approx(0.2), 0.1),
        (0.6, 0.0),
    ]


def test_moments_travel_by_name_and_go_on_to_the_same_bits():
    first, second = Net(), Net()
    optimizer = AdamW().build(first)
    steps(first, optimizer, 3)
    second.load_state_dict(first.state_dict())
    other = AdamW().build(second)
    saved = {name: tensor.clone() for name, tensor in reversed(state_by_name(optimizer).items())}
    load_state_by_name(other, saved)
    steps(first, optimizer, 3)
    steps(second, other, 3)
    for name, tensor in second.state_dict().items():
        assert torch.equal(tensor, first.state_dict()[name]), name
    for name, tensor in state_by_name(other).items():
        assert torch.equal(tensor, state_by_name(optimizer)[name]), name


def test_moments_of_another_network_are_refused_by_name():
    net = Net()
    optimizer = AdamW().build(net)
    steps(net, optimizer, 1)
    saved = state_by_name(optimizer)
    with pytest.raises(CheckpointError, match=r"unknown parameters.*'other"):
        load_state_by_name(AdamW().build(Net()), {**saved, "other.step": torch.zeros(())})
    del saved["slow.weight.exp_avg"]
    with pytest.raises(CheckpointError, match=r"slow\.weight"):
        load_state_by_name(AdamW().build(Net()), saved)


@pytest.mark.parametrize("bad", [{"lr": 0.0}, {"betas": (0.9, 1.0)}, {"clip": -1.0}, {"weight_decay": -0.1}])
def test_senseless_settings_are_refused(bad):
    with pytest.raises(ValueError, match="AdamW"):
        AdamW(**bad)
