"""A run's folder: its recipe, who works in it, and what may change when it goes on."""

import dataclasses
import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pixelspace.config import read_json, to_data
from pixelspace.errors import ResourceError, UserError
from pixelspace.training.stage import Recipe

# Settings that change how a run is watched or computed, not what is learnt.
FREE = frozenset(
    "workers micro reduction checkpointing compile tf32 ema_device save_images keep_every sample_images sample_count "
    "validate_images validate_count log_steps bad_steps sampling vae evaluators".split()
)
# Settings without which the checkpoints mean something else.
FIXED = frozenset(
    "seed backbone batch lanes size source holdout split keep order window buckets codec name init freeze "
    "groups".split()
)


def differences(old: Any, new: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(dotted path, old, new) of every leaf that differs between two trees of plain data."""
    if isinstance(old, dict) and isinstance(new, dict) and old.get("type") == new.get("type"):
        for key in sorted(old.keys() | new.keys()):
            yield from differences(old.get(key), new.get(key), f"{path}.{key}" if path else key)
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for i, (before, after) in enumerate(zip(old, new, strict=True)):
            yield from differences(before, after, f"{path}.{i}")
    elif old != new:
        yield path, old, new


def _write_recipe(run: Path, recipe: Recipe) -> None:
    partial = run / ".recipe.json.part"
    partial.write_text(json.dumps(to_data(recipe), indent=1) + "\n", encoding="utf-8")
    partial.replace(run / "recipe.json")


def _brief(data: Any, width: int = 60) -> str:
    text = json.dumps(data)
    return text if len(text) <= width else f"{text[:width]}..."


def _defaults(described: Any) -> dict[str, dict[str, Any]]:
    """What fields of the values in a recipe are unless they are given, by the values' names."""
    if isinstance(described, tuple):
        return {name: fields for item in described for name, fields in _defaults(item).items()}
    if not dataclasses.is_dataclass(described) or isinstance(described, type):
        return {}
    given = {f.name: f.default for f in dataclasses.fields(described) if f.default is not dataclasses.MISSING}
    below = {
        name: fields
        for field in dataclasses.fields(described)
        for name, fields in _defaults(getattr(described, field.name)).items()
    }
    return {**below, type(described).__name__: {name: to_data(default) for name, default in given.items()}}


def _completed(data: Any, defaults: dict[str, dict[str, Any]]) -> Any:
    """Plain data with the settings that came after it was written, which then were as they are by default."""
    if isinstance(data, list):
        return [_completed(item, defaults) for item in data]
    if not isinstance(data, dict):
        return data
    return {**defaults.get(data.get("type", ""), {}), **{key: _completed(item, defaults) for key, item in data.items()}}


def _begun(run: Path) -> set[int]:
    """The numbers of stages that have checkpoints."""
    return {int(path.parents[1].name.partition("-")[0]) for path in run.glob("[0-9][0-9]-*/checkpoints/step-*")}


def _check_unchanged(run: Path, recipe: Recipe, begun: set[int], accept_changes: bool) -> None:
    before, now = _completed(read_json(run / "recipe.json"), _defaults(recipe)), to_data(recipe)
    for described in (before, now):  # what no stage has been trained by may still be planned anew
        described["stages"] = {str(i): stage for i, stage in enumerate(described["stages"]) if i in begun}
    changed = list(differences(before, now))
    bound = [(path, a, b) for path, a, b in changed if not FREE & set(path.split("."))]
    fixed = [entry for entry in bound if FIXED & set(entry[0].split("."))]
    if bound and not (accept_changes and not fixed):
        shown = "; ".join(f"{path}: {_brief(a)} -> {_brief(b)}" for path, a, b in bound[:10])
        more = f"; and {len(bound) - 10} more" if len(bound) > 10 else ""
        way = "set them back or start anew with another --out"
        way += "" if fixed else ", or add --accept-changes to go on with them from here"
        raise UserError(f"{run} was begun with another recipe: {shown}{more}. Resume it with `train {run}`, {way}")


@contextmanager
def opened_run(run: Path, recipe: Recipe, *, accept_changes: bool = False) -> Iterator[None]:
    """The folder `run`, held for this process alone, with `recipe` written into it.

    Raises:
        UserError: the run was begun with another recipe, or another process works in it.
        ResourceError: the folder cannot be written.
    """
    try:
        run.mkdir(parents=True, exist_ok=True)
        lock = os.open(run / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise ResourceError(f"{run}: cannot be written: {error.strerror}; give another --out") from error
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(f"{run}: another process is training here; wait for it or give another --out") from error
        if begun := _begun(run):  # before the first checkpoint there is nothing to contradict
            _check_unchanged(run, recipe, begun, accept_changes)
        try:
            _write_recipe(run, recipe)
        except OSError as error:
            raise ResourceError(f"{run}: cannot be written: {error.strerror}; give another --out") from error
        yield
    finally:
        os.close(lock)
