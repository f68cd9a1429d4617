"""Pyramids round a transformer that was trained alone, at toy size: held still, let go, stopped, drawn from."""

import shutil
from dataclasses import replace

import pytest
import torch

import pixelspace as ps
from pixelspace.nn.weights import digest
from pixelspace.recipes.matryoshka import INNER
from pixelspace.training.optim import state_by_name
from tests.recipes.test_recipes import made
from tests.training.growing import opened, parts_of, trained

FOLDERS = ("00-core-64", "01-grow-256", "02-joint-256")
PYRAMIDS = ("hdit-pyramid-256", "uvit-pyramid-256", "pyramid-emoji")
STEPS = 2


def toy(name):
    """Few steps of a debug recipe, all of whose checkpoints stay."""
    few = {"keep_every": 1, "validate_count": 4, "sample_count": 1}
    stages = made(f"{name}-debug").stages
    stages = (replace(s, images=STEPS * s.batch, save_images=s.batch, **few) for s in stages)
    return replace(made(f"{name}-debug"), stages=tuple(stages))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The captioned one, which nothing interrupted."""
    folder = tmp_path_factory.mktemp("pyramid")
    trained(toy("uvit-pyramid-256"), folder)
    return folder


def inside(tensors):
    return {name.removeprefix("inner_unet."): tensors[name] for name in tensors if name.startswith("inner_unet.")}


@pytest.mark.parametrize("name", PYRAMIDS)
def test_a_transformer_is_asked_inside_what_it_was_asked_alone(name):
    for recipe in (made(name), made(f"{name}-debug")):
        alone, *pyramids = recipe.stages
        for stage in pyramids:
            a, b = alone.objective, stage.objective
            assert (a.process, a.levels, a.weighting, a.drop_rate) == (b.process, b.levels, b.weighting, b.drop_rate)
            assert stage.backbone.inner == alone.backbone and stage.sampling.levels == alone.sampling.levels
            coarsest = (side // stage.backbone.pyramid[-1] for side in stage.size)
            assert (*coarsest,) == alone.size


def test_while_it_is_frozen_a_transformer_stays_as_it_was_and_then_goes_on_with_all_else(whole, tmp_path):
    alone, frozen, joint = (parts_of(whole / name) for name in FOLDERS)
    for part in ("model", "ema"):
        assert digest(inside(frozen[part])) == digest(alone["ema"]) != digest(alone["model"])
    learnt = {key.rpartition(".")[0] for key in frozen["optimizer"]}
    assert learnt == {name for name in frozen["model"] if not name.startswith("inner_unet.")}

    begun = opened(toy("uvit-pyramid-256"), whole, "joint-256", tmp_path).state
    assert digest(begun.network.state_dict()) == digest(frozen["model"])
    assert digest(begun.average.tensors) == digest(frozen["ema"]) and begun.average.updates == STEPS
    assert digest(state_by_name(begun.optimizer)) == digest(frozen["optimizer"])

    moved = [name for name, tensor in inside(joint["model"]).items() if not torch.equal(tensor, alone["ema"][name])]
    assert len(moved) > len(alone["ema"]) / 2  # not all: what lies before zeros has no gradient in the first steps
    assert {key.rpartition(".")[0] for key in joint["optimizer"]} == joint["model"].keys()


@pytest.mark.parametrize("stage", [1, 2])
def test_a_pyramid_that_was_stopped_goes_on_to_the_same_bits(whole, tmp_path, stage):
    for done in FOLDERS[:stage]:
        shutil.copytree(whole / done, tmp_path / done)
    first = f"{FOLDERS[stage]}/checkpoints/step-00000001"
    shutil.copytree(whole / first, tmp_path / first)
    recipe = toy("uvit-pyramid-256")
    said = trained(replace(recipe, stages=recipe.stages[: stage + 1]), tmp_path)
    assert any(
        line.startswith(f"resuming {recipe.stages[stage].name} at {recipe.stages[stage].batch} ") for line in said
    )
    found, expected = (parts_of(run / FOLDERS[stage]) for run in (tmp_path, whole))
    for part in ("model", "ema", "optimizer"):
        assert digest(found[part]) == digest(expected[part])


@pytest.mark.parametrize("sampler", ["dpmpp_3m_sde", "euler_ancestral"])
def test_a_pyramid_draws_what_it_is_told(whole, sampler):
    model = ps.load(whole / FOLDERS[-1], device="cpu")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.backbone.parameters():  # few steps from zeros leave what it is told without effect
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)

    def draw(*texts, guidance=3.0):
        return model.sample(text=texts, guidance=guidance, sampler=sampler, steps=4, progress=False)

    images = draw("a cat", "a dog")
    assert images.shape == (2, 32, 32, 3)
    again = draw("a cat")
    assert (images[:1].int() - again.int()).abs().max() <= 1
    assert not torch.equal(again, draw("a cat", guidance=1.0)) and not torch.equal(again, draw("a red apple"))


def test_the_mapping_network_of_an_hourglass_learns_at_a_third_of_the_rate_inside():
    recipe = toy("hdit-pyramid-256")
    network = recipe.stages[2].backbone.build()
    groups = recipe.stages[2].optimizer.build(network).param_groups
    factors = {name: group["lr_factor"] for group in groups for name in group["names"]}
    slow = {name for name in factors if name.startswith("inner_unet.mapping.") or ".norm.linear." in name}
    assert slow and factors == {name: 1 / 3 if name in slow else 1.0 for name in factors}
    held = {name for group in groups if (group["group"].names,) == INNER for name in group["names"]}
    assert held == {name for name in factors if name.startswith("inner_unet.")}
