import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pixelspace.backbones.hdit import Global, HDiTConfig, Level, Neighborhood
from pixelspace.backbones.uvit import CoreConfig, UViTConfig
from pixelspace.errors import CheckpointError, UserError
from pixelspace.growth.transfer import IDENTITY, Rule, interpolated, transfer
from pixelspace.nn.weights import digest
from tests.backbones.cases import CLS_TOKEN, CORE, SHALLOW, UVIT

CORE_ALONE = (Rule("core.*"), Rule("embed.*"), Rule("*", fresh=True))

THREE = UViTConfig(CORE, (4, 8, 12), patch=1, blocks=1, seam="affine")
FOUR = replace(THREE, widths=(4, 4, 8, 12))
ONE_MORE = (*map(Rule, ("core.*", "embed.*", "seam.*", "levels.[0-2].*")), Rule("*", fresh=True))

NEAR = Neighborhood(8, kernel=3)
COARSE = HDiTConfig((Level(16, 1, NEAR), Level(32, 2, Global(16))), patch=(2, 2), mapping_width=16, num_classes=4)
FINE = replace(COARSE, levels=(Level(8, 1, NEAR), *COARSE.levels))
OUTER = (
    "patch_in",
    "patch_out",
    "out_norm",
    *(f"{part}.0" for part in ("down_levels", "up_levels", "merges", "splits")),
)
OUTWARDS = (
    *(Rule(f"{part}.*", fresh=True) for part in OUTER),
    *(Rule(f"{p}.1.*", prefix=(f"{p}.1.", f"{p}.0.")) for p in ("down_levels", "up_levels", "merges", "splits")),
    Rule("*"),
)

FINER = replace(CLS_TOKEN, size=(2 * CLS_TOKEN.size[0], 2 * CLS_TOKEN.size[1]))
RESIZED = (Rule("*", resize="position"),)

# From, to, by what rules; and by their first parts the names that are then fresh, resized, and unused.
GROWTHS = {
    "shallow-uvit to uvit": (SHALLOW, UVIT, CORE_ALONE, {"patch", "levels", "seam", "head"}, set(), {"shallow"}),
    "uvit to a level more": (THREE, FOUR, ONE_MORE, {"patch", "levels", "head"}, set(), {"patch", "head"}),
    "uvit to another patch": (
        THREE,
        replace(THREE, patch=2),
        (Rule("patch.*", fresh=True), Rule("head.proj.*", fresh=True), Rule("*")),
        {"patch", "head"},
        set(),
        {"patch", "head"},
    ),
    "hdit to a level more": (
        COARSE,
        FINE,
        OUTWARDS,
        {part.partition(".")[0] for part in OUTER},
        set(),
        {"patch_in", "patch_out", "out_norm"},
    ),
    "maskdit to a finer grid": (CLS_TOKEN, FINER, RESIZED, set(), {"pos_embed", "decoder_pos_embed"}, set()),
}


def filled(config, seed):
    """A network of which no weight is as it was initialised."""
    torch.manual_seed(seed)
    network = config.build()
    for tensor in network.state_dict().values():
        nn.init.normal_(tensor)
    return network


def cloned(network):
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def tops(names):
    return {name.partition(".")[0] for name in names}


def grids(old, new):
    return old.positions, new.positions


@pytest.mark.parametrize(("old", "new", "rules", "fresh", "resized", "unused"), GROWTHS.values(), ids=GROWTHS)
def test_growth_accounts_for_every_name_of_both_networks(old, new, rules, fresh, resized, unused):
    source, grown = filled(old, 1), filled(new, 2)
    given, before = cloned(source), cloned(grown)
    report = transfer(source.state_dict(), grown, rules, grids(old, new))
    after = grown.state_dict()
    assert sorted([*report.copied, *report.resized, *report.fresh]) == sorted(after)
    taken = [*report.copied.values(), *report.resized.values()]
    assert sorted([*taken, *report.unused]) == sorted(given)
    assert (tops(report.fresh), tops(report.resized), tops(report.unused)) == (fresh, resized, unused)
    for name, there in report.copied.items():
        assert torch.equal(after[name], given[there]) and not torch.equal(after[name], before[name]), name
    for name in report.fresh:
        assert torch.equal(after[name], before[name]), name
    for name, tensor in source.state_dict().items():
        assert torch.equal(tensor, given[name]), name


