import json
import shutil
from dataclasses import replace

import pytest

from pixelspace.config import from_data, to_data
from pixelspace.errors import UserError
from pixelspace.growth.transfer import Rule
from pixelspace.recipes.values import VALUES
from pixelspace.training.optim import AdamW, Group
from pixelspace.training.run import differences, opened_run
from pixelspace.training.stage import Inherit, Recipe


def test_differences_are_named_by_path(tiny):
    (stage,) = tiny.stages
    other = replace(tiny, stages=(replace(stage, batch=4, optimizer=replace(stage.optimizer, lr=1.0)),))
    assert list(differences(to_data(tiny), to_data(other))) == [
        ("stages.0.batch", 8, 4),
        ("stages.0.optimizer.lr", 5e-4, 1.0),
    ]
    assert list(differences(to_data(tiny), to_data(tiny))) == []


def test_how_a_run_is_watched_may_change_freely(tiny, tmp_path):
    (stage,) = tiny.stages
    with opened_run(tmp_path, replace(tiny, seed=5)):
        pass
    (tmp_path / "00-train" / "checkpoints" / "step-00000001").mkdir(parents=True)  # from here on it matters
    with pytest.raises(UserError, match="seed: 5 -> 0"):
        with opened_run(tmp_path, tiny):
            pass
    shutil.rmtree(tmp_path / "00-train")
    with opened_run(tmp_path, tiny):
        pass
    (tmp_path / "00-train" / "checkpoints" / "step-00000001").mkdir(parents=True)
    watched = replace(stage, log_steps=7, sample_count=9, sampling=replace(stage.sampling, steps=3))
    with opened_run(tmp_path, replace(tiny, stages=(watched,))):
        pass
    with pytest.raises(UserError, match=r"stages\.0\.images: 96 -> 800"):
        with opened_run(tmp_path, replace(tiny, stages=(replace(watched, images=800),))):
            pass


def test_a_setting_that_came_later_was_as_it_is_by_default(tiny, tmp_path):
    (stage,) = tiny.stages
    with opened_run(tmp_path, tiny):
        pass
    (tmp_path / "00-train" / "checkpoints" / "step-00000001").mkdir(parents=True)
    old = json.loads((tmp_path / "recipe.json").read_text())
    for name in ("keep", "split", "order", "window", "buckets"):
        del old["stages"][0]["data"][name]
    del old["stages"][0]["text"], old["stages"][0]["backbone"]["levels"][0]["cross"]
    (tmp_path / "recipe.json").write_text(json.dumps(old))
    by_files = replace(stage, data=replace(stage.data, order="files"))
    with pytest.raises(UserError, match=r"stages\.0\.data\.order: \"uniform\" -> \"files\""):
        with opened_run(tmp_path, replace(tiny, stages=(by_files,))):
            pass
    with opened_run(tmp_path, tiny):
        pass


def begin(run, recipe, *stages):
    """The run of `recipe` with a checkpoint of some of its stages."""
    with opened_run(run, recipe):
        pass
    for name in stages:
        (run / name / "checkpoints" / "step-00000001").mkdir(parents=True)


@pytest.fixture
def pair(tiny):
    (stage,) = tiny.stages
    return replace(tiny, stages=(stage, replace(stage, name="second", init=Inherit("train"))))


def with_second(recipe, **changes):
    first, second = recipe.stages
    return replace(recipe, stages=(first, replace(second, **changes)))


