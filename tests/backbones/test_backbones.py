"""What must hold for every backbone, whatever it is."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

from pixelspace.errors import UserError
from pixelspace.random import Rng
from tests.backbones.cases import CASES, SLOW_TO_COMPILE, conditions

EACH = pytest.mark.parametrize(("config", "size"), CASES.values(), ids=CASES)


def awake(config, dtype=torch.float64):
    """The network with its zero-initialised weights filled, so that every part has a say."""
    network = config.build().to(dtype).eval()
    for parameter in network.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    return network


def shown(config, size, batch):
    """Half of the patches of each sample, for networks that can do with them."""
    if config.keep_patch is None:
        return {}
    count = size[0] // config.keep_patch[0] * (size[1] // config.keep_patch[1])
    return {"keep": Rng(5).subset("mask", torch.arange(batch), count, count // 2)}


def given(config, size, batch=3, dtype=torch.float64):
    levels = [torch.randn(batch, config.channels, *(n // p for n in size), dtype=dtype) for p in config.pyramid]
    return levels[0] if len(levels) == 1 else levels, torch.randn(batch, dtype=dtype)


def levels_of(x):
    """Of a pyramid all, of an image the one."""
    return [x] if isinstance(x, Tensor) else list(x)


def first_to_last(x):
    """(B, N): all numbers of a sample."""
    return torch.cat([level.flatten(1) for level in levels_of(x)], 1)


def sample(x, i):
    found = [level[i : i + 1] for level in levels_of(x)]
    return found[0] if isinstance(x, Tensor) else found


@EACH
def test_output_has_the_shape_of_the_input(config, size):
    x, c_noise = given(config, size)
    out = awake(config)(x, c_noise, conditions(config, 3, torch.float64))
    assert isinstance(out, Tensor) == isinstance(x, Tensor)
    assert [y.shape for y in levels_of(out)] == [y.shape for y in levels_of(x)]


@EACH
def test_a_fresh_network_says_nothing(config, size):
    x, c_noise = given(config, size, dtype=torch.float32)
    assert not first_to_last(config.build()(x, c_noise, conditions(config, 3))).any()


@EACH
def test_samples_of_a_batch_do_not_see_each_other(config, size):
    network, (x, c_noise), cond = awake(config), given(config, size), conditions(config, 3, torch.float64)
    whole = network(x, c_noise, cond)
    for i in range(3):
        alone = network(sample(x, i), c_noise[i : i + 1], {k: v[i : i + 1] for k, v in cond.items()})
        torch.testing.assert_close(alone, sample(whole, i), rtol=1e-10, atol=1e-12)


@EACH
def test_every_parameter_gets_a_gradient(config, size):
    network, (x, c_noise) = awake(config), given(config, size, batch=6)
    out = network(x, c_noise, conditions(config, 6, torch.float64), **shown(config, size, 6))
    first_to_last(out).square().sum().backward()
    for name, parameter in network.named_parameters():
        if not parameter.requires_grad:
            assert parameter.grad is None
            continue
        assert parameter.grad is not None and parameter.grad.any(), name


@EACH
def test_every_condition_it_takes_matters_and_no_other(config, size):
    network, (x, c_noise), cond = awake(config), given(config, size), conditions(config, 3, torch.float64)
    plain = first_to_last(network(x, c_noise, cond))
    for key, tensor in cond.items():
        changed = network(x, c_noise, {**cond, key: tensor.roll(1, 0) if key != "unknown" else tensor + 1})
        assert torch.equal(first_to_last(changed), plain) == (key not in network.takes), key
    assert not torch.equal(first_to_last(network(x, c_noise + 1, cond)), plain)


@EACH
def test_bfloat16_autocast_is_near_float32(config, size):
    network, (x, c_noise) = awake(config, torch.float32), given(config, size, dtype=torch.float32)
    cond = conditions(config, 3)
    expected = first_to_last(network(x, c_noise, cond))
    with torch.autocast("cpu", torch.bfloat16):
        low = first_to_last(network(x, c_noise, cond)).float()
    assert (low - expected).norm() < 0.1 * expected.norm()


@EACH
def test_it_builds_on_the_meta_device_with_all_parameters_in_groups(config, size):
    with torch.device("meta"):
        network = config.build()
    names = [name for group in network.param_groups() for name in group.names]
    assert sorted(names) == sorted(name for name, parameter in network.named_parameters() if parameter.requires_grad)
    assert network.units()


def kept_bytes(network, call):
    """What autograd keeps for the backward pass of a call, weights not counted, and what it returned."""
    kept = {}

    def note(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        out = call()
    own = {parameter.untyped_storage().data_ptr() for parameter in network.parameters()}
    return sum(tensor.untyped_storage().nbytes() for place, tensor in kept.items() if place not in own), out


@EACH
def test_checkpointing_changes_no_gradient_and_keeps_less(config, size):
    network, (x, c_noise), cond = awake(config), given(config, size), conditions(config, 3, torch.float64)
    network.train()
    found, kept = [], []
    for network.checkpointing in (False, True):
        torch.manual_seed(0)
        network.zero_grad()
        held, out = kept_bytes(network, lambda: network(x, c_noise, cond, **shown(config, size, 3)))
        first_to_last(out).square().sum().backward()
        found.append([parameter.grad.clone() for parameter in network.parameters() if parameter.grad is not None])
        kept.append(held)
    for a, b in zip(*found, strict=True):
        assert torch.equal(a, b)
    assert kept[1] < 0.8 * kept[0]


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW_TO_COMPILE)) for name in CASES]
)
def test_it_compiles_into_one_graph(name):
    config, size = CASES[name]
    network, (x, c_noise), cond = awake(config), given(config, size), conditions(config, 3, torch.float64)
    cond = {key: cond[key] for key in network.takes}
    torch._dynamo.reset()
    compiled = torch.compile(network, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, c_noise, cond), network(x, c_noise, cond), rtol=1e-9, atol=1e-10)
    keep = shown(config, size, 3)
    found, expected = compiled(x, c_noise, cond, **keep), network(x, c_noise, cond, **keep)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)


def twice_as_large(name):
    """A case for images of twice the size."""
    config, size = CASES[name]
    larger = tuple(2 * side for side in size)
    if name == "maskdit":
        config = replace(config, size=larger)
    if name == "uvit":
        config = replace(config, core=replace(config.core, grid=tuple(2 * side for side in config.core.grid)))
    return config, larger


@pytest.mark.parametrize(
    "name", ["maskdit", "nested", *(pytest.param(n, marks=pytest.mark.slow) for n in ("unet", "uvit"))]
)
def test_steps_of_training_share_one_graph_and_a_second_stage_adds_one(name):
    graphs, counted = CompileCounterWithBackend("eager"), []
    torch._dynamo.reset()
    for config, size in (CASES[name], twice_as_large(name)):
        network, cond = awake(config, torch.float32).train(), conditions(config, 3)
        compiled = torch.compile(network, backend=graphs, fullgraph=True, dynamic=False)
        for _ in range(3):
            x, c_noise = given(config, size, dtype=torch.float32)
            out = compiled(x, c_noise, {key: cond[key] for key in network.takes}, **shown(config, size, 3))
            first_to_last(out).square().sum().backward()
        counted.append(graphs.frame_count)
    assert counted == [1, 2]


@EACH
def test_a_wrong_size_is_refused_with_the_next_valid_ones(config, size):
    network, frames = config.build(), config.tiles
    x, _ = given(config, (size[0] + frames, size[1]), 1, torch.float32)
    what, valid = "image" if frames == 1 else "frame", size[0] // frames
    with pytest.raises(UserError, match=rf"{what} height {valid + 1}: .*( |x){valid}( and \d+|x| in )"):
        network(x, torch.zeros(1), conditions(config, 1))
    seven = torch.randn(1, 7, *size)
    with pytest.raises(UserError, match="expected x"):
        network([seven] * len(x) if isinstance(x, list) else seven, torch.zeros(1), conditions(config, 1))


@EACH
def test_patches_that_are_not_kept_are_not_seen(config, size):
    if not (keep := shown(config, size, 3)):
        return
    network, (x, c_noise), cond = awake(config).train(), given(config, size), conditions(config, 3, torch.float64)
    p, q = config.keep_patch
    visible = torch.zeros(3, size[0] // p * (size[1] // q), dtype=torch.bool).scatter(1, keep["keep"], True)
    mask = visible.reshape(3, 1, size[0] // p, size[1] // q).repeat_interleave(p, 2).repeat_interleave(q, 3)
    with_others = torch.where(mask, x, torch.randn_like(x))
    assert not torch.equal(with_others, x)
    torch.testing.assert_close(network(with_others, c_noise, cond, **keep), network(x, c_noise, cond, **keep))


@EACH
def test_the_order_of_what_is_kept_does_not_matter_and_all_is_all(config, size):
    if not (keep := shown(config, size, 3)):
        return
    network, (x, c_noise), cond = awake(config), given(config, size), conditions(config, 3, torch.float64)
    count = 2 * keep["keep"].shape[1]
    found = network(x, c_noise, cond, keep=keep["keep"].flip(1))
    torch.testing.assert_close(found, network(x, c_noise, cond, **keep), rtol=1e-10, atol=1e-12)
    everything = torch.arange(count).expand(3, -1)
    torch.testing.assert_close(network(x, c_noise, cond, keep=everything), network(x, c_noise, cond))
