"""Runs as a page shows them: plain JSON data made of what their folders hold, by whatever version they were trained.

Nothing here makes a recipe or opens a tensor, so that a run can be looked at while it trains, and by another machine.
"""

import hashlib
import json
import math
import os
import re
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pixelspace.serving import watch_metrics
from pixelspace.serving.watch_files import (
    entries,
    folders,
    number,
    read_image,
    read_lines,
    read_object,
    stamp,
    whole_number,
)
from pixelspace.serving.watch_metrics import Metrics, curves, evaluations, mean

DEPTH = 3  # folders between the one that is watched and a run
MAX_RUNS, MAX_STAGES, MAX_FOLDERS = 200, 64, 5_000
MAX_KEPT = 8  # stages whose metrics are kept in memory as a whole
MAX_PARTS, MAX_CAPTIONS, MAX_CAPTION, MAX_BAD, MAX_SETTINGS, MAX_SETTING = 200, 256, 500, 500, 10_000, 200
PATIENCE = 90  # seconds without a sign of life that say nothing yet
SLOWEST = 1e-6  # images a second
SERIES = ("loss", "grad_norm", "lr", "ema_decay", "images_per_second", "data_wait", "peak_bytes")
WAYS = ("copied", "resized", "fresh", "unused")
SHEET = re.compile(r"(\d{10})(?:_(\d{1,6}(?:x\d{1,6}){0,2}))?\.png")
STEP = re.compile(r"step-(\d{8,12})")


def find_runs(root: Path) -> Iterator[Path]:
    """The folders with a recipe.json: `root` itself, or those at most `DEPTH` below that lie in no other run."""
    level, looked = [root], 0
    for _ in range(DEPTH + 1):
        below = list[Path]()
        for folder in level:
            if (folder / "recipe.json").is_file():
                yield folder
            elif (looked := looked + 1) <= MAX_FOLDERS:
                below += folders(folder)
        level = below


def _text(data: Any) -> str:
    """A text that can be sent, "" of anything else."""
    return data.encode("utf-8", "replace").decode() if isinstance(data, str) else ""


def _list(data: Any) -> list[Any]:
    return data if isinstance(data, list) else []


def _dict(data: Any) -> dict[str, Any]:
    return data if isinstance(data, dict) else {}


def leaves(data: Any) -> list[tuple[str, str]]:
    """The settings in a tree of plain data: their dotted paths, and each in JSON, in order."""
    found, left = list[tuple[str, str]](), [("", data)]
    while left and len(found) < MAX_SETTINGS:
        path, item = left.pop()
        if isinstance(item, dict | list) and item:
            below = list(item.items() if isinstance(item, dict) else enumerate(item))
            left += [(f"{path}.{name}" if path else str(name), one) for name, one in reversed(below)]
        else:
            found.append((_text(path)[:MAX_SETTING], json.dumps(item)[:MAX_SETTING]))
    return found


def growth(folder: Path) -> dict[str, Any] | None:
    """What `transfer.json` says became of a stage's tensors: how many came how, in all and in each part."""
    report = read_object(folder / "transfer.json")
    if report is None:
        return None
    parts = dict[str, dict[str, int]]()
    for way in WAYS:
        listed = report.get(way)
        for name in listed if isinstance(listed, dict | list) else ():
            part = _text(name).partition(".")[0]
            parts.setdefault(part, dict.fromkeys(WAYS, 0))[way] += 1
    return {
        "source": _text(report.get("source")),
        "total": {way: sum(counts[way] for counts in parts.values()) for way in WAYS},
        "parts": [{"part": part, **counts} for part, counts in list(parts.items())[:MAX_PARTS]],
    }


def _below(folder: Path, name: str) -> Path | None:
    """The folder of this name in another, unless it is a link."""
    return next((one for one in folders(folder) if one.name == name), None)


def sheets(folder: Path) -> dict[int, dict[str, Path]]:
    """By images seen, the sheets of samples drawn then, by the level's size; the finest is "" and comes first."""
    found = dict[int, dict[str, Path]]()
    samples = _below(folder, "samples")
    for entry in entries(samples) if samples else ():
        if named := SHEET.fullmatch(entry.name):
            found.setdefault(int(named[1]), {})[named[2] or ""] = Path(entry.path)

    def finest_first(size: str) -> float:
        sides = [int(side) for side in size.split("x")] if size else []
        return -math.inf if not size else -math.prod(sides * 2 if len(sides) == 1 else sides)

    return {images: {size: found[images][size] for size in sorted(found[images], key=finest_first)} for images in found}


