from itertools import pairwise

import pytest
import torch

from pixelspace.growth.transfer import transfer
from pixelspace.interop.ml_mdm import released
from pixelspace.noise.pyramid import Pyramid
from pixelspace.objectives.nested import NestedDenoising
from pixelspace.random import Rng
from pixelspace.recipes import RECIPES, matryoshka
from pixelspace.training.inherit import planned
from pixelspace.training.words import with_text
from pixelspace.types import Batch
from tests.recipes.test_grown_recipes import filled
from tests.recipes.test_recipes import made

SMALL = [name for name in RECIPES if name.startswith("mdm-") and name.endswith(("-debug", "-emoji"))]

COUNTED = [matryoshka.cc12m, matryoshka.cc12m_paper, matryoshka.imagenet256, matryoshka.own256, matryoshka.webvid]


def parameters(config):
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in config.build().parameters())


def test_cc12m_trains_the_released_networks():
    stages = made("mdm-cc12m").stages
    assert [stage.backbone for stage in stages] == [released(stage.size[0]) for stage in stages]
    for tokens, expected in ((32, [181.97, 294.54, 509.30]), (stages[0].text.length, [192.72, 305.29, 520.04])):
        macs = [stage.backbone.macs(*stage.size, tokens=tokens) for stage in stages]
        assert [round(count / 1e9, 2) for count in macs] == expected


@pytest.mark.parametrize("function", COUNTED, ids=lambda function: function.__name__)
def test_a_recipe_says_how_many_parameters_its_networks_have(function):
    for stage in function().stages:
        assert f"{parameters(stage.backbone):,}" in (function.__doc__ or "")


@pytest.mark.parametrize("name", SMALL)
def test_each_stage_holds_the_whole_network_before_it_and_adds_a_level(name):
    recipe, plans = made(name), planned(made(name))
    for before, stage in pairwise(recipe.stages):
        assert (report := plans[stage.name].report) is not None
        inner = plans[before.name].network.state_dict()
        assert stage.backbone.pyramid[1:] == tuple(stage.backbone.ratio * factor for factor in before.backbone.pyramid)
        assert report.copied == {f"inner_unet.{name}": name for name in inner} and not report.unused
        assert set(report.fresh) == {*plans[stage.name].network.state_dict()} - {*report.copied}
        learnt = [f"inner_unet.{name}" for name, _ in plans[before.name].network.named_parameters()]
        assert sorted(plans[stage.name].frozen) == (sorted(learnt) if stage.freeze else [])


@pytest.mark.parametrize("name", SMALL)
def test_all_stages_name_noise_levels_alike(name):
    recipe = made(name)
    first, *_ = recipe.stages
    for stage in recipe.stages:
        assert (stage.objective.process, stage.objective.levels) == (first.objective.process, first.objective.levels)
        assert stage.sampling.levels == stage.objective.levels


def batch_of(stage, size):
    """Noise by what emoji are called."""
    x = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))
    batch = Batch(x, {}, torch.arange(2))
    return with_text(batch, ["red apple", "grapes"], stage.text.open(torch.device("cpu")))


def test_the_first_stage_learns_what_a_pyramid_of_one_level_does():
    stage = made("mdm-cc12m-debug").stages[0]
    alone = stage.objective
    nested = NestedDenoising(
        alone.process, alone.levels, alone.weighting, Pyramid((1,)), drop_rate=stage.objective.drop_rate
    )
    network, batch = filled(stage.backbone), batch_of(stage, stage.size)
    with torch.no_grad():
        losses = [one.loss(network, batch, one.draw(batch, 2, 0.0, Rng(0))) for one in (alone, nested)]
    assert torch.equal(*losses)


def test_an_inherited_network_draws_as_it_did_alone():
    before, stage = made("mdm-cc12m-debug").stages[:2]
    inner, network = filled(before.backbone), stage.backbone.build().eval()
    transfer(inner.state_dict(), network, stage.init.rules)
    batch, sigma = batch_of(stage, stage.size), torch.tensor([0.2, 3.0])
    levels = stage.objective.pyramid.pool(batch.x)
    inputs, c_noise = stage.objective.pyramid.inputs(stage.objective.process, levels, sigma)
    alone, asked = before.objective.process.inputs(levels[-1], sigma)
    with torch.no_grad():
        found, expected = network(inputs, c_noise, batch.cond)[-1], inner(alone, asked, batch.cond)
    assert torch.equal(found, expected) and found.std() > 0.1


@pytest.mark.parametrize("name", ["mdm-webvid", "mdm-webvid-debug"])
def test_each_stage_of_clips_reads_as_many_frames_as_its_network_holds(name):
    frame, clips, larger = made(name).stages
    ratio = larger.size[0] // clips.size[0]
    assert [stage.backbone.pyramid for stage in (frame, clips, larger)] == [(1,), (1, 4), (1, ratio, 4 * ratio)]
    assert [stage.data.source.frames for stage in (frame, clips, larger)] == [1, 16, 16]
    assert larger.shape[1:] == (4 * larger.size[0], 4 * larger.size[1])
    # A frame is as noisy at both of its levels of 64 px, and at the larger one by the ratio of their sizes.
    assert clips.objective.pyramid.k == (1, 1) and larger.objective.pyramid.k == (ratio**0.5, 1, 1)