@pytest.mark.parametrize(("old", "new", "rules"), [growth[:3] for growth in GROWTHS.values()], ids=GROWTHS)
def test_names_and_shapes_alone_give_the_same_report(old, new, rules):
    with torch.device("meta"):
        source, grown = old.build(), new.build()
    planned = transfer(source.state_dict(), grown, rules, grids(old, new))
    assert planned == transfer(filled(old, 1).state_dict(), filled(new, 2), rules, grids(old, new))


def test_a_core_comes_back_out_of_the_network_that_grew_round_it():
    source, grown, back = filled(SHALLOW, 1), filled(UVIT, 2), filled(SHALLOW, 3)
    transfer(source.state_dict(), grown, CORE_ALONE)
    transfer(grown.state_dict(), back, CORE_ALONE)
    kept = [{n: t for n, t in net.state_dict().items() if not n.startswith("shallow.")} for net in (source, back)]
    assert digest(kept[0]) == digest(kept[1]) and kept[0].keys() > {"core.position", "embed.label.weight"}
    assert digest(source.state_dict()) != digest(back.state_dict())


def test_a_core_does_the_same_in_the_network_that_grew_round_it():
    source, grown = filled(SHALLOW, 1).eval(), filled(UVIT, 2).eval()
    transfer(source.state_dict(), grown, CORE_ALONE)
    emb, words, mask = torch.randn(2, 12), torch.randn(2, 5, 16), torch.zeros(2, 1, 1, 5)
    x = torch.randn(2, 16, 2, 3)
    assert torch.equal(source.core(x, emb, words, mask, again=False), grown.core(x, emb, words, mask, again=False))


def test_a_table_for_a_finer_grid_keeps_the_class_token_and_interpolates_the_rest():
    source, grown = filled(CLS_TOKEN, 1), filled(FINER, 2)
    transfer(source.state_dict(), grown, RESIZED, grids(CLS_TOKEN, FINER))
    old, new = source.pos_embed, grown.pos_embed
    rows, columns = CLS_TOKEN.grid
    assert new.shape[1] == 1 + 4 * rows * columns and torch.equal(new[:, 0], old[:, 0])
    places = new[0, 1:].reshape(2 * rows, 2 * columns, -1)
    torch.testing.assert_close(places, interpolated(old[0, 1:], (rows, columns), (2 * rows, 2 * columns), places.shape))


OTHER_WIDTH = replace(UVIT, core=CoreConfig(8, 2, 8, (2, 3), cond_width=12, text=CORE.text, num_classes=4))
OTHER_GRID = replace(SHALLOW, core=replace(CORE, grid=(4, 6)))
REFUSED = {
    "a rule that covers nothing": (
        (Rule("cor.*"), *CORE_ALONE),
        r"rule 'cor\.\*' covers nothing: no tensor is called so; did you mean 'core\.\*'\? its parts are core, embed, ",
    ),
    "a name that no rule covers": (
        (Rule("core.*"), Rule("embed.*"), Rule("seam.*", fresh=True)),
        r'^patch\.weight: no rule covers it, of \'core\.\*\', .*; add Rule\("patch\.\*"\), or with fresh=True',
    ),
    "no rules": ((), r"no rule covers it, of none"),
    "a rule behind others": (
        (Rule("core.*"), Rule("core.norm.*", fresh=True), *CORE_ALONE[1:]),
        r"rule 'core\.norm\.\*' covers nothing: rules before it cover all its names",
    ),
    "a source that is not there": (
        IDENTITY,
        r"^patch\.weight: rule '\*' asks for 'patch\.weight', which the source lacks; did you mean "
        r"'shallow\.patch\.weight'\? its parts are core, embed, shallow; put Rule\(\"patch\.\*\", fresh=True\) before",
    ),
    "a prefix that the source has not": (
        (Rule("core.*", prefix=("core.", "inner.")), *CORE_ALONE[1:]),
        r"^core\.position: rule 'core\.\*' asks for 'inner\.position', which the source lacks",
    ),
}


