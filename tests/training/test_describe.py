from dataclasses import replace

import pytest
import torch

from pixelspace.backbones.uvit import CoreConfig, UViTConfig
from pixelspace.errors import UserError
from pixelspace.growth.freeze import freeze
from pixelspace.growth.transfer import Rule
from pixelspace.noise.clock import TableIndex
from pixelspace.noise.process import VPV, Process
from pixelspace.noise.tables import LinearBeta
from pixelspace.recipes.hdit import demo, ffhq1024
from pixelspace.recipes.maskdit import imagenet256_debug
from pixelspace.training.describe import describe
from pixelspace.training.memory import activation_bytes
from pixelspace.training.stage import Inherit, Recipe
from pixelspace.types import Batch, Draw

WEIGHTS = "training: weights, gradients, moments, EMA"


def saved_bytes(stage, batch):
    """What autograd really saves."""
    network, kept = stage.backbone.build(), {}
    network.checkpointing = stage.checkpointing
    freeze(network, stage.freeze)

    def note(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        alive.append(tensor)
        return tensor

    alive = []
    own = {parameter.untyped_storage().data_ptr() for parameter in network.parameters()}
    x = torch.randn(batch, 3, *stage.size)
    enabled = stage.precision == "bf16"
    with (
        torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=enabled),
    ):
        label = torch.zeros(batch, dtype=torch.int64)
        stage.objective.loss(network, Batch(x, {"label": label}, torch.arange(batch)), Draw(torch.ones(batch), x))
    return sum(size for pointer, size in kept.items() if pointer not in own)


def test_predicted_activations_are_what_autograd_saves(tiny):
    (stage,) = tiny.stages
    (bf16,) = demo().stages
    for one in (stage, bf16, replace(bf16, precision="fp32")):
        measured = saved_bytes(one, 2)
        assert abs(activation_bytes(one, 2) - measured) <= 0.1 * measured


def test_a_table_that_is_first_read_while_memory_is_predicted_is_a_real_one_after(tiny):
    (stage,) = tiny.stages
    process = Process(VPV(), clock=TableIndex(LinearBeta(37)))  # a table that nothing else has
    activation_bytes(replace(stage, objective=replace(stage.objective, process=process)))
    assert type(process.c_noise(torch.ones(1))) is torch.Tensor


@pytest.fixture
def grown(tiny):
    """A UViT round a frozen core, by class."""
    (stage,) = tiny.stages
    core = CoreConfig(64, 3, 16, (4, 4), cond_width=64, num_classes=8)
    return replace(
        stage,
        backbone=UViTConfig(core, (16, 32), patch=2, seam="affine"),
        size=(32, 32),
        precision="fp32",
        freeze=("core.*", "embed.*"),
    )


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_predicted_activations_know_what_is_frozen_and_what_is_computed_again(grown, precision, checkpointing):
    one = replace(grown, precision=precision, checkpointing=checkpointing)
    measured = saved_bytes(one, 2)
    assert abs(activation_bytes(one, 2) - measured) <= 0.01 * measured
    assert measured < saved_bytes(replace(one, freeze=()), 2)


def test_frozen_linear_maps_save_no_input(grown):
    """Those are, of D numbers a token: two after norms, one after attention, and the hidden ones before and after the
    condition scales them, which itself needs no gradient then; and all that the embedding computes."""
    batch, core = 2, grown.backbone.core
    blocks = core.depth * batch * 16 * core.width * (2 + 1 + 4 + 4)
    embedding = batch * (256 + 3 * core.cond_width)
    more = saved_bytes(replace(grown, freeze=()), batch) - saved_bytes(grown, batch)
    assert more == 4 * (blocks + embedding) + 8 * batch  # and the labels


