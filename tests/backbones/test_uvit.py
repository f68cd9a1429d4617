"""Sizes by formulas written down for simple diffusion's UViT with text, apart from the code; ours pinned beside them.

The formulas know no summary of the text, no seam and no entry of a Shallow-UViT; where a test leaves something out of
ours to compare, it says what.
"""

from collections import Counter
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import nn

from pixelspace.backbones.uvit import Attention, Block, Core, ResBlock, ShallowUViTConfig, UViTConfig
from pixelspace.errors import UserError
from pixelspace.recipes.greedy import SIZES, core, shallow_at_64, uvit_at
from tests.backbones.cases import CASES, CORE, TEXT, UVIT, conditions

E, TEXT_WIDTH, TOKENS, PLACES = 1024, 4096, 128, 16 * 16
LEVELS = {256: (128, 256, 512), 512: (128, 256, 512), 1024: (64, 128, 256, 512)}
PATCH = {256: 2, 512: 4, 1024: 4}
EACH_SIZE = pytest.mark.parametrize("size", SIZES)
NETWORKS = {
    name: CASES[name][0] for name in ("shallow-uvit", "shallow-uvit-plain", "uvit", "uvit-plain")
}  # small enough to run

# Millions of parameters of the core and at 256 px, and 10^9 multiply-accumulates of both, as the formulas give them.
TABLE = {
    "XS": (67, 112, 9, 81),
    "S": (189, 235, 29, 101),
    "M": (403, 450, 68, 140),
    "L": (614, 662, 106, 179),
    "XL": (1210, 1260, 225, 297),
    "2B": (2350, 2400, 462, 535),
    "4B": (4530, 4590, 924, 997),
    "8B": (8460, 8520, 1768, 1841),
}

# Ours: the Shallow-UViT at 64 px, and UViTs at 256, 512 and 1024 px.
COUNTS = {
    "XS": (82_854_400, 112_294_656, 112_303_872, 113_340_544),
    "S": (218_848_000, 235_676_672, 235_685_888, 236_722_560),
    "M": (451_877_888, 451_376_384, 451_385_600, 452_422_272),
    "L": (674_035_840, 663_099_776, 663_108_992, 664_145_664),
    "XL": (1_309_709_824, 1_260_392_192, 1_260_401_408, 1_261_438_080),
    "2B": (2_376_033_280, 2_404_952_320, 2_404_961_536, 2_405_998_208),
    "4B": (4_561_080_832, 4_590_000_896, 4_590_010_112, 4_591_046_784),
    "8B": (8_491_388_928, 8_520_310_016, 8_520_319_232, 8_521_355_904),
}


def transformer_parameters(d):
    """Self-attention, attention to text of the same width, feed-forward, and what the condition does to its hidden
    units; biases and norms last."""
    return (4 + 4 + 8) * d**2 + 8 * d * E + (1 + 1 + 5 + 8 + 6) * d


def residual_parameters(c):
    """Two 3 x 3 convolutions and what the condition does between them; biases and norms last."""
    return 18 * c**2 + 2 * c * E + (2 + 2 + 4) * c


def core_parameters(d, depth):
    return depth * transformer_parameters(d) + PLACES * d


def uvit_parameters(d, depth, side):
    widths = (*LEVELS[side], d)
    noise_level, text = (256 + 1) * E + (E + 1) * E, TEXT_WIDTH * d
    ends = 2 * 3 * PATCH[side] ** 2 * widths[0]
    levels = sum(5 * residual_parameters(c) + 2 * c * inner for c, inner in pairwise(widths))
    return core_parameters(d, depth) + noise_level + text + ends + levels


def core_macs(d, depth):
    alone = 12 * d**2 * PLACES + 2 * PLACES**2 * d
    return depth * (alone + 2 * d**2 * PLACES + 2 * d * d * TOKENS + 2 * PLACES * TOKENS * d)