@pytest.mark.parametrize(("rules", "message"), REFUSED.values(), ids=REFUSED)
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_rules_that_do_not_fit_are_refused_with_the_name_and_nothing_is_changed(rules, message, device):
    source, grown = filled(SHALLOW, 1), filled(UVIT, 2).to(device)
    before = grown.state_dict() if device == "meta" else cloned(grown)
    with pytest.raises(UserError, match=message):
        transfer(source.state_dict(), grown, rules)
    if device == "cpu":
        assert digest(grown.state_dict()) == digest(before)


@pytest.mark.parametrize(
    ("old", "new", "rules", "message"),
    [
        (
            SHALLOW,
            OTHER_WIDTH,
            CORE_ALONE,
            r"^core\.position: has shape \(2, 3, 8\) here and \(2, 3, 16\) in the source \(core\.position\); "
            r"give it Rule\(\'core\.position\', fresh=True\) before \'core\.\*\'",
        ),
        (
            SHALLOW,
            OTHER_WIDTH,
            (Rule("core.position", fresh=True), *CORE_ALONE),
            r"^core\.blocks\.0\.attn_norm\.weight: has shape \(8,\) here and \(16,\) in the source .*; give it Rule\(",
        ),
        (OTHER_GRID, UVIT, CORE_ALONE, r'^core\.position: has shape \(2, 3, 16\) .*; add resize="position"'),
        (
            OTHER_GRID,
            OTHER_WIDTH,
            (Rule("core.*", resize="position"), *CORE_ALONE[1:]),
            r"^core\.position: a table of shape \(4, 6, 16\) for 4x6 places does not become one of \(2, 3, 8\) for "
            r"2x3; only the grid may differ",
        ),
    ],
    ids=["width", "width of another tensor", "grid without resize", "width beside the grid"],
)
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_another_shape_is_refused_with_the_name_and_nothing_is_changed(old, new, rules, message, device):
    source, grown = filled(old, 1), filled(new, 2).to(device)
    before = grown.state_dict() if device == "meta" else cloned(grown)
    with pytest.raises(UserError, match=message):
        transfer(source.state_dict(), grown, rules, grids(old, new))
    if device == "cpu":
        assert digest(grown.state_dict()) == digest(before)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_weights_that_are_not_finite_are_refused_by_name_and_nothing_is_changed(bad):
    source, grown = filled(SHALLOW, 1), filled(UVIT, 2)
    source.core.norm.bias.data[3] = bad
    before = cloned(grown)
    with pytest.raises(CheckpointError, match=r"core\.norm\.bias holds values that are not finite"):
        transfer(source.state_dict(), grown, CORE_ALONE)
    assert digest(grown.state_dict()) == digest(before)


def test_what_is_not_inherited_may_be_unsound():
    source, grown = filled(SHALLOW, 1), filled(UVIT, 2)
    source.shallow.patch.weight.data.fill_(math.nan)
    assert "shallow.patch.weight" in transfer(source.state_dict(), grown, CORE_ALONE).unused


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"into": ""}, "into is empty"),
        ({"into": "core.*", "prefix": ("inner.", "")}, r"'core\.\*' does not start with 'inner\.'"),
        ({"into": "core.*", "fresh": True, "resize": "position"}, r"'core\.\*' is fresh and comes from nowhere"),
        ({"into": "core.*", "fresh": True, "prefix": ("core.", "")}, r"'core\.\*' is fresh and comes from nowhere"),
    ],
)
def test_a_senseless_rule_is_refused(given, message):
    with pytest.raises(ValueError, match=message):
        Rule(**given)