def test_what_is_frozen_is_described_with_its_weights_alone(grown):
    def told(stage):
        lines = describe(Recipe("grown", (stage,))).splitlines()
        return next(line for line in lines if "moments" in line), [line for line in lines if "frozen" in line]

    with torch.device("meta"):
        network = grown.backbone.build()
    still = sum(p.numel() for n, p in network.named_parameters() if n.startswith(("core.", "embed.")))
    count = sum(p.numel() for p in network.parameters())
    assert told(replace(grown, freeze=())) == (f"  {WEIGHTS:<42} {f'{count * 20 / 2**20:.1f} MiB':>15}", [])
    assert told(grown) == (
        f"  {WEIGHTS:<42} {f'{(count * 20 - still * 16) / 2**20:.1f} MiB':>15}",
        [f"  {'frozen: core.*, embed.*':<42} {still:>15,}"],
    )


def numbers(network, names):
    tensors = network.state_dict()
    return sum(tensors[name].numel() for name in names)


def test_what_is_inherited_is_counted_by_tensors_and_their_numbers(grown):
    """Round a finer grid, whose positions are resized; a seam is fresh there, one level of the source unused."""
    core = grown.backbone.core
    fresh = Rule("*", fresh=True)
    rules = Rule("core.position", resize="position"), Rule("core.*"), Rule("embed.*"), fresh
    finer = replace(core, grid=(8, 8))
    heir = replace(
        grown,
        name="finer",
        backbone=UViTConfig(finer, (16,), patch=2, blocks=1, seam="norm"),
        init=Inherit("train", rules),
    )
    with torch.device("meta"):
        source, network = grown.backbone.build(), heir.backbone.build()
    names, theirs = list(network.state_dict()), list(source.state_dict())
    kept = [name for name in names if name.startswith(("core.", "embed.")) and name != "core.position"]
    ours = [name for name in names if not name.startswith(("core.", "embed."))]
    unused = [name for name in theirs if not name.startswith(("core.", "embed."))]
    first, second = describe(Recipe("two", (grown, heir))).split("\nstage ")[1:]
    assert not any(way in first for way in ("inherited", "resized", "fresh", "unused"))
    for what, number in (
        (f"inherited, {len(kept)} tensors", numbers(network, kept)),
        ("resized, 1 tensors", 8 * 8 * core.width),
        (f"fresh, {len(ours)} tensors", numbers(network, ours)),
        (f"unused, {len(unused)} tensors", numbers(source, unused)),
        ("frozen: core.*, embed.*", numbers(network, [*kept, "core.position"])),
    ):
        assert f"  {what:<42} {number:>15,}" in second.splitlines()


def test_tables_that_never_learn_take_their_own_bytes_alone():
    (stage, *_) = imagenet256_debug().stages
    network = stage.backbone.build()
    fixed = sum(p.numel() for p in network.parameters() if not p.requires_grad)
    count = sum(p.numel() for p in network.parameters())
    text = describe(Recipe("masked", (stage,)))
    assert fixed and f"  {WEIGHTS:<42} {f'{(count * 20 - fixed * 16) / 2**20:.1f} MiB':>15}" in text.splitlines()
    assert "frozen" not in text  # it is the network's own way, not the recipe's


def test_stages_are_described_together_as_alone(grown):
    kinds = {
        "whole": {"freeze": ()},
        "bf16": {"precision": "bf16"},
        "again": {"checkpointing": True},
        "same": {},
    }
    stages = tuple(replace(grown, name=name, **changes) for name, changes in kinds.items())
    told = describe(Recipe("all", stages)).split("\n\n")[1:]
    assert told == [describe(Recipe("one", (stage,))).split("\n\n")[1] for stage in stages]


def test_describing_refuses_what_training_would(grown):
    with pytest.raises(UserError, match=r"stage 'train': freeze: 'cor\.\*' covers nothing .* did you mean 'core\.\*'"):
        describe(Recipe("grown", (replace(grown, freeze=("cor.*",)),)))


def test_describing_a_large_model_touches_no_table_of_the_real_one():
    text = describe(ffhq1024())
    assert "85,079,300 parameters" in text and "206.076 GMAC" in text and "GiB" in text
    (stage,) = demo().stages
    with torch.no_grad():
        out = stage.backbone.build()(torch.randn(1, 3, 32, 32), torch.zeros(1), {})
    assert type(out) is torch.Tensor
