from dataclasses import replace

import pytest
import torch
from torch import nn

from pixelspace.errors import UserError
from pixelspace.growth.freeze import freeze
from pixelspace.recipes.greedy import cc12m_512_debug
from pixelspace.training.optim import AdamW
from pixelspace.training.preview import evaluating
from tests.backbones.cases import CORE, MASKDIT, UVIT

KEPT = ("core.*", "embed.*")


def learning(network):
    return {name for name, parameter in network.named_parameters() if parameter.requires_grad}


def covered(name, patterns):
    """The patterns below, by hand."""
    return any(
        {
            "core.*": name.startswith("core."),
            "embed.*": name.startswith("embed."),
            "core.position": name == "core.position",
            "core.blocks.0.*": name.startswith("core.blocks.0."),
            "levels.[01].*": name.startswith(("levels.0.", "levels.1.")),
            "*.weight": name.endswith(".weight"),
        }[pattern]
        for pattern in patterns
    )


@pytest.mark.parametrize(
    "patterns", [KEPT, ("core.position",), ("levels.[01].*",), ("*.weight", "core.*"), ("core.*", "core.blocks.0.*")]
)
def test_what_the_patterns_cover_does_not_learn_and_all_else_does(patterns):
    network = UVIT.build()
    frozen = freeze(network, patterns)
    expected = {name for name, _ in network.named_parameters() if covered(name, patterns)}
    assert set(frozen) == expected and len(frozen) == len(expected)
    assert learning(network) == {name for name, _ in network.named_parameters()} - expected


def test_without_patterns_everything_learns():
    network = UVIT.build()
    assert freeze(network, ()) == () and learning(network) == {name for name, _ in network.named_parameters()}
    assert all(module.training for module in network.modules())


def test_tables_that_never_learn_are_not_counted_as_frozen():
    network = MASKDIT.build()
    assert "pos_embed" not in freeze(network, ("*embed*",)) and "pos_embed" not in learning(network)


def test_frozen_parts_leave_training_mode_and_others_do_not():
    network = UVIT.build()
    freeze(network, ("core.blocks.*",))
    assert not any(module.training for block in network.core.blocks for module in block.modules())
    assert network.training and network.core.training and network.core.norm.training
    assert all(module.training for module in network.levels.modules())


def test_dropout_of_a_frozen_part_is_off_and_stays_off_after_a_look():
    (_, stage) = cc12m_512_debug().stages
    network = replace(UVIT, core=replace(CORE, dropout=0.5)).build()
    for parameter in network.parameters():
        nn.init.normal_(parameter)
    given = torch.randn(2, 12), torch.randn(2, 5, 16), torch.zeros(2, 1, 1, 5)
    x = torch.randn(2, 16, 2, 3)

    def varies():
        return not torch.equal(network.core(x, *given, again=False), network.core(x, *given, again=False))

    assert varies()
    freeze(network, KEPT)
    assert not varies()
    with evaluating(network, network.state_dict(), stage):
        assert not network.training and not varies()
    assert network.training and network.levels.training and not network.core.training and not varies()


def test_buffers_of_a_frozen_part_stay_as_they_are():
    network = nn.ModuleDict({"inner": nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)), "outer": nn.BatchNorm2d(4)})
    freeze(network, ("inner.*",))
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    network["outer"](network["inner"](torch.randn(2, 3, 4, 4)))
    for name, tensor in network.state_dict().items():
        changed = name.startswith("outer.") and name.partition(".")[2] not in ("weight", "bias")
        assert torch.equal(tensor, before[name]) != changed, name


def test_the_optimiser_holds_only_what_learns():
    network = UVIT.build()
    freeze(network, KEPT)
    held = [name for group in AdamW().build(network).param_groups for name in group["names"]]
    assert set(held) == learning(network) and len(held) == len(set(held))
    assert {name.partition(".")[0] for name in held} == {"patch", "levels", "seam", "head"}


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        (
            ("cor.*",),
            r"freeze: 'cor\.\*' covers nothing of the network; did you mean 'core\.\*'\? its parts are core, ",
        ),
        (("core.*", "levels.7.*"), r"freeze: 'levels\.7\.\*' covers nothing .* did you mean 'levels\.[01]\.\*'\?"),
        (("core.positions",), r"did you mean 'core\.position'\?"),
        (("*",), r"freeze: '\*' cover all \d+ parameters; leave some to learn"),
        (("[!c]*", "c*"), r"freeze: '\[!c\]\*', 'c\*' cover all \d+ parameters"),
    ],
)
def test_patterns_that_cover_nothing_or_all_are_refused_and_nothing_is_frozen(patterns, message):
    network = UVIT.build()
    with pytest.raises(UserError, match=message):
        freeze(network, patterns)
    assert learning(network) == {name for name, _ in network.named_parameters()}
    assert all(module.training for module in network.modules())


def test_freezing_all_that_learns_beside_fixed_tables_is_refused():
    with pytest.raises(UserError, match="leave some to learn"):
        freeze(MASKDIT.build(), ("*",))