def uvit_macs(d, depth, side):
    sides = [side // PATCH[side] // 2**i for i in range(len(LEVELS[side]))]
    return core_macs(d, depth) + sum(5 * 18 * c**2 * s**2 for c, s in zip(LEVELS[side], sides, strict=True))


def text_macs(own):
    """Of the text's projection and summary."""
    assert own.text
    return own.text.macs(E, TOKENS)


def on_meta(config):
    with torch.device("meta"):
        return config.build()


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


def near(millions):
    """Within half of the table's last digit, which is the third from a billion on."""
    return pytest.approx(millions, abs=0.5 if millions < 1000 else 5)


@EACH_SIZE
def test_the_formulas_give_their_table(size):
    d, depth, _ = SIZES[size]
    core_millions, millions, core_gmacs, gmacs = TABLE[size]
    assert core_parameters(d, depth) / 1e6 == near(core_millions)
    assert uvit_parameters(d, depth, 256) / 1e6 == near(millions)
    assert (round(core_macs(d, depth) / 1e9), round(uvit_macs(d, depth, 256) / 1e9)) == (core_gmacs, gmacs)


@EACH_SIZE
def test_every_size_has_the_blocks_of_the_formulas_and_our_totals(size):
    d, depth, _ = SIZES[size]
    own = core(size)
    shallow, *uvits = map(on_meta, (shallow_at_64(own), *(uvit_at(side, own) for side in LEVELS)))
    for network in (shallow, *uvits):
        assert [count(block) for block in network.core.blocks] == [transformer_parameters(d)] * depth
        assert count(network.core) == core_parameters(d, depth) + 2 * d  # and its last norm
    for network, widths in zip(uvits, LEVELS.values(), strict=True):
        found = [[count(block) for block in (*level.encoder, *level.decoder)] for level in network.levels]
        assert found == [[residual_parameters(width)] * 5 for width in reversed(widths)]
    width = d if d < 2048 else 512
    assert [count(block) for block in (shallow.shallow.encoder, shallow.shallow.decoder)] == [
        residual_parameters(width)
    ] * 2
    assert tuple(map(count, (shallow, *uvits))) == COUNTS[size]


@EACH_SIZE
def test_every_total_is_within_half_a_percent_of_formula_and_table(size):
    d, depth, _ = SIZES[size]
    for side, found in zip(LEVELS, COUNTS[size][1:], strict=True):
        assert found == pytest.approx(uvit_parameters(d, depth, side), rel=0.005)
    assert COUNTS[size][1] / 1e6 == pytest.approx(TABLE[size][1], rel=0.005)


@pytest.mark.parametrize(("size", "millions"), [("XS", 45), ("8B", 57)])
def test_all_round_the_core_is_45_to_57_million_parameters(size, millions):
    """The summary of the text is left out: the table has none."""
    network = on_meta(uvit_at(256, core(size)))
    summary = count(network.get_submodule("embed.text")) - count(network.get_submodule("embed.text.in_proj"))
    assert (count(network) - count(network.core) - summary) / 1e6 == pytest.approx(millions, abs=1)


@EACH_SIZE
def test_macs_of_the_core_are_the_formula_s_exactly_beside_embedding_and_condition(size):
    d, depth, _ = SIZES[size]
    own = core(size)
    embedding = (256 + E) * E + text_macs(own)
    assert own.macs(TOKENS) - embedding - depth * 8 * d * E == core_macs(d, depth)


def end_macs(side):
    """Of the first and the last map, between patches and the widest grid."""
    return 2 * 3 * PATCH[side] ** 2 * LEVELS[side][0] * (side // PATCH[side]) ** 2


@EACH_SIZE
@pytest.mark.parametrize("side", LEVELS)
def test_macs_are_within_a_percent_of_the_formula(size, side):
    """Left out are what the formula has not: reading the text (projection and summary, 0.1 to 0.4 %), and the first and
    last map, which at patches of 4 are another 0.2 to 0.4 % of the two smallest sizes."""
    d, depth, _ = SIZES[size]
    own, config = core(size), uvit_at(side, core(size))
    found = config.macs(side, side, tokens=TOKENS) - text_macs(own)
    assert found - end_macs(side) == pytest.approx(uvit_macs(d, depth, side), rel=0.01)
    if side == 256:
        assert found == pytest.approx(uvit_macs(d, depth, side), rel=0.01)
        assert text_macs(own) < 0.004 * found


@EACH_SIZE
@pytest.mark.parametrize("side", LEVELS)
def test_macs_beyond_the_formula_are_all_accounted_for(size, side):
    d, depth, _ = SIZES[size]
    own, widths = core(size), (*LEVELS[side], d)
    places = [PLACES * 4**i for i in reversed(range(len(widths)))][1:]  # of the grid inside each level
    between = sum(2 * c * inner * n for (c, inner), n in zip(pairwise(widths), places, strict=True))
    condition = 8 * d * E * depth + sum(5 * 2 * c * E for c in LEVELS[side]) + (256 + E) * E
    more = end_macs(side) + between + condition + text_macs(own)
    assert uvit_at(side, own).macs(side, side, tokens=TOKENS) == uvit_macs(d, depth, side) + more


def counted_macs(network, *given):
    """Of linear maps, convolutions and the two products of attention, as they come by in a forward pass."""
    total = Counter()

    def linear(module, _, out):
        total["linear"] += out.numel() * module.in_features

    def convolution(module, _, out):
        total["convolution"] += out.numel() * module.weight[0].numel()

    def attention(module, inputs, out):
        keys = inputs[1].shape[1] if isinstance(module, Attention) else inputs[0].shape[1]
        total["attention"] += 2 * out.numel() * keys

    for module in network.modules():
        if isinstance(module, nn.Linear):
            module.register_forward_hook(linear)
        elif isinstance(module, nn.Conv2d):
            module.register_forward_hook(convolution)
        elif isinstance(module, Attention) or hasattr(module, "qkv_proj"):
            module.register_forward_hook(attention)
    network(*given)
    assert len(total) == 3
    return total.total()


@pytest.mark.parametrize(
    "config",
    [
        *NETWORKS.values(),
        replace(UVIT, widths=(4, 8, 12), patch=1, blocks=3, seam="norm"),
        UViTConfig(replace(CORE, text=replace(TEXT, depth=0)), (8,), seam="none"),
    ],
    ids=[*NETWORKS, "three-levels", "pooled"],
)
def test_macs_are_those_counted_in_a_forward_pass(config):
    height, width = (tokens * config.token for tokens in config.core.grid)
    x, cond = torch.randn(1, config.channels, height, width), conditions(config, 1)
    tokens = cond["text"].shape[1] if config.core.text else 0
    assert config.macs(height, width, tokens=tokens) == counted_macs(config.build(), x, torch.zeros(1), cond)


@pytest.mark.parametrize(
    ("config", "side"),
    [(shallow_at_64(core("XS")), 64), *((uvit_at(side, core("XS")), side) for side in LEVELS)],
    ids=["shallow", *map(str, LEVELS)],
)
def test_there_is_one_size_and_a_refusal_names_it(config, side):
    config.check_size(side, side)
    for other in (side // 2, side + 1, 2 * side):
        with pytest.raises(UserError, match=rf"^image height {other}: .* height must be {side} in model space"):
            config.check_size(other, side)
        with pytest.raises(UserError, match=rf"^image width {other}: .* width must be {side} in model space"):
            config.check_size(side, other)


def filled(config):
    """In float64, with zero-initialised weights filled, so that every part has a say."""
    network = config.build().double().eval()
    for parameter in network.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    return network


def test_rows_of_classes_are_labels():
    network, x = filled(UVIT), torch.randn(5, 3, 16, 24, dtype=torch.float64)
    cond, c_noise = conditions(UVIT, 5, torch.float64), torch.randn(5, dtype=torch.float64)
    assert cond["label"].tolist() == [-1, 0, 1, 2, 3]
    rows = torch.cat([torch.zeros(1, 4), torch.eye(4)]).double()
    by_label, by_row = (network(x, c_noise, {**cond, "label": label}) for label in (cond["label"], rows))
    torch.testing.assert_close(by_row, by_label, rtol=1e-12, atol=1e-14)
    mixed = network.embed(c_noise, {**cond, "label": rows.mean(0, keepdim=True).expand(5, -1)})[0]
    assert not torch.allclose(mixed, network.embed(c_noise, cond)[0])


@pytest.mark.parametrize("identity", [True, False])
def test_a_fresh_core_is_the_identity_unless_it_is_to_be_a_random_map(identity):
    own = Core(replace(CORE, identity=identity)).double().eval()
    x, emb = torch.randn(3, 16, 2, 3, dtype=torch.float64), torch.randn(2, 3, 12, dtype=torch.float64)
    text, mask = torch.randn(2, 3, 7, 16, dtype=torch.float64), torch.zeros(3, 1, 1, 7, dtype=torch.float64)
    passed = own.norm(x.movedim(1, -1) + own.position).movedim(-1, 1)
    found = [own(x, one, words, mask, again=False) for one in emb for words in text]
    assert [torch.equal(out, passed) for out in found] == [identity] * 4
    assert all(torch.equal(out, found[0]) for out in found) == identity
    parameters = dict(own.named_parameters())
    linear = {name for name in parameters if name.endswith(".weight") and "norm" not in name}
    assert all(parameters[name].any() for name in linear) == (not identity)


@pytest.mark.parametrize("config", NETWORKS.values(), ids=NETWORKS)
def test_units_are_all_blocks_in_their_order_of_use(config):
    network, used = config.build(), []
    blocks = [module for module in network.modules() if isinstance(module, Block | ResBlock)]
    for block in blocks:
        block.register_forward_pre_hook(lambda module, _: used.append(module))
    height, width = (tokens * config.token for tokens in config.core.grid)
    network(torch.randn(1, config.channels, height, width), torch.zeros(1), conditions(config, 1))
    assert used == network.units() and set(used) == set(blocks)


def test_the_shallow_width_is_the_core_s_up_to_2048_unless_given():
    assert [shallow_at_64(core(size)).shallow_width for size in ("XS", "XL", "2B", "8B")] == [512, 1536, 512, 512]
    assert ShallowUViTConfig(core("XS"), width=96).shallow_width == 96
