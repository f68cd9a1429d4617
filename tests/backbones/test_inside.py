"""What transformers promise as the innermost network of a pyramid."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from pixelspace.backbones.hdit import Global, Level
from pixelspace.backbones.nested import NestedUNetConfig
from pixelspace.backbones.unet_body import Micro
from pixelspace.errors import UserError
from pixelspace.noise.levels import LogNormal
from pixelspace.noise.process import EDM, Process
from pixelspace.noise.pyramid import Pyramid, join
from pixelspace.noise.weighting import SoftMinSNR
from pixelspace.objectives.denoising import Denoising
from pixelspace.objectives.nested import NestedDenoising
from pixelspace.sampling.denoiser import denoiser
from pixelspace.sampling.pyramid import Packing
from pixelspace.types import Batch, Draw
from tests.backbones.cases import (
    NESTED,
    OUTER,
    PLAIN,
    ROUND_HDIT,
    ROUND_SHALLOW,
    ROUND_UVIT,
    SHALLOW,
    SPACE,
    TIME,
    conditions,
)
from tests.backbones.test_backbones import awake, given
from tests.backbones.test_unet import plain_attention

F64 = {"rtol": 1e-9, "atol": 1e-10}
GLOBAL = replace(ROUND_HDIT.inner, levels=(Level(16, 1, Global(8)), *ROUND_HDIT.inner.levels[1:]))
ROUND = {
    "hdit": (ROUND_HDIT, (16, 32)),
    "uvit": (ROUND_UVIT, (32, 48)),
    "shallow": (ROUND_SHALLOW, (8, 8)),
    "three-levels": (NestedUNetConfig(SPACE, NestedUNetConfig(OUTER, GLOBAL)), (32, 64)),
    "clip": (NestedUNetConfig(SPACE, NestedUNetConfig(TIME, SHALLOW, frames="time"), frames="space"), (32, 48)),
}
EACH = pytest.mark.parametrize(("config", "size"), ROUND.values(), ids=ROUND)


def without_adapters(config):
    """The network with all its weights filled but those between its levels, as in a fresh one."""
    network = awake(config)
    for name, parameter in network.named_parameters():
        if "_adapter." in name:
            nn.init.zeros_(parameter)
    return network


def innermost(network):
    return innermost(network.inner_unet) if hasattr(network, "inner_unet") else network


@EACH
def test_in_a_fresh_pyramid_a_transformer_is_what_it_is_alone(config, size):
    assert not any(p.any() for name, p in config.build().named_parameters() if "_adapter." in name)
    network, (xs, c_noise), cond = without_adapters(config), given(config, size), conditions(config, 3, torch.float64)
    assert torch.equal(network(xs, c_noise, cond)[-1], innermost(network)(xs[-1], c_noise, cond))


@EACH
def test_what_it_is_told_reaches_the_finer_levels_through_its_features_and_not_otherwise(config, size):
    for network in (awake(config), without_adapters(config)):
        (xs, c_noise), cond = given(config, size), conditions(config, 3, torch.float64)
        before = network(xs, c_noise, cond)
        for key in innermost(network).takes:
            *finer, own = network(xs, c_noise, {**cond, key: cond[key].roll(1, 0)})
            assert not torch.equal(own, before[-1]), key
            told = [not torch.equal(a, b) for a, b in zip(finer, before[:-1], strict=True)]
            assert set(told) == {bool(network.out_adapter.weight.any())}, key


@EACH
@pytest.mark.parametrize("present", [0, 2])
def test_of_a_mixed_batch_what_has_no_finer_level_is_denoised_alone(config, size, present):
    network, (xs, c_noise), cond = awake(config), given(config, size), conditions(config, 3, torch.float64)
    mixed = network([*(x[:present] for x in xs[:-1]), xs[-1]], c_noise, cond)
    whole, alone = network(xs, c_noise, cond), innermost(network)(xs[-1], c_noise, cond)
    for a, b in zip(mixed, whole, strict=True):
        torch.testing.assert_close(a[:present], b[:present], **F64)
    torch.testing.assert_close(mixed[-1][present:], alone[present:], **F64)
    assert not torch.allclose(whole[-1], alone, **F64)


@EACH
def test_costs_are_those_a_counter_finds(config, size, monkeypatch):
    """With global attention, whose products a counter sees."""
    for module in ("nn.conv", "nn.attention", "nn.text", "backbones.uvit"):
        monkeypatch.setattr(f"pixelspace.{module}.attend", plain_attention)
    config = replace(config, inner=GLOBAL) if config is ROUND_HDIT else config
    network, (xs, c_noise) = config.build().double().eval(), given(config, size, batch=1)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(xs, c_noise, conditions(config, 1, torch.float64))
    assert counter.get_total_flops() == 2 * config.macs(*size, tokens=7)


@EACH
def test_checkpointing_reaches_it(config, size):
    network, (xs, c_noise), calls = awake(config).train(), given(config, size), []
    innermost(network).units()[0].register_forward_pre_hook(lambda *_: calls.append(1))
    for network.checkpointing in (False, True):
        calls.clear()
        outs = network(xs, c_noise, conditions(config, 3, torch.float64))
        sum(out.square().sum() for out in outs).backward()
        assert len(calls) == 1 + network.checkpointing
        with torch.no_grad():
            network(xs, c_noise, conditions(config, 3, torch.float64))
        assert len(calls) == 2 + network.checkpointing


@EACH
def test_each_network_s_parameters_learn_as_they_do_without_the_other(config, size):
    network = config.build()
    ways = {name: group[1:] for group in network.param_groups() for name in group.names}
    inner = {name: group[1:] for group in network.inner_unet.param_groups() for name in group.names}
    assert {name: ways[f"inner_unet.{name}"] for name in inner} == inner
    own = ways.keys() - {f"inner_unet.{name}" for name in inner}
    assert {name: ways[name] for name in own} == {name: (1.0, network.get_parameter(name).ndim > 1) for name in own}
    factors = {factor for factor, _ in ways.values()}
    assert factors == ({1.0, 1 / 3} if hasattr(innermost(network), "mapping") else {1.0})


def test_positions_keep_their_grids_inside():
    assert ROUND_UVIT.positions == {"inner_unet.core.position": (2, 3)} and not ROUND_HDIT.positions


@pytest.mark.parametrize(
    ("config", "size", "message"),
    [
        (ROUND_HDIT, (20, 32), "image height 20: this network needs a multiple of 8; .* 16 and 24"),
        (ROUND_HDIT, (8, 32), r"pyramid of \(1, 2\) for 8x32: inside, image height 4: .* at least 8"),
        (ROUND_UVIT, (32, 40), "image width 40: this network needs a multiple of 16; .* 32 and 48"),
        (ROUND_UVIT, (32, 32), r"pyramid of \(1, 2\) for 32x32: inside, image width 16: .* width must be 24"),
        (ROUND_SHALLOW, (8, 12), "image width 12: this network needs a multiple of 8; .* 8 and 16"),
    ],
)
def test_sizes_that_it_cannot_hold_are_refused(config, size, message):
    with pytest.raises(UserError, match=message):
        config.check_size(*size)


def test_patches_that_are_not_square_do_not_fit_inside():
    with pytest.raises(ValueError, match="a HDiTConfig cannot be inner"):
        NestedUNetConfig(replace(OUTER, channels=1), PLAIN)
    with pytest.raises(ValueError, match="'size' cannot name a number"):
        Micro("size", 1.0)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"text_mask": None}, r"needs cond\['text_mask'\]"),
        ({"mapping": None}, r"needs cond\['mapping'\]"),
        ({"pooled": torch.zeros(2, 4)}, r"pooled: expected shape \(2, 5\), found \(2, 4\)"),
        ({"aug": torch.zeros(1, 9)}, r"aug: expected shape \(2, 9\), found \(1, 9\)"),
        ({"size": torch.zeros(2)}, r"size: expected shape \(2, 2\), found \(2,\)"),
        ({"mapping": torch.zeros(3, 5)}, r"mapping: expected shape \(2, 5\), found \(3, 5\)"),
    ],
)
def test_conditions_that_do_not_fit_are_refused(changed, message):
    cond = {**conditions(ROUND_HDIT, 2), **changed}
    cond = {key: tensor for key, tensor in cond.items() if tensor is not None}
    with pytest.raises(UserError, match=message):
        ROUND_HDIT.build()([torch.zeros(2, 3, 16, 16), torch.zeros(2, 3, 8, 8)], torch.zeros(2), cond)


@pytest.mark.parametrize("power", [0.0, 1.0, 2.0])
def test_a_hourglass_is_asked_in_a_fresh_pyramid_just_as_it_was_alone(power):
    """With one clock for all levels and the levels of sigma that it was trained at: loss and estimate are its own."""
    process, levels, pyramid = Process(EDM(0.5)), LogNormal(-1.2, 1.2), Pyramid((1, 2), power=power)
    network, cond = without_adapters(ROUND_HDIT), conditions(ROUND_HDIT, 3, torch.float64)
    x0 = torch.randn(3, 3, 16, 32, dtype=torch.float64)
    noises = [torch.randn_like(level) for level in pyramid.pool(x0)]
    sigma = levels(torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64))
    batch = Batch(x0, cond, torch.arange(3))

    nested = NestedDenoising(process, levels, SoftMinSNR(), pyramid, weights=(0.0, 1.0))
    found = nested.loss(network, batch, Draw(sigma, join(noises)))
    small = replace(batch, x=pyramid.pool(x0)[1])
    expected = Denoising(process, levels, SoftMinSNR()).loss(network.inner_unet, small, Draw(sigma, noises[1]))
    torch.testing.assert_close(found, expected, **F64)

    packing = Packing(pyramid, (3, 16, 32))
    noisy = [torch.randn_like(noise) for noise in noises]
    denoised = packing.unpack(packing.denoiser(network, process, cond)(packing.pack(noisy), sigma))
    alone = denoiser(network.inner_unet, process, cond)(noisy[1], sigma)
    torch.testing.assert_close(denoised[1], alone, **F64)
    assert not torch.allclose(alone, noisy[1], rtol=0.1)


def test_a_unit_of_noise_levels_is_what_c_noise_is_multiplied_by():
    plain, finer = awake(NESTED), replace(NESTED, body=replace(OUTER, noise_unit=256.0)).build().double().eval()
    finer.load_state_dict(plain.state_dict())
    (_, c_noise), cond = given(NESTED, (8, 16)), conditions(NESTED, 3, torch.float64)
    none = plain.shared(cond, False)
    torch.testing.assert_close(
        finer.given(c_noise, cond, none, 3).emb, plain.given(256 * c_noise, cond, none, 3).emb, **F64
    )