SIZES = [((6, 8), (12, 24)), ((7, 9), (10, 12)), ((20, 21), (10, 7))]


@pytest.mark.parametrize("size", [(1, 1), (4, 6)])
def test_a_table_for_the_same_grid_is_the_same(size):
    table = torch.randn(2 + size[0] * size[1], 5, dtype=torch.float64)
    torch.testing.assert_close(interpolated(table, size, size, table.shape), table, rtol=0, atol=1e-15)


@pytest.mark.parametrize(("old", "new"), SIZES)
def test_a_table_of_equal_rows_stays_one_and_rows_without_a_place_stay(old, new):
    lead, row = torch.randn(3, 5, dtype=torch.float64), torch.randn(5, dtype=torch.float64)
    table = torch.cat([lead, row.expand(old[0] * old[1], 5)])
    finer = interpolated(table, old, new, (1, 3 + new[0] * new[1], 5))
    assert torch.equal(finer[0, :3], lead)
    torch.testing.assert_close(finer[0, 3:], row.expand(new[0] * new[1], 5), rtol=0, atol=1e-14)


@pytest.mark.parametrize(("old", "new"), SIZES)
def test_a_table_linear_in_each_axis_stays_so_away_from_the_edges(old, new):
    def ramp(size):
        y, x = (((torch.arange(n, dtype=torch.float64) + 0.5) / n) for n in size)
        return torch.stack([y[:, None] + 0 * x, 0 * y[:, None] + x, y[:, None] * x], -1)

    finer = interpolated(ramp(old), old, new, (*new, 3))
    margins = [math.ceil(2 * max(fine / coarse, 1) + 1) for coarse, fine in zip(old, new, strict=True)]
    inside = tuple(slice(margin, -margin) for margin in margins)
    assert finer[inside].numel()
    torch.testing.assert_close(finer[inside], ramp(new)[inside], rtol=0, atol=1e-14)


def test_halving_a_grid_averages_rather_than_picks():
    """Of a checkerboard, every other place would be all of one colour."""
    table = (-1.0) ** torch.arange(16)[:, None] * (-1.0) ** torch.arange(16)
    coarser = interpolated(table[..., None], (16, 16), (8, 8), (8, 8, 1))
    assert coarser[2:-2, 2:-2].abs().max() < 0.02


def test_a_table_in_bfloat16_is_interpolated_in_float32():
    table = torch.randn(24, 5).bfloat16()
    finer = interpolated(table, (4, 6), (8, 12), (96, 5))
    assert finer.dtype == torch.bfloat16
    assert torch.equal(finer, interpolated(table.float(), (4, 6), (8, 12), (96, 5)).bfloat16())


def test_an_independent_bicubic_agrees_in_the_interior():
    """Keys' kernel with a = -1/2, by its definition (Keys 1981, Eq. 15), on one axis."""

    def kernel(s):
        s = s.abs()
        near, far = 1.5 * s**3 - 2.5 * s**2 + 1, -0.5 * s**3 + 2.5 * s**2 - 4 * s + 2
        return torch.where(s < 1, near, torch.where(s < 2, far, torch.zeros_like(s)))

    table = torch.randn(9, 1, 4, dtype=torch.float64)
    places = (torch.arange(18, dtype=torch.float64) + 0.5) / 2 - 0.5
    expected = kernel(places[:, None] - torch.arange(9)) @ table[:, 0]
    found = interpolated(table, (9, 1), (18, 1), (18, 1, 4))[:, 0]
    torch.testing.assert_close(found[4:-4], expected[4:-4], rtol=0, atol=1e-13)
    assert not torch.allclose(found, F.interpolate(table[:, 0].T[None], 18, mode="linear")[0].T)
