import pytest
import torch
from torch import nn

from pixelspace.errors import CheckpointError, UserError
from pixelspace.training.optim import (
    AdamW,
    Constant,
    Exponential,
    Group,
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


def placed(optimizer):
    """By parameter: (rate, weight decay)."""
    return {name: (group["lr"], group["weight_decay"]) for group in optimizer.param_groups for name in group["names"]}


def test_a_parameter_belongs_to_the_first_group_that_covers_it_and_keeps_the_network_s_factor_and_decay():
    groups = (Group("*.bias", lr_factor=0.5), Group("slow.*", lr_factor=0.1), Group("*", lr_factor=2.0))
    optimizer = AdamW(weight_decay=0.1, groups=groups).build(Net())
    set_rate(optimizer, 0.6, 0, 1)
    expected = {
        "slow.weight": (0.6 / 3 * 0.1, 0.1),
        "slow.bias": (0.6 / 3 * 0.5, 0.1),
        "fast.weight": (0.6 * 2.0, 0.0),
        "fast.bias": (0.6 * 0.5, 0.0),
    }
    assert placed(optimizer) == {name: pytest.approx(pair) for name, pair in expected.items()}


def test_a_group_warms_up_on_its_own_and_the_others_do_not():
    optimizer = AdamW(groups=(Group("slow.*", lr_factor=0.3, warmup_images=40),)).build(Net())
    for images in range(0, 80, 8):
        set_rate(optimizer, 0.6, images, 8)
        rates = placed(optimizer)
        assert rates["slow.weight"][0] == pytest.approx(0.6 / 3 * 0.3 * min((images + 8) / 40, 1))
        assert rates["fast.weight"][0] == 0.6


def test_a_group_s_warm_up_multiplies_the_schedule_s():
    group, schedule = Group("slow.*", warmup_images=40), Constant(warmup_images=80)
    found = [schedule.factor(i, 1000, 10) * group.warm(i, 10) for i in (0, 10, 30, 40, 70, 80)]
    assert found == pytest.approx([1 / 32, 1 / 8, 1 / 2, 5 / 8, 1, 1])


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ((Group("slo.*"),), r"optimizer\.groups: 'slo\.\*' covers nothing that learns; did you mean 'slow\.\*'\?"),
        ((Group("slow.*"), Group("slow.bias", 0.1)), r"'slow\.bias' covers nothing that learns"),
        ((Group("fast.*"),), r"'fast\.\*' covers nothing that learns; .*its parts are slow"),
    ],
    ids=["no such name", "behind another", "frozen"],
)
def test_a_group_that_covers_nothing_that_learns_is_refused(groups, message):
    net = Net()
    for parameter in net.fast.parameters():
        parameter.requires_grad_(False)
    with pytest.raises(UserError, match=message):
        AdamW(groups=groups).build(net)


def test_what_does_not_learn_is_not_held():
    net = Net()
    net.slow.weight.requires_grad_(False)
    optimizer = AdamW(groups=(Group("slow.*", 0.1),)).build(net)
    assert set(placed(optimizer)) == {"slow.bias", "fast.weight", "fast.bias"}
    steps(net, optimizer, 1)
    assert {name.rpartition(".")[0] for name in state_by_name(optimizer)} == set(placed(optimizer))


@pytest.mark.parametrize("bad", [{"lr_factor": 0.0}, {"lr_factor": -1.0}, {"warmup_images": -1}])
def test_a_senseless_group_is_refused(bad):
    with pytest.raises(ValueError, match=r"Group: needs lr_factor > 0 and warmup_images >= 0.*freeze what must not"):
        Group("slow.*", **bad)


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