@pytest.mark.parametrize(
    ("changes", "path"),
    [
        ({"freeze": ("mid_level.*",)}, "stages.1.freeze"),
        ({"init": None}, "stages.1.init"),
        ({"init": Inherit("train", weights="raw")}, "stages.1.init.weights"),
        ({"init": Inherit("train", (Rule("*", fresh=True),))}, "stages.1.init.rules.0.fresh"),
        ({"optimizer": AdamW(groups=(Group("*", 0.5),))}, "stages.1.optimizer.groups"),
    ],
)
def test_what_learns_and_where_it_came_from_is_fixed_when_a_stage_has_begun(pair, tmp_path, changes, path):
    begin(tmp_path, pair, "00-train", "01-second")
    before = (tmp_path / "recipe.json").read_bytes()
    with pytest.raises(UserError, match=rf"{path}: .*set them back or start anew with another --out$"):
        with opened_run(tmp_path, with_second(pair, **changes), accept_changes=True):
            pass
    assert (tmp_path / "recipe.json").read_bytes() == before


def test_a_stage_without_a_checkpoint_may_be_planned_anew(pair, tiny, tmp_path):
    begin(tmp_path, pair, "00-train")
    (first,) = tiny.stages
    anew = with_second(pair, freeze=("mid_level.*",), images=800, batch=16, init=Inherit("train", weights="raw"))
    third = replace(first, name="third")
    for recipe in (anew, tiny, replace(pair, stages=(first, third)), replace(pair, stages=(*pair.stages, third)), pair):
        with opened_run(tmp_path, recipe):
            assert json.loads((tmp_path / "recipe.json").read_text()) == json.loads(json.dumps(to_data(recipe)))
    with pytest.raises(UserError, match=r"stages\.0\.images: 96 -> 8\. "):
        with opened_run(tmp_path, replace(anew, stages=(replace(first, images=8), anew.stages[1]))):
            pass
    begin(tmp_path, pair, "01-second")
    for recipe in (anew, tiny, replace(pair, stages=(first, third))):
        with pytest.raises(UserError, match=r"stages\.1"):
            with opened_run(tmp_path, recipe):
                pass


def test_a_later_stage_that_has_begun_is_bound_where_an_earlier_one_is_not(pair, tmp_path):
    begin(tmp_path, pair, "01-second")
    first, second = pair.stages
    with opened_run(tmp_path, replace(pair, stages=(replace(first, images=800), second))):
        pass
    with pytest.raises(UserError, match=r"stages\.1\.images: 96 -> 800"):
        with opened_run(tmp_path, with_second(pair, images=800)):
            pass


def test_recipes_from_before_growth_go_on(pair, tmp_path):
    begin(tmp_path, pair, "00-train", "01-second")
    old = json.loads((tmp_path / "recipe.json").read_text())
    for stage in old["stages"]:
        del stage["freeze"], stage["optimizer"]["groups"], stage["text"]
    for name in ("rules", "match_images"):
        del old["stages"][1]["init"][name]
    (tmp_path / "recipe.json").write_text(json.dumps(old))
    assert from_data(old, VALUES) == pair
    with pytest.raises(UserError, match=r"stages\.1\.freeze: \[\] -> \["):
        with opened_run(tmp_path, with_second(pair, freeze=("mid_level.*",))):
            pass
    with opened_run(tmp_path, pair):
        pass


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "a b"}, "name must be"),
        ({"batch": 0}, "batch must be at least 1"),
        ({"images": 97}, "not a multiple of batch 8; nearest is 96"),
        ({"micro": 3}, r"must be 0 or divide batch 8: one of \[1, 2, 4, 8\]"),
        ({"size": (15, 16)}, "image height 15"),
        ({"log_steps": 0}, "log_steps must be at least 1"),
    ],
)
def test_a_senseless_stage_is_refused(tiny, change, message):
    with pytest.raises(ValueError, match=message):
        replace(tiny.stages[0], **change)


def test_a_recipe_s_stages_have_names_and_ancestors_before_them(tiny):
    (stage,) = tiny.stages
    with pytest.raises(ValueError, match="two stages are called 'train'"):
        Recipe("twice", (stage, stage))
    with pytest.raises(ValueError, match="inherits from 'core', which does not come before it"):
        Recipe("orphan", (replace(stage, init=Inherit("core")),))
    with pytest.raises(ValueError, match="at least one stage"):
        Recipe("empty", ())