def _steps(folder: Path) -> list[int]:
    """The steps of its checkpoints."""
    checkpoints = _below(folder, "checkpoints")
    names = (STEP.fullmatch(path.name) for path in folders(checkpoints)) if checkpoints else ()
    return [int(name[1]) for name in names if name]


class StageFolder:
    """A stage: what its recipe says of it, and what its folder holds, which may not be there yet."""

    def __init__(self, described: dict[str, Any], folder: Path | None):
        self.described, self.folder = described, folder
        self.name = _text(described.get("name"))
        self.images, self.batch = (whole_number(described.get(key)) or 0 for key in ("images", "batch"))
        self._last = Metrics(folder / "metrics.jsonl", watch_metrics.LAST) if folder else None
        self._all: Metrics | None = None
        self._curves: dict[str, Any] = {}

    def forget(self) -> None:
        """Drops its metrics from memory."""
        self._all, self._curves = None, {}

    def _updated(self, folder: Path) -> float:
        names = ("metrics.jsonl", "samples", "checkpoints", "evaluation", "")
        return max(stamp(folder / name).seconds for name in names)

    def summary(self) -> dict[str, Any]:
        """How far it is: waiting, training, silent (which may mean that it has stopped) or done; `updated` is when it
        last gave a sign of life, in seconds since 1970, `left` how many seconds it takes yet."""
        if self.folder is None or self._last is None:
            nothing = dict.fromkeys(("updated", "rate", "left", "loss"))
            return {"name": self.name, "images": self.images, "seen": 0, "state": "waiting", **nothing}
        self._last.refresh()
        seen = max(self._last.images, self.batch * max(_steps(self.folder), default=0))
        rows = self._last.rows("train")[-10:]
        rates = [rate for row in rows if (rate := row.numbers.get("images_per_second")) and rate > SLOWEST]
        rate = statistics.median(rates) if rates else None
        row_images = self.batch * (whole_number(self.described.get("log_steps")) or 1)
        updated = self._updated(self.folder)
        patience = PATIENCE + (3 * row_images / rate if rate else 0)
        state = "training" if time.time() - updated < patience else "silent"
        if self.images and seen >= self.images:
            state = "done"
        return {
            "name": self.name,
            "images": self.images,
            "seen": seen,
            "state": state,
            "updated": updated,
            "rate": rate,
            "left": (self.images - seen) / rate if rate and state == "training" else None,
            "loss": mean(row.numbers.get("loss") for row in rows),
        }

    def detail(self) -> dict[str, Any]:
        """All that is shown of it, but for pictures."""
        init, optimizer = _dict(self.described.get("init")), _dict(self.described.get("optimizer"))
        told = {
            **self.summary(),
            "batch": self.batch,
            "size": [whole_number(side) for side in _list(self.described.get("size"))],
            "backbone": _text(_dict(self.described.get("backbone")).get("type")),
            "objective": _text(_dict(self.described.get("objective")).get("type")),
            "lr": number(optimizer.get("lr")),
            "from": _text(init.get("stage")),
            "weights": _text(init.get("weights")),
            "frozen": [_text(one) for one in _list(self.described.get("freeze"))],
        }
        if self.folder is None:
            return {**told, "begun": False}
        self._all = self._all or Metrics(self.folder / "metrics.jsonl")
        if self._all.refresh() or not self._curves:
            self._curves = {
                "train": curves(self._all.rows("train"), SERIES),
                "validation": curves(self._all.rows("validation"), ("loss",)),
                "evaluations": evaluations(self._all),
            }
        samples = _below(self.folder, "samples")
        captions = read_lines(samples / "captions.txt", MAX_CAPTIONS) if samples else []
        return {
            **told,
            "begun": True,
            **self._curves,
            "not_finite": [row.images for row in self._all.rows("not_finite")][-MAX_BAD:],
            "attempt": self._all.attempt,
            "unreadable": self._all.unreadable,
            "cut": self._all.cut,
            "samples": [
                {
                    "images": images,
                    "levels": list(found),
                    "written": max(stamp(path).seconds for path in found.values()),
                }
                for images, found in sheets(self.folder).items()
            ],
            "captions": [_text(line)[:MAX_CAPTION] for line in captions],
            "checkpoints": [step * self.batch for step in _steps(self.folder)],
            "growth": growth(self.folder),
        }

    def sheet(self, images: int, level: str) -> bytes | None:
        """The PNG of one of its sheets. What is asked for is looked up among those there, and never made a path of."""
        path = sheets(self.folder).get(images, {}).get(level) if self.folder else None
        return read_image(path) if path else None


