import importlib
import json
from dataclasses import replace

import pytest
import torch

from pixelspace.config import from_data, parse_json, to_data
from pixelspace.recipes import RECIPES
from pixelspace.recipes.values import VALUES
from pixelspace.training.loop import run_recipe


def made(name):
    module, function = RECIPES[name][0].split(":")
    return getattr(importlib.import_module(module), function)()


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_goes_to_json_and_back(name):
    recipe = made(name)
    assert recipe.name == name
    assert from_data(parse_json(json.dumps(to_data(recipe))), VALUES) == recipe


@pytest.mark.parametrize("name", [name for name in RECIPES if name.endswith("-debug")])
def test_a_debug_recipe_trains(name, tmp_path):
    recipe = made(name)
    recipe = replace(recipe, stages=tuple(replace(stage, images=2 * stage.batch) for stage in recipe.stages))
    run_recipe(recipe, tmp_path, device=torch.device("cpu"), progress=False, say=lambda text: None)
    assert len(list(tmp_path.glob("*/checkpoints/step-00000002"))) == len(recipe.stages)


@pytest.mark.parametrize("name", RECIPES)
def test_every_network_of_a_recipe_builds(name):
    for stage in made(name).stages:
        with torch.device("meta"):
            network = stage.backbone.build()
        assert network.units() and stage.backbone.macs(*stage.shape[1:]) > 0


@pytest.mark.parametrize("name", RECIPES)
def test_no_recipe_warns(name):
    assert [stage.warnings for stage in made(name).stages if stage.warnings] == []
