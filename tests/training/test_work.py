import math
from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from pixelspace.data.latents import Latents
from pixelspace.data.loader import read
from pixelspace.growth.freeze import freeze
from pixelspace.recipes import greedy, grown, hdit, maskdit, matryoshka, pyramids, text
from pixelspace.text.pretrained import Pretrained
from pixelspace.training.cost import Machine, cost
from pixelspace.training.ema import Average
from pixelspace.training.inherit import planned
from pixelspace.training.low_memory import AdamW8bit
from pixelspace.training.stage import Recipe
from pixelspace.training.state import State, tensors_of
from pixelspace.training.work import forward_macs, products, reading, sample_bytes, works

RECIPES = [
    hdit.imagenet128_debug,
    text.text_debug,
    maskdit.imagenet256_debug,
    matryoshka.webvid_debug,
    matryoshka.cc12m_frozen_debug,
    greedy.cc12m_512_debug,
    grown.hdit_128_debug,
    pyramids.uvit_256_debug,
]


def work_of_all(recipe):
    return {name: work for name, (work, _) in works(recipe).items()}


@pytest.mark.parametrize("made", RECIPES, ids=lambda made: made.__name__)
def test_what_is_called_and_attention_are_all_the_arithmetic(made):
    recipe = made()
    plans = planned(recipe)
    for stage in recipe.stages:
        called = products(stage, plans[stage.name].network).all
        assert 0.7 * forward_macs(stage) <= called <= forward_macs(stage)


@pytest.mark.parametrize("made", [greedy.cc12m_512_debug, grown.hdit_128_debug], ids=lambda made: made.__name__)
def test_backward_passes_round_a_frozen_core_are_those_that_torch_runs(made):
    recipe = made()
    stage = recipe.stages[1]
    network = stage.backbone.build().double()  # of float32 some products are ours, which the counter does not know
    assert freeze(network, stage.freeze)
    cond = {"label": torch.zeros(1, dtype=torch.int64)}
    if stage.text and stage.backbone.text_widths:
        (tokens, pooled), length = stage.backbone.text_widths, stage.text.length
        mask = torch.ones(1, length, dtype=torch.bool)
        words = {"text": torch.zeros(1, length, tokens), "pooled": torch.zeros(1, pooled)}
        cond |= {name: rows.double() for name, rows in words.items()} | {"text_mask": mask}
    with FlopCounterMode(display=False) as forwards:
        out = network(torch.zeros(1, *stage.shape).double(), torch.zeros(1).double(), cond)
    with FlopCounterMode(display=False) as backwards:
        out.sum().backward()
    work = work_of_all(recipe)[stage.name]
    assert work.backward < 2 * work.forward
    run = backwards.get_total_flops() / forwards.get_total_flops()
    assert work.backward / work.forward == pytest.approx(run, rel=0.05)


def test_a_frozen_core_saves_what_the_recipe_counts_on():
    recipe = greedy.cc12m_512()
    work = work_of_all(recipe)["grow-512"]
    assert work.forward + work.backward == pytest.approx(greedy.step_macs(recipe.stages[1]), rel=0.01)


def test_where_all_learn_training_is_three_forward_passes():
    (stage,) = hdit.imagenet128().stages
    work = work_of_all(hdit.imagenet128())["train"]
    assert work.forward == stage.backbone.macs(128, 128) and work.backward == 2 * work.forward
    assert work.flops(False) == 6 * work.forward and work.flops(True) == 8 * work.forward


def test_work_is_in_the_precision_of_its_products():
    tuned = maskdit.imagenet256_debug().stages[1]
    found = (
        replace(tuned, precision=own, tf32=tf32) for own, tf32 in (("fp32", False), ("fp32", True), ("bf16", True))
    )
    recipes = (Recipe("one", (replace(stage, init=None),)) for stage in found)
    assert [work_of_all(recipe)["tuned"].precision for recipe in recipes] == ["fp32", "tf32", "bf16"]


def test_masked_patches_cost_nothing_and_a_moving_mask_its_mean():
    masked, tuned = maskdit.imagenet256_cosine().stages
    assert forward_macs(masked) == masked.backbone.macs(32, 32, 128)
    counts = [tuned.objective.kept(32, 32, (i + 0.5) / 4000) for i in range(4000)]
    mean = sum(tuned.backbone.macs(32, 32, count) for count in counts) / 4000
    assert forward_macs(tuned) == pytest.approx(mean, rel=1e-3)
    assert forward_macs(masked) < forward_macs(tuned) < tuned.backbone.macs(32, 32)


