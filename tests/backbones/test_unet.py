"""What UNets and pyramids of them promise beyond what every backbone does."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from pixelspace.backbones.nested import NestedUNetConfig
from pixelspace.backbones.unet import UNetConfig, UNetText
from pixelspace.backbones.unet_body import Micro, UNetBody, UNetLevel
from pixelspace.errors import UserError
from tests.backbones.cases import (
    CLIP,
    INNERMOST,
    NESTED,
    OUTER,
    PLAIN_UNET,
    SMALL,
    SPACE,
    STILL,
    TIME,
    UNET,
    UVIT,
    conditions,
)
from tests.backbones.test_backbones import awake, first_to_last, given

F64 = {"rtol": 1e-9, "atol": 1e-10}
THREE = NestedUNetConfig(OUTER, NestedUNetConfig(replace(OUTER, micro=()), UNET, normalise=False))
MOTION = NestedUNetConfig(TIME, STILL, frames="time")
NETWORKS = {
    "unet": (UNET, (8, 12)),
    "plain": (PLAIN_UNET, (8, 8)),
    "nested": (NESTED, (8, 16)),
    "three": (THREE, (16, 24)),
    "clip": (CLIP, (16, 8)),
}


def plain_attention(q, k, v, mask=None, scale=1.0):
    """As products that a counter sees."""
    scores = scale * q @ k.transpose(-1, -2)
    return (scores if mask is None else scores + mask).softmax(-1) @ v


@pytest.mark.parametrize(("config", "size"), NETWORKS.values(), ids=NETWORKS)
def test_costs_are_those_a_counter_finds(config, size, monkeypatch):
    monkeypatch.setattr("pixelspace.nn.conv.attend", plain_attention)
    network, (x, c_noise) = config.build().double().eval(), given(config, size, batch=1)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(x, c_noise, conditions(config, 1, torch.float64))
    assert counter.get_total_flops() == 2 * config.macs(*size, tokens=7)


@pytest.mark.parametrize(("config", "size"), [(NESTED, (8, 16)), (THREE, (16, 24)), (CLIP, (16, 8))])
def test_a_fresh_pyramid_leaves_its_inner_network_as_it_is_alone(config, size):
    network, (xs, c_noise), cond = awake(config), given(config, size), conditions(config, 3, torch.float64)
    for adapter in (network.in_adapter, network.out_adapter):
        for parameter in adapter.parameters():
            nn.init.zeros_(parameter)
    _, *inside = network(xs, c_noise, cond)
    alone = network.inner_unet(xs[1:], c_noise, cond)
    assert len(inside) == len(alone) and all(torch.equal(a, b) for a, b in zip(inside, alone, strict=True))

    fresh = config.build()
    assert not any(p.any() for adapter in (fresh.in_adapter, fresh.out_adapter) for p in adapter.parameters())


@pytest.mark.parametrize(("config", "size"), [(NESTED, (8, 16)), (THREE, (16, 24)), (CLIP, (16, 8))])
@pytest.mark.parametrize("present", [0, 1, 2])
def test_a_mixed_batch_is_the_whole_where_all_levels_are_and_else_the_inner_network_alone(config, size, present):
    network, (xs, c_noise), cond = awake(config), given(config, size), conditions(config, 3, torch.float64)
    counts = [present, *range(3 - len(xs) + 2, 4)]
    mixed = network([x[:count] for x, count in zip(xs, counts, strict=True)], c_noise, cond)
    whole = network(xs, c_noise, cond)
    assert [out.shape for out in mixed] == [(count, *x.shape[1:]) for x, count in zip(xs, counts, strict=True)]
    for a, b in zip(mixed, whole, strict=True):
        torch.testing.assert_close(a[:present], b[:present], **F64)
    absent = [x[present:count] for x, count in zip(xs, counts, strict=True)][1:]
    alone = network.inner_unet(absent, c_noise[present:], {key: tensor[present:] for key, tensor in cond.items()})
    for a, b in zip(mixed[1:], alone, strict=True):
        torch.testing.assert_close(a[present:], b, **F64)


def test_a_plain_network_takes_a_list_of_one_and_gives_one():
    network, (x, c_noise), cond = awake(UNET), given(UNET, (4, 6)), conditions(UNET, 3, torch.float64)
    (out,) = network([x], c_noise, cond)
    assert torch.equal(out, network(x, c_noise, cond))


def test_text_and_classes_reach_every_level():
    config = replace(THREE, inner=replace(THREE.inner, inner=replace(UNET, middle=False)))
    config = replace(config, body=SPACE, inner=replace(config.inner, body=SPACE))  # without attention outside
    network, (xs, c_noise), cond = awake(config), given(config, (8, 8)), conditions(config, 3, torch.float64)
    for level in (network, network.inner_unet):
        for adapter in (level.in_adapter, level.out_adapter):
            nn.init.zeros_(adapter.weight)
    before = network(xs, c_noise, cond)
    for key in ("text", "label"):
        after = network(xs, c_noise, {**cond, key: cond[key].roll(1, 0)})
        assert all(not torch.equal(a, b) for a, b in zip(before, after, strict=True)), key


def test_labels_as_rows_are_mixtures_and_zero_rows_are_none():
    network, (x, c_noise), cond = awake(UNET), given(UNET, (4, 6)), conditions(UNET, 3, torch.float64)

    def with_label(label):
        return network(x, c_noise, {**cond, "label": label})

    numbers = torch.tensor([0, 2, 3])
    torch.testing.assert_close(with_label(torch.eye(4, dtype=torch.float64)[numbers]), with_label(numbers))
    none = with_label(torch.tensor([-1, -1, -1]))
    torch.testing.assert_close(with_label(torch.zeros(3, 4, dtype=torch.float64)), none)
    assert not torch.equal(with_label(numbers), none)


def test_padding_is_unseen_where_text_is_masked_and_seen_where_not():
    for masked in (True, False):
        config = replace(UNET, text=replace(UNET.text, depth=0, masked=masked))
        network, (x, c_noise), cond = awake(config), given(config, (4, 6)), conditions(config, 3, torch.float64)
        changed = torch.where(cond["text_mask"][..., None], cond["text"], cond["text"] + 1)
        same = torch.equal(network(x, c_noise, {**cond, "text": changed}), network(x, c_noise, cond))
        assert same == masked
        longer = torch.cat([cond["text"], torch.zeros(3, 2, 6)], 1).double()
        mask = torch.cat([cond["text_mask"], torch.zeros(3, 2, dtype=torch.bool)], 1)
        out = network(x, c_noise, {**cond, "text": longer, "text_mask": mask})
        assert torch.allclose(out, network(x, c_noise, cond), **F64) == masked


def test_without_a_mask_all_are_tokens_and_masks_may_be_numbers():
    network, (x, c_noise), cond = awake(UNET), given(UNET, (4, 6)), conditions(UNET, 3, torch.float64)
    everything = {**cond, "text_mask": torch.ones(3, 7, dtype=torch.bool)}
    without = {key: tensor for key, tensor in cond.items() if key != "text_mask"}
    torch.testing.assert_close(network(x, c_noise, without), network(x, c_noise, everything), **F64)
    as_numbers = {**cond, "text_mask": cond["text_mask"].float()}
    assert torch.equal(network(x, c_noise, as_numbers), network(x, c_noise, cond))


def test_text_that_is_not_pooled_is_met_in_attention_alone():
    config = replace(INNERMOST, text=UNetText(6, masked=True, pooled=False))
    network, (x, c_noise), cond = awake(config), given(config, (4, 4)), conditions(config, 3, torch.float64)
    before = network(x, c_noise, cond)
    assert not torch.equal(network(x, c_noise, {**cond, "text": cond["text"].roll(1, 0)}), before)
    for block in (*network.down_blocks, *network.up_blocks):
        for layer in block.attn:
            nn.init.zeros_(layer.kv_cond.weight)
    same = network(x, c_noise, {**cond, "text": cond["text"].roll(1, 0)})
    assert torch.equal(same, network(x, c_noise, cond)) and network.shared(cond, False).emb is None


def test_micro_conditions_have_defaults_and_scale_ends_there():
    network, (x, c_noise), cond = awake(UNET), given(UNET, (4, 6)), conditions(UNET, 3, torch.float64)

    def with_scale(*scale):
        return network(x, c_noise, {**cond, "scale": torch.tensor(scale, dtype=torch.float64)})

    without = network(x, c_noise, {key: tensor for key, tensor in cond.items() if key != "scale"})
    torch.testing.assert_close(with_scale(64, 64, 64), without, **F64)
    torch.testing.assert_close(with_scale(64, 65, 4096), without, **F64)
    assert not torch.allclose(with_scale(64, 63, 64), without, **F64)
    assert float(Micro("quality", 0.5)(torch.tensor(0.25))) == 250


def test_normalised_levels_do_not_see_how_large_their_image_is():
    for config in (NESTED, replace(NESTED, normalise=False)):
        network, (xs, c_noise), cond = awake(config), given(config, (8, 16)), conditions(config, 3, torch.float64)
        larger = network([7 * xs[0], xs[1]], c_noise, cond)
        same = all(torch.allclose(a, b, **F64) for a, b in zip(larger, network(xs, c_noise, cond), strict=True))
        assert same == config.normalise
        moved = network([xs[0] + 1, xs[1]], c_noise, cond)
        assert not torch.allclose(moved[0], network(xs, c_noise, cond)[0], **F64)


def test_frames_of_a_level_in_space_meet_only_further_inside():
    network, (xs, c_noise), cond = awake(CLIP), given(CLIP, (16, 8), 1), conditions(CLIP, 1, torch.float64)
    for parameter in network.in_adapter.parameters():
        nn.init.zeros_(parameter)
    changed = xs[0].clone()
    changed[:, :, :8, 4:] += torch.randn(1, 3, 8, 4)  # the second of 2 x 2 frames, each 8 x 4
    before, after = network(xs, c_noise, cond)[0], network([changed, *xs[1:]], c_noise, cond)[0]
    same = torch.isclose(before, after, **F64)
    assert same[:, :, 8:].all() and same[:, :, :8, :4].all() and not same[:, :, :8, 4:].any()


def test_rotary_embedding_tells_the_order_of_frames():
    for rotary in (False, True):
        network = awake(replace(MOTION, rotary=rotary))
        layer, x = network.down_blocks[0].t_attn[0], torch.randn(8, 32, 4, 4, dtype=torch.float64)
        order = torch.tensor([2, 0, 3, 1])
        shuffled = x.unflatten(0, (2, 4))[:, order].flatten(0, 1)
        expected = layer(x, 4).unflatten(0, (2, 4))[:, order].flatten(0, 1)
        assert torch.allclose(layer(shuffled, 4), expected, **F64) == (not rotary)


def test_checkpointing_reaches_the_networks_inside():
    network, (xs, c_noise) = awake(NESTED).train(), given(NESTED, (8, 16))
    calls = []
    network.inner_unet.down_blocks[0].resnets[0].register_forward_pre_hook(lambda *_: calls.append(1))
    for network.checkpointing in (False, True):
        calls.clear()
        outs = network(xs, c_noise, conditions(NESTED, 3, torch.float64))
        sum(out.square().sum() for out in outs).backward()
        assert len(calls) == 1 + network.checkpointing


def test_vectors_and_classes_do_not_decay():
    decays = {name: group.decay for group in THREE.build().param_groups() for name in group.names}
    assert decays["inner_unet.inner_unet.cond_emb.weight"] and decays["in_adapter.weight"]
    assert not decays["inner_unet.inner_unet.class_emb.weight"] and not decays["norm_out.weight"]


@pytest.mark.parametrize(
    ("config", "multiple", "pyramid"),
    [
        (UNET, 2, (1,)),
        (NESTED, 2, (1, 2)),
        (THREE, 8, (1, 2, 4)),
        (MOTION, 4, (1, 2)),
        (NestedUNetConfig(replace(TIME, levels=(UNetLevel(8),) * 5), STILL, frames="time"), 4, (1, 4)),
        (NestedUNetConfig(TIME, MOTION, frames="time"), 8, (1, 2, 4)),
        (CLIP, 8, (1, 2, 4)),
    ],
)
def test_valid_sizes_follow_from_grids_and_frames(config, multiple, pyramid):
    assert config.pyramid == pyramid
    config.check_size(multiple, 3 * multiple)
    outs = config.build()([torch.randn(1, 3, multiple // p, 3 * multiple // p) for p in pyramid], *_asked())
    assert [tuple(out.shape[2:]) for out in outs] == [(multiple // p, 3 * multiple // p) for p in pyramid]
    wide, step = (multiple + 1) / config.tiles, multiple // config.tiles
    with pytest.raises(UserError, match=f"width {wide:g}: .* multiple of {step}; .* {step} and"):
        config.check_size(multiple, multiple + 1)


def _asked(count=1):
    return torch.zeros(count), conditions(NESTED, count)


XS = [torch.zeros(2, 3, 8, 8), torch.zeros(2, 3, 4, 4)]


@pytest.mark.parametrize(
    ("xs", "changed", "message"),
    [
        (XS[:1], {}, "expected 2 levels, the finest first, found 1"),
        ([*XS, XS[1]], {}, "expected 2 levels, the finest first, found 3"),
        ([XS[0], XS[0]], {}, "level 1: expected 4x4, found 8x8"),
        ([XS[0], XS[1][:, :1]], {}, r"expected x \(B, 3, H, W\) at level 1, found \(2, 1, 4, 4\)"),
        ([XS[0], XS[1][:1]], {}, "level 1: 1 samples, fewer than the 2 of the finer level"),
        (XS, {"text": None}, r"needs cond\['text'\]"),
        (XS, {"text": torch.zeros(2, 7, 5)}, r"text: expected shape \(2, 7, 6\), found \(2, 7, 5\)"),
        (XS, {"text_mask": torch.ones(2, 6)}, r"text_mask: expected shape \(2, 7\), found \(2, 6\)"),
        (XS, {"quality": torch.ones(2, 1)}, r"quality: expected shape \(2,\), found \(2, 1\)"),
        (XS, {"c_noise": torch.zeros(())}, r"c_noise: expected shape \(2,\), found \(\)"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(xs, changed, message):
    c_noise, cond = _asked(2)
    cond = {key: tensor for key, tensor in {**cond, **changed}.items() if tensor is not None}
    with pytest.raises(UserError, match=message):
        NESTED.build()(xs, cond.pop("c_noise", c_noise), cond)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: UNetBody(()), "levels is empty"),
        (lambda: UNetBody((UNetLevel(48),)), "width 48 is not a multiple of groups 32"),
        (
            lambda: UNetBody((UNetLevel(36, attention=1),), groups=4),
            "attention of width 36 needs a multiple of heads 8",
        ),
        (lambda: UNetBody((UNetLevel(8, temporal=1),), groups=4), "needs a multiple of 32, found 8"),
        (lambda: UNetBody((UNetLevel(32),), time_width=20), "multiple of 8, found 20; set time_width"),
        (lambda: UNetBody((UNetLevel(32),), micro=(Micro("scale", 1.0), Micro("scale", 2.0))), "names one twice"),
        (lambda: Micro("text", 1.0), "'text' cannot name a number"),
        (lambda: Micro("scale", 0.0), "default of scale must be positive"),
        (lambda: UNetConfig(UNetBody((UNetLevel(8),), groups=8)), "attention of width 8"),
        (lambda: UNetConfig(UNetBody((UNetLevel(32, temporal=1),))), "temporal layers belong to"),
        (lambda: UNetText(20, depth=1), "width 20 is not a multiple of heads 8"),
        (lambda: NestedUNetConfig(OUTER, PLAIN_UNET), "3 channels round an inner network of 1"),
        (lambda: NestedUNetConfig(replace(OUTER, time_width=32), INNERMOST), "found 32 round 16: set time_width"),
        (lambda: NestedUNetConfig(TIME, STILL), "temporal layers need frames='time'"),
        (lambda: NestedUNetConfig(SPACE, STILL, frames="time"), "needs 3, 5, 7"),
        (lambda: NestedUNetConfig(TIME, NESTED, frames="time"), "no level inside it that is not of time"),
        (lambda: NestedUNetConfig(SPACE, STILL, frames="space"), "needs an inner network with frames='time'"),
        (lambda: NestedUNetConfig(replace(OUTER, levels=OUTER.levels[1:]), INNERMOST, frames="time"), "attend to text"),
    ],
)
def test_senseless_networks_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_fresh_network_starts_from_the_original_s_zeros():
    """Besides conv_out, which the suite of all backbones sees: every block, and what micro-conditions add."""
    body = UNetBody((UNetLevel(8, 1, attention=1),), **SMALL, ffn=True, micro=(Micro("scale", 64.0),))
    network = UNetConfig(body, text=UNetText(8, depth=1, heads=2)).build()
    zero = {name.removesuffix(".weight") for name, p in network.named_parameters() if p.ndim > 1 and not p.any()}
    blocks = ("down_blocks.0", "mid_blocks.0", "mid_blocks.1", "up_blocks.0")
    resnets = {f"{block}.resnets.{r}.conv2" for block in blocks for r in range(1 + (block == "up_blocks.0"))}
    attentions = {f"{b}.attn.{i}.{last}" for b in blocks for i in range(2) for last in ("proj_out", "ffn.3")}
    attentions -= {name for name in attentions if ".1." in name and not name.startswith("up")}
    attentions -= {name for name in attentions if name.startswith("mid_blocks.1")}
    text = {"lm_head.0.attn.proj_out", "lm_head.0.mlp.main.3"}
    assert zero == resnets | attentions | text | {"conv_out", "cond_layers.scale.1"}


@pytest.mark.parametrize(("config", "size"), [(UNET, (8, 12)), (THREE, (16, 24)), (UVIT, (16, 24))])
def test_channels_last_reach_every_convolution_and_change_no_number(config, size, monkeypatch):
    network, (x, c_noise), cond = awake(config), given(config, size), conditions(config, 3, torch.float64)
    expected = first_to_last(network(x, c_noise, cond))
    monkeypatch.setattr("pixelspace.nn.layout.PLACES_ON_CPU", 1)
    entered = {}
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d) and not name.endswith(("conv_in", "patch")):
            module.register_forward_pre_hook(lambda module, x, name=name: entered.update({name: x[0]}))
    torch.testing.assert_close(first_to_last(network(x, c_noise, cond)), expected, **F64)
    assert entered and all(x.is_contiguous(memory_format=torch.channels_last) for x in entered.values())
