"""What the words of a command name: a recipe, a model, a folder to keep things in."""

import importlib
import importlib.util
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import UseAppendAction, arg

from pixelspace.errors import UserError
from pixelspace.recipes import RECIPES

if TYPE_CHECKING:
    from pixelspace.training.stage import Recipe

Settings = Annotated[tuple[tuple[str, ...], ...], UseAppendAction, arg(name="set", metavar="PATH=VALUE")]


def cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pixelspace"


def _function(target: str) -> Callable[[], Any]:
    name, _, function = target.rpartition(":")
    if name.endswith(".py"):
        path = Path(name)
        if not path.is_file():
            raise UserError(f"{path}: no such file")
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    else:
        module = importlib.import_module(name)
    made = getattr(module, function, None)
    if not callable(made):
        raise UserError(f"{name}: has no function {function!r} that makes a recipe")
    return made


def _judged(recipe: "Recipe", protocols: tuple[str, ...], every_images: int | None) -> "Recipe":
    from pixelspace.evaluation.monitor import Monitor
    from pixelspace.evaluation.protocols import Questions, of_name

    chosen = []
    for protocol in map(of_name, protocols):
        if isinstance(protocol, Questions):
            raise UserError(f"--judge: {protocol.name} asks about images of prompts, which training does not make")
        chosen.append(protocol)

    def judged(stage: Any) -> Any:
        every = stage.sample_images if every_images is None else every_images
        others = tuple(one for one in stage.evaluators if one.name not in protocols)
        return replace(stage, evaluators=others + tuple(Monitor(protocol, every) for protocol in chosen))

    return replace(recipe, stages=tuple(map(judged, recipe.stages)))


def _recipe(name: str, described: Any) -> "Recipe":
    from pixelspace.config import from_data
    from pixelspace.recipes.values import VALUES
    from pixelspace.training.stage import Recipe

    recipe = from_data(described, VALUES)
    if not isinstance(recipe, Recipe):
        raise UserError(f"{name}: expected a Recipe, found {type(recipe).__name__}")
    return recipe


def recipe_of(
    name: str,
    data: str | Path | None = None,
    settings: tuple[tuple[str, ...], ...] = (),
    judge: tuple[str, ...] = (),
    judge_images: int | None = None,
    text: str | None = None,
) -> "Recipe":
    from pixelspace.config import from_data, nearest, override, read_json, to_data

    changed = bool(settings or judge) or not (data is None and text is None and judge_images is None)
    if name in RECIPES and not changed:  # as it is, without loading every other value there is
        return _function(RECIPES[name][0])()
    from pixelspace.recipes.values import VALUES

    path = Path(name)
    if name in RECIPES:
        described = to_data(_function(RECIPES[name][0])())
    elif (path / "recipe.json").is_file():
        described = read_json(path / "recipe.json")
    elif path.suffix == ".json":
        described = read_json(path)
    elif ".py:" in name:
        described = to_data(_function(name)())
    else:
        raise UserError(f"no recipe {name!r} (nor a run, recipe.json or file.py:function); {nearest(name, RECIPES)}")
    # First, so that what they put there can be set.
    if text is not None or data is not None:
        recipe = _recipe(name, described)
        recipe = recipe if text is None else _read_by(recipe, text)
        stages = recipe.stages if data is None else tuple(_with_data(stage, str(data)) for stage in recipe.stages)
        described = to_data(replace(recipe, stages=stages))
    flat = [setting for group in settings for setting in group]
    # What judges is there to be set only once --judge has put it there.
    late = [setting for setting in flat if judge and "evaluators" in setting.partition("=")[0].split(".")]
    for setting in flat:
        described = described if setting in late else override(described, setting)
    recipe = _recipe(name, described)
    if judge:
        described = to_data(_judged(recipe, judge, judge_images))
        for setting in late:
            described = override(described, setting)
        recipe = from_data(described, VALUES)
    elif judge_images is not None:
        raise UserError("--judge-images: name a protocol by --judge, too")
    return recipe


def _read_by(recipe: "Recipe", word: str) -> "Recipe":
    from pixelspace.text.named import encoder_of

    if all(stage.text is None for stage in recipe.stages):
        raise UserError(f"--text: no network of {recipe.name} reads text; leave it out")
    encoder = encoder_of(word)
    stages = (stage if stage.text is None else replace(stage, text=encoder) for stage in recipe.stages)
    return replace(recipe, stages=tuple(stages))


def _with_data(stage: Any, path: str) -> Any:
    from pixelspace.data.clips import Clips
    from pixelspace.data.detect import source_of
    from pixelspace.data.remote import is_url

    own = stage.data.source
    if isinstance(own, Clips) and not is_url(path):  # how many frames is the network's to say
        return replace(stage, data=replace(stage.data, source=replace(own, path=str(Path(path).resolve()))))
    source = source_of(path if is_url(path) else str(Path(path).resolve()))
    return replace(stage, data=replace(stage.data, source=source))


def weights_folder() -> Path:
    """Where the networks that judge images are looked for."""
    return Path(os.environ.get("PIXELSPACE_WEIGHTS") or cache_folder() / "weights")
