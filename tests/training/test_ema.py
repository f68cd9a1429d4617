import pytest
import torch
from torch import nn

from pixelspace.training.ema import EMA, Average


@pytest.mark.parametrize(
    ("key", "ema"),
    [
        ("power0.6667_max0.9999", EMA(0.6667, 0.9999)),
        ("power0.7500_max0.9999", EMA(0.75, 0.9999)),
        ("power1.0000_max1.0", EMA(1.0, 1.0)),
    ],
)
def test_the_warm_up_meets_the_golden(golden, key, ema):
    misc = golden("hdit/misc")
    found = torch.tensor([ema.decay(t) for t in misc["ema/steps"].tolist()], dtype=torch.float64)
    torch.testing.assert_close(found, misc[f"ema/{key}"], rtol=0, atol=1e-9)


def test_the_first_update_copies_and_later_ones_interpolate():
    network, ema = nn.Linear(3, 3), EMA(1.0, 1.0)
    average = Average(network)
    seen = []
    for _ in range(5):
        nn.init.normal_(network.weight)
        seen.append(network.weight.detach().clone())
        average.update(network, ema)
    torch.testing.assert_close(average.tensors["weight"], torch.stack(seen).mean(0))  # power 1: the running mean


def test_buffers_are_copied_and_weights_left_alone():
    network = nn.BatchNorm1d(2)
    average = Average(network)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    network(torch.randn(8, 2))
    average.update(network, EMA())
    assert torch.equal(average.tensors["running_mean"], network.running_mean)
    assert torch.equal(before["weight"], network.weight)


@pytest.mark.parametrize("bad", [(-0.5, 0.9), (0.75, 1.5)])
def test_senseless_averages_are_refused(bad):
    with pytest.raises(ValueError, match="EMA"):
        EMA(*bad)


def test_without_a_warm_up_the_decay_is_constant():
    assert [EMA(0.0, 0.999).decay(t) for t in (0, 1, 10**6)] == [0.999] * 3


def test_a_tensor_that_came_in_later_is_averaged_from_its_birth():
    """With power 1 an average is the plain mean of all it has seen, each tensor's since it came in."""
    network, ema = nn.Linear(3, 2), EMA(1.0, 1.0)
    before = {name: tensor.double() for name, tensor in network.state_dict().items()}
    network.double()
    average = Average(network)
    average.load({"weight": before["weight"]}, 5, {"bias": 5})
    seen: dict[str, list[torch.Tensor]] = {"weight": [before["weight"]] * 5, "bias": []}
    for _ in range(4):
        for name, parameter in network.named_parameters():
            nn.init.normal_(parameter)
            seen[name].append(parameter.detach().clone())
        average.update(network, ema)
        for name, found in average.tensors.items():
            torch.testing.assert_close(found, torch.stack(seen[name]).mean(0), rtol=0, atol=1e-14)
    assert average.updates == 9


def test_all_that_learns_may_have_come_in_later():
    network, ema = nn.Linear(3, 2), EMA(1.0, 1.0)
    network.weight.requires_grad_(False)
    average = Average(network)
    average.load({}, 5, {"bias": 5})
    nn.init.normal_(network.bias)
    average.update(network, ema)
    assert torch.equal(average.tensors["bias"], network.bias)


def test_the_average_of_what_does_not_learn_is_the_weight_itself():
    network = nn.Linear(3, 2)
    network.weight.requires_grad_(False)
    average, own = Average(network), network.weight.clone()
    assert average.tensors["weight"].data_ptr() == network.weight.data_ptr()
    average.load({"weight": torch.zeros(2, 3), "bias": torch.zeros(2)}, 3, {})
    assert torch.equal(network.weight, own) and not average.tensors["bias"].any()
    average.update(network, EMA())
    assert torch.equal(network.weight, own) and torch.equal(average.tensors["weight"], own)


def moved(network, average, ema, steps):
    for i in range(steps):
        for parameter in network.parameters():
            nn.init.normal_(parameter, generator=torch.Generator().manual_seed(i))
        average.update(network, ema)


def test_an_average_on_the_host_has_the_same_bits():
    network, ema = nn.BatchNorm1d(3), EMA(0.75, 0.99)
    here, away = Average(network), Average(network, "cpu")
    for average in (here, away):
        average.load({"weight": torch.ones(3)}, 4, {"bias": 4})
    for steps in (1, 3):
        for average in (here, away):
            moved(network, average, ema, steps)
        assert here.updates == away.updates
        assert here.tensors.keys() == away.tensors.keys()
        for name, tensor in here.tensors.items():
            assert torch.equal(away.tensors[name], tensor), name


def test_an_average_on_the_host_is_of_the_weights_at_its_update():
    """It is averaged later, and the weights have moved on then."""
    network = nn.Linear(2, 2)
    average = Average(network, "cpu")
    then = network.weight.detach().clone()
    average.update(network, EMA())  # the first update copies
    nn.init.zeros_(network.weight)
    assert torch.equal(average.tensors["weight"], then)


@pytest.mark.gpu
def test_an_average_of_a_gpu_lies_on_the_host_and_has_the_bits_of_one_there():
    network, ema = nn.Linear(256, 256).cuda(), EMA()
    average, twin = Average(network, "cpu"), Average(mirror := nn.Linear(256, 256))
    twin.load({name: tensor.cpu() for name, tensor in network.state_dict().items()}, 0, {})
    for _ in range(5):
        with torch.no_grad():
            for parameter, there in zip(network.parameters(), mirror.parameters(), strict=True):
                there.copy_(parameter.normal_())
        average.update(network, ema)
        twin.update(mirror, ema)
    for name, tensor in average.tensors.items():
        assert tensor.device.type == "cpu" and tensor.is_pinned()
        assert torch.equal(tensor, twin.tensors[name])


def test_an_average_on_the_host_goes_on_from_what_was_saved_to_the_same_bits():
    network, ema = nn.Linear(3, 2), EMA()
    whole, before, after = Average(network, "cpu"), Average(network, "cpu"), Average(network, "cpu")
    values = [torch.randn(2, 3, generator=torch.Generator().manual_seed(i)) for i in range(6)]
    for i, value in enumerate(values):
        with torch.no_grad():
            network.weight.copy_(value)
        whole.update(network, ema)
        if i == 3:
            after.load({name: tensor.clone() for name, tensor in before.tensors.items()}, before.updates, before.born)
        (before if i < 3 else after).update(network, ema)
    assert torch.equal(whole.tensors["weight"], after.tensors["weight"])
