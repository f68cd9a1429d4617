import json
from dataclasses import replace

import torch

from pixelspace.api import open_model
from pixelspace.recipes.greedy import cc12m_512_debug
from pixelspace.training import checkpoint
from pixelspace.training.inherit import Given


def test_weights_from_outside_enter_a_grown_stage_as_those_of_an_earlier_one_do(train, tmp_path):
    recipe = cc12m_512_debug()
    recipe = replace(recipe, stages=tuple(replace(stage, images=stage.batch) for stage in recipe.stages))
    train(recipe, tmp_path / "whole")
    model = open_model(tmp_path / "whole" / "00-core-64", "cpu")
    weights, config = model.backbone.state_dict(), model.config
    given = Given("a core", weights, config.backbone, config.codec, config.process, config.size)
    train(recipe, tmp_path / "given", given=given, first="grow-512")
    runs = [tmp_path / run / "01-grow-512" for run in ("whole", "given")]
    told = [json.loads((run / "transfer.json").read_text()) for run in runs]
    assert [one["source"] for one in told] == ["core-64", "a core"]
    assert told[0]["copied_sha256"] == told[1]["copied_sha256"]
    found = [checkpoint.resume(run / "checkpoints") for run in runs]
    inherited, taken = (one.contents.parts for one in found if one is not None)
    assert all((inherited["model"][name] != fill).any() for name, fill in (("seam.scale", 1), ("seam.shift", 0)))
    for part in ("model", "ema", "optimizer"):
        assert inherited[part].keys() == taken[part].keys()
        assert all(torch.equal(tensor, taken[part][name]) for name, tensor in inherited[part].items()), part