class RunFolder:
    """A run: its recipe as it stands there, and its stages."""

    def __init__(self, path: Path, name: str):
        self.path, self.name = path, _text(name)
        self.recipe: dict[str, Any] = {}
        self.stages: list[StageFolder] = []
        self.trouble = ""
        self._read: Any = None

    def refresh(self) -> None:
        """Reads the recipe, if it is another than before, and finds the stages' folders."""
        recipe = self.path / "recipe.json"
        if (now := stamp(recipe)) != self._read:
            found = read_object(recipe)
            self._read, self.recipe = now, found or {}
            self.trouble = "" if found else "its recipe.json cannot be read"
        described = [one for one in _list(self.recipe.get("stages")) if isinstance(one, dict)][:MAX_STAGES]
        # A name in the recipe is compared with those that are there, and never made a path of.
        there = {folder.name: folder for folder in folders(self.path)}
        placed = [(one, there.get(f"{i:02d}-{one.get('name')}")) for i, one in enumerate(described)]
        if placed != [(stage.described, stage.folder) for stage in self.stages]:
            self.stages = [StageFolder(one, folder) for one, folder in placed]

    def summary(self, key: str) -> dict[str, Any]:
        """How far its stages are."""
        stages = [stage.summary() for stage in self.stages]
        return {
            "id": key,
            "name": self.name,
            "recipe": _text(self.recipe.get("name")),
            "seed": whole_number(self.recipe.get("seed")),
            "stages": stages,
            "updated": max((stage["updated"] for stage in stages if stage["updated"] is not None), default=None),
            "trouble": self.trouble,
        }


class Runs:
    """The runs in a folder, looked for anew each time; the metrics of the last `MAX_KEPT` stages asked for are kept in
    memory."""

    def __init__(self, root: Path):
        self.root = root
        self._runs: dict[str, RunFolder] = {}
        self._kept: list[StageFolder] = []

    def summary(self) -> dict[str, Any]:
        """All runs, those that wrote last first; `hidden` is how many older ones are not shown."""
        found = sorted(find_runs(self.root), key=lambda path: -stamp(path / "recipe.json").seconds)
        known, self._runs = self._runs, {}
        for path in found[:MAX_RUNS]:
            name = os.path.relpath(path, self.root)
            key = hashlib.sha256(os.fsencode(name)).hexdigest()[:16]
            run = self._runs[key] = known.get(key) or RunFolder(path, self.root.name if name == "." else name)
            run.refresh()
        runs = [run.summary(key) for key, run in self._runs.items()]
        runs.sort(key=lambda run: (-(run["updated"] or 0.0), run["name"]))
        return {"folder": _text(self.root.name), "hidden": len(found) - len(runs), "runs": runs}

    def run(self, key: str) -> RunFolder | None:
        """The run that the summary calls so, as it now stands."""
        if key not in self._runs:
            self.summary()
        run = self._runs.get(key)
        if run is not None:
            run.refresh()
        return run

    def stage(self, key: str, index: int) -> StageFolder | None:
        """A stage of a run, by its place in the recipe."""
        run = self.run(key)
        return run.stages[index] if run and index < len(run.stages) else None

    def settings(self, key: str) -> list[tuple[str, str]] | None:
        """The settings of a run's recipe."""
        run = self.run(key)
        return leaves(run.recipe) if run else None

    def detail(self, key: str, index: int) -> dict[str, Any] | None:
        """What is shown of a stage."""
        stage = self.stage(key, index)
        if stage is None:
            return None
        self._kept = [one for one in self._kept if one is not stage] + [stage]
        for old in self._kept[:-MAX_KEPT]:
            old.forget()
        self._kept = self._kept[-MAX_KEPT:]
        return stage.detail()