def test_room_is_planned_for_the_moment_when_a_mask_hides_least():
    (masked, _), (_, whole), (_, falling) = (
        [activations(False)[1] for _, activations in works(recipe).values()]
        for recipe in (maskdit.imagenet256_debug(), maskdit.imagenet256_debug(), maskdit.imagenet256_cosine_debug())
    )
    assert masked < whole <= falling <= 1.3 * whole  # in proportion to arithmetic, of which the decoder hides nothing


@pytest.mark.parametrize("made", [greedy.cc12m_512_debug, hdit.imagenet128_debug], ids=lambda made: made.__name__)
def test_checkpoints_and_state_have_the_bytes_that_are_planned(made):
    recipe = made()
    stage, machine = recipe.stages[-1], Machine(devices=1, memory=1e9, flops=1e12)
    network = stage.backbone.build()
    freeze(network, stage.freeze)
    state = State(network, Average(network), stage.optimizer.build(network))
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    state.optimizer.step()
    parts = tensors_of(state)
    found = {part: sum(one.nbytes for one in tensors.values()) for part, tensors in parts.items()}
    small = 4 * len(parts["optimizer"]) + 2 * sum(one.nbytes for one in network.buffers())  # steps, tables
    work, _ = works(recipe)[stage.name]
    assert work.checkpoint_bytes <= sum(found.values()) <= work.checkpoint_bytes + small
    held = cost(work, machine, lambda checkpointing: (0, 0)).chosen.bytes
    still = sum(one.nbytes for one in network.parameters() if not one.requires_grad)
    gradients = sum(one.grad.nbytes for one in network.parameters() if one.grad is not None)
    real = sum(found.values()) - still + gradients  # the average of what is frozen is the weight itself
    assert held <= real <= held + small


@pytest.mark.parametrize("made", [hdit.imagenet128_debug, matryoshka.webvid_debug], ids=lambda made: made.__name__)
def test_loaders_hand_over_the_bytes_that_are_planned(made):
    stage = made().stages[-1]
    raw = read(stage.data.source.open(), [0, 1], stage.size)
    assert raw.images.nbytes == 2 * sample_bytes(stage)


def test_stages_that_training_shards_not_are_not_sharded_on_paper():
    recipe = hdit.imagenet128_debug()
    (stage,) = recipe.stages
    assert work_of_all(recipe)["train"].shardable
    for own in (
        replace(stage, ema_device="cpu"),
        replace(stage, reduction="exact"),
        replace(stage, optimizer=AdamW8bit()),
    ):
        assert not work_of_all(replace(recipe, stages=(own,)))["train"].shardable


def test_moments_of_8_bits_and_an_average_elsewhere_take_less():
    recipe = greedy.vermeer_8b()
    stage = recipe.stages[0]
    small = replace(stage, optimizer=AdamW8bit(), ema_device="cpu")
    plain, less = (work_of_all(replace(recipe, stages=(one,)))[stage.name] for one in (stage, small))
    assert plain.state_bytes == pytest.approx(20 * plain.parameters, rel=0.01)
    assert less.state_bytes == pytest.approx((4 + 4 + 2) * plain.parameters, rel=0.01)


def test_latents_are_read_as_their_moments():
    stage = maskdit.imagenet256().stages[0]
    assert isinstance(stage.data.source, Latents) and sample_bytes(stage) == 4 * 8 * 32 * 32


def test_what_frozen_encoders_take_is_counted_or_named():
    stage = maskdit.imagenet256().stages[0]
    images = replace(stage, data=hdit.imagenet256().stages[0].data)
    assert "encoding of images (KLVAE" in work_of_all(Recipe("images", (images,)))["masked"].uncounted
    assert work_of_all(Recipe("latents", (stage,)))["masked"].uncounted == ""
    macs, size = reading(Pretrained("google/flan-t5-xl")) or (0, 0)
    # 1.2 billion weights of the encoder in bfloat16, of which tokens pass all but the table
    assert size == pytest.approx(2 * 1.22e9, rel=0.01) and macs == pytest.approx(128 * 1.16e9, rel=0.01)
    assert reading(Pretrained("mine/own")) is None and reading(None) == (0, 0)


def test_what_is_gathered_is_part_of_the_network_and_holds_its_largest_unit():
    recipe = greedy.vermeer_8b()
    (first, *_), network = recipe.stages, planned(recipe)["base-256"].network
    work = work_of_all(replace(recipe, stages=(first,)))[first.name]
    units = [sum(p.numel() for p in unit.parameters()) for unit in network.units()]  # type: ignore[operator]
    assert max(units) < work.gathered < work.parameters / 4
    assert math.isclose(work.parameters, 8.5e9, rel_tol=0.01)
